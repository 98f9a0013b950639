"""The worker's turns, run in the test process on a tiny random model."""

import dataclasses

import msgspec
import pytest
import torch

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.denoise.noise import block_noise
from engine.loading import build_denoiser
from engine.messages import (
    Block,
    Cancel,
    Cancelled,
    Failed,
    GenerateRequest,
    Heartbeat,
    Sampling,
    Sibling,
)
from engine.schedule.prefix_cache import PrefixCache
from engine.worker import Worker

PROMPT = list(range(6, 30))
ENDLESS = Shape(layers="sf", canvas=8, confidence_threshold=1e-9, steps=4)


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("tiny"), ENDLESS)
    denoiser = build_denoiser(EngineConfig(model=str(folder), device="cpu", max_context=128))
    # Without end tokens and padding, every answer continues until its max_tokens.
    denoiser.sampler = dataclasses.replace(denoiser.sampler, end_tokens=frozenset(), padding=None)
    return denoiser


@pytest.fixture
def worker(denoiser):
    return Worker(denoiser, EngineConfig(prefill_chunk=16))


SAMPLING_FIELDS = Sampling.__struct_fields__


def request(request_id="a", **changes):
    """Returns a request with these fields. Fields of `Sampling` can be given directly."""
    sampling = {name: changes.pop(name) for name in (*changes,) if name in SAMPLING_FIELDS}
    values = {"id": request_id, "prompt": PROMPT, "max_tokens": 20}
    return GenerateRequest(**{**values, **changes}, sampling=Sampling(**{"seed": 1, **sampling}))


def tokens_of(messages):
    return [token for m in messages if isinstance(m, Block) for token in m.tokens]


def until_idle(worker):
    messages = []
    while not worker.idle:
        messages += worker.step()
    return messages


def test_block_indices_rise_by_one_and_the_last_block_has_the_reason_of_the_end(worker):
    messages = list(worker.generate(request()))
    assert [m.index for m in messages] == [0, 1, 2]
    assert [m.finish_reason for m in messages] == [None, None, "length"]


def test_max_tokens_cuts_the_answer_exactly_in_the_middle_of_a_block(worker):
    assert len(tokens_of(worker.generate(request(max_tokens=13)))) == 13


def test_the_same_seed_gives_the_same_tokens_and_another_seed_gives_others(worker):
    first, again, other = (tokens_of(worker.generate(request(seed=s))) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_tokens_of_a_request_do_not_depend_on_earlier_requests(worker):
    alone = tokens_of(worker.generate(request()))
    for each in (request("b", seed=9, prompt=[7] * 50), request()):
        worker.handle(each)
    together = tokens_of(m for m in until_idle(worker) if m.id == "a")
    assert together == alone


@pytest.mark.parametrize("seed", range(4))
def test_the_tokens_of_a_request_do_not_depend_on_requests_in_the_same_passes(worker, seed):
    mixed = [
        request("a", seed=seed),
        request("b", seed=9, prompt=[7] * 50, max_tokens=40),
        request("c", seed=seed, temperature=0),
        request("d", seed=11, prompt=[8, 9], max_tokens=3, temperature=1.7),
        request("e", seed=12, max_tokens=70),  # waits until another request has ended
    ]
    alone = {each.id: tokens_of(worker.generate(each)) for each in mixed}
    messages = []
    for each in mixed:  # each request joins while the earlier ones are running
        messages += worker.handle(each)
        messages += worker.step()
    messages += until_idle(worker)
    for each in mixed:
        assert tokens_of(m for m in messages if m.id == each.id) == alone[each.id]


def test_requests_beyond_max_active_wait_until_another_has_ended(denoiser):
    worker = Worker(denoiser, EngineConfig(max_active=2))

    def waiting_and_running():
        (stats,) = worker.stats()
        return stats.waiting, stats.running

    for name in "abc":
        worker.handle(request(name))
    worker.step()
    assert waiting_and_running() == (1, 2)
    worker.handle(Cancel("a"))
    worker.step()
    assert waiting_and_running() == (0, 2)
    until_idle(worker)


def test_commits_and_the_end_of_the_prompt_need_no_additional_pass(worker, denoiser, monkeypatch):
    denoiser.forget_prefixes()
    passes, run = [], denoiser.run
    monkeypatch.setattr(denoiser, "run", lambda works: passes.append(works) or run(works))
    blocks = list(worker.generate(request(max_tokens=24)))
    chunks_before_the_last = -(-len(PROMPT) // 16) - 1
    steps = sum(block.denoising_steps for block in blocks)
    assert len(blocks) == 3
    assert len(passes) == chunks_before_the_last + steps
    encoded = [len(work.tokens) for works in passes for work in works if work.tokens]
    assert encoded == [16, 8, 8, 8]  # the prompt and two blocks; the last block is not encoded


def encoded_by(denoiser, monkeypatch, work):
    """Call `work`. Returns its result, and how many tokens the encoder read meanwhile."""
    counts, run = [], denoiser.run
    with monkeypatch.context() as patched:
        patched.setattr(
            denoiser,
            "run",
            lambda works: counts.append(sum(len(w.tokens) for w in works)) or run(works),
        )
        return work(), sum(counts)


# Prompts that extend the first one, that share only its beginning, and one without a common prefix.
TURNS = [PROMPT, [*PROMPT, *range(40, 60)], [*PROMPT[:-4], 90, 91], PROMPT[:10], [99] * 5]


def test_reusing_kept_prefixes_changes_no_token(worker, denoiser):
    fresh = []
    for prompt in TURNS:
        denoiser.forget_prefixes()
        fresh.append(tokens_of(worker.generate(request(prompt=prompt))))
    denoiser.forget_prefixes()
    for _ in range(2):
        for prompt, tokens in zip(TURNS, fresh, strict=True):
            assert tokens_of(worker.generate(request(prompt=prompt))) == tokens


def test_the_next_turn_encodes_only_its_new_tokens(worker, denoiser, monkeypatch):
    denoiser.forget_prefixes()
    (first,), count = encoded_by(
        denoiser, monkeypatch, lambda: list(worker.generate(request(max_tokens=8)))
    )
    assert (first.cached_tokens, count) == (0, len(PROMPT))
    longer = [*PROMPT, *first.tokens, 70, 71, 72]
    (second,), count = encoded_by(
        denoiser, monkeypatch, lambda: list(worker.generate(request(prompt=longer, max_tokens=8)))
    )
    assert second.cached_tokens == len(PROMPT)
    assert count == len(longer) - len(PROMPT)


def test_a_prompt_that_is_a_kept_prefix_is_not_encoded_at_all(worker, denoiser, monkeypatch):
    list(worker.generate(request()))
    (block, *_), count = encoded_by(
        denoiser, monkeypatch, lambda: list(worker.generate(request(max_tokens=8)))
    )
    assert (block.cached_tokens, count) == (len(PROMPT), 0)


def test_committed_blocks_are_kept_too(worker, denoiser):
    denoiser.forget_prefixes()
    answer = tokens_of(worker.generate(request(max_tokens=24)))
    (block, *_) = worker.generate(request(prompt=PROMPT + answer, max_tokens=8))
    assert block.cached_tokens == len(PROMPT) + 16  # the last block is never committed


def test_a_pass_that_runs_out_of_memory_runs_again_without_kept_prefixes(
    worker, denoiser, monkeypatch
):
    expected = list(worker.generate(request()))
    run, failures = denoiser.run, iter([True, False])

    def run_or_fail(works):
        if next(failures, False):
            raise torch.OutOfMemoryError("no memory left")
        return run(works)

    monkeypatch.setattr(denoiser, "run", run_or_fail)
    assert tokens_of(worker.generate(request())) == tokens_of(expected)


def test_only_a_request_that_does_not_fit_alone_fails_for_lack_of_memory(
    worker, denoiser, monkeypatch
):
    expected = tokens_of(worker.generate(request("small")))
    run = denoiser.run

    def run_or_fail(works):
        if any(work.sequence.request.id == "large" for work in works):
            torch.empty(2**60, dtype=torch.uint8)  # the CPU allocator's own error
        return run(works)

    monkeypatch.setattr(denoiser, "run", run_or_fail)
    for name in ("small", "large"):
        worker.handle(request(name))
    messages = until_idle(worker)
    assert [m for m in messages if m.id == "large"] == [
        Failed("large", "The device is out of memory.", "out_of_memory")
    ]
    assert tokens_of(m for m in messages if m.id == "small") == expected


def test_other_errors_of_a_pass_are_raised(worker, denoiser, monkeypatch):
    def broken(works):
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(denoiser, "run", broken)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        list(worker.generate(request()))
    monkeypatch.undo()
    worker.handle(Cancel("a"))


class Damaged:
    """Makes hidden states of a request NaN or infinite: from a denoising step and a position on."""

    def __init__(self, denoiser, monkeypatch, *, value=float("nan"), step=0, first=0):
        self.passes, run, run_model = [], denoiser.run, denoiser._run_model

        def recorded(works):
            self.passes.append(works)
            return run(works)

        def damaged(segments, canvases):
            hidden, start = run_model(segments, canvases).clone(), 0
            sequences = [w.sequence for w in self.passes[-1] if w.denoise]
            for sequence, canvas in zip(sequences, canvases, strict=True):
                if sequence.request.id == "damaged" and sequence.step_index >= step:
                    hidden[start + first : start + canvas.width, 5] = value
                start += canvas.width
            return hidden

        monkeypatch.setattr(denoiser, "run", recorded)
        monkeypatch.setattr(denoiser, "_run_model", damaged)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize("step", [0, 2, 3])  # the last step makes the block final in any case
@pytest.mark.parametrize(
    "options",
    [{}, {"top_p": 0.5}, {"top_k": 3}, {"temperature": 0}, {"top_logprobs": 2}, {"min_tokens": 3}],
)
def test_a_request_fails_at_once_if_outputs_of_the_model_are_not_finite(
    worker, denoiser, monkeypatch, value, first, step, options
):
    expected = tokens_of(worker.generate(request("sound", **options)))
    Damaged(denoiser, monkeypatch, value=value, step=step, first=first)
    for name in ("sound", "damaged"):
        worker.handle(request(name, **options))
    messages = until_idle(worker)
    (failed,) = [m for m in messages if m.id == "damaged"]
    assert isinstance(failed, Failed)
    assert failed.code == "outputs_not_finite"
    assert "not finite" in failed.message
    assert tokens_of(m for m in messages if m.id == "sound") == expected


def test_a_request_whose_outputs_are_not_finite_takes_no_further_pass_and_keeps_no_prefix(
    worker, denoiser, monkeypatch
):
    denoiser.forget_prefixes()
    damaged = Damaged(denoiser, monkeypatch)
    messages = list(worker.generate(request("damaged")))
    assert [type(message) for message in messages] == [Failed]
    assert len(damaged.passes) == 2  # the prompt in two chunks, the second with the first step
    assert denoiser.kept_prefix_bytes == 0
    assert worker.idle


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("weight", ["embedding", "norm", "layer"])
@pytest.mark.parametrize("suffix", [[], [40, 41]])
def test_damaged_weights_are_an_error(tmp_path, value, weight, suffix):
    folder = write_random_model(tmp_path, ENDLESS)
    denoiser = build_denoiser(EngineConfig(model=str(folder), device="cpu", max_context=128))
    model = denoiser.model
    weights = {
        "embedding": model.embedding[77],  # neither in the prompt nor in the suffix
        "norm": model.norm.weight,
        "layer": model.layers[0].mlp.down[3],
    }
    with torch.no_grad():
        weights[weight][5] = value
    options = {"max_tokens": 6, "suffix": suffix, "max_denoising_steps": 1}
    messages = Worker(denoiser, EngineConfig()).generate(request(**options))
    assert [message.code for message in messages] == ["outputs_not_finite"]


def test_a_speculation_whose_outputs_are_not_finite_is_lost(tmp_path, monkeypatch):
    shape = Shape(layers="sfsf", window=6, canvas=8, confidence_threshold=0.8, entropy_bound=6.0)
    config = EngineConfig(model=str(write_random_model(tmp_path, shape)), device="cpu")
    denoiser = build_denoiser(config)
    denoiser.sampler = dataclasses.replace(denoiser.sampler, end_tokens=frozenset(), padding=None)
    worker = Worker(denoiser, config.model_copy(update={"speculate": True}))
    requests = [request(f"{seed}", seed=seed, max_tokens=60) for seed in range(6)]
    expected = [list(worker.generate(each)) for each in requests]
    assert any(m.speculation_won for messages in expected for m in messages)
    run_model = denoiser._run_model

    def damaged(segments, canvases):
        hidden = run_model(segments, canvases).clone()
        if len(canvases) > 1:
            hidden[-1] = float("nan")
        return hidden

    monkeypatch.setattr(denoiser, "_run_model", damaged)
    for each, undamaged in zip(requests, expected, strict=True):
        messages = list(worker.generate(each))
        assert tokens_of(messages) == tokens_of(undamaged)
        assert not any(m.speculation_won for m in messages)


def test_a_temperature_too_small_for_float32_counts_as_the_smallest_allowed_one(worker):
    expected = tokens_of(worker.generate(request(temperature=1e-3)))
    for temperature in (1e-7, 1e-40):
        assert tokens_of(worker.generate(request(temperature=temperature))) == expected


@pytest.mark.parametrize("temperature", [1.0, 0])
@pytest.mark.parametrize(("window", "stability"), [(6, 1), (64, 1), (6, 2), (6, 0)])
def test_speculation_changes_no_token_and_saves_passes(
    tmp_path, monkeypatch, temperature, window, stability
):
    shape = Shape(
        layers="sfsf",
        window=window,
        canvas=8,
        confidence_threshold=0.8,
        entropy_bound=6.0,
        stability_threshold=stability,
    )
    config = EngineConfig(
        model=str(write_random_model(tmp_path, shape)), device="cpu", prefix_cache_mib=0
    )
    denoiser, passes = build_denoiser(config), []
    denoiser.sampler = dataclasses.replace(denoiser.sampler, end_tokens=frozenset(), padding=None)
    run = denoiser.run
    monkeypatch.setattr(denoiser, "run", lambda works: passes.append(works) or run(works))
    answers, counts, tries, wins = {}, {}, 0, 0
    for speculate in (False, True):
        worker = Worker(denoiser, config.model_copy(update={"speculate": speculate}))
        passes.clear()
        for seed in range(6):  # together, so that speculation and other requests share passes
            worker.handle(request(f"{seed}", seed=seed, max_tokens=60, temperature=temperature))
        blocks = [m for m in until_idle(worker) if isinstance(m, Block)]
        answers[speculate] = {
            f"{seed}": tokens_of(b for b in blocks if b.id == f"{seed}") for seed in range(6)
        }
        steps = sum(block.denoising_steps for block in blocks)
        counts[speculate] = (steps, len(passes))
        tries = sum(block.speculations for block in blocks)
        wins = sum(block.speculation_won for block in blocks)
    assert answers[True] == answers[False]
    assert counts[True][0] == counts[False][0]
    assert tries > 0
    # With stability 0 the step seldom keeps the draft, and with 2 the speculation comes too early.
    if stability == 1:
        assert tries > wins > 0
        assert counts[True][1] < counts[False][1]


def test_the_size_of_prefill_chunks_does_not_change_the_tokens(denoiser, worker):
    one_by_one = Worker(denoiser, EngineConfig(prefill_chunk=1))
    by_token = tokens_of(one_by_one.generate(request()))
    assert by_token == tokens_of(worker.generate(request()))


def test_a_cancelled_request_ends_before_the_next_pass(worker):
    worker.handle(request())
    worker.step()
    assert worker.handle(Cancel("a")) == [Cancelled("a")]
    assert worker.idle
    assert worker.step() == []


def test_a_request_that_is_cancelled_while_it_waits_never_runs(worker):
    worker.handle(request("a"))
    worker.handle(request("b"))
    worker.step()
    assert worker.handle(Cancel("b")) == [Cancelled("b")]
    assert {m.id for m in until_idle(worker)} == {"a"}


def test_a_cancel_of_an_unknown_request_is_ignored(worker):
    assert worker.handle(Cancel("unknown")) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": []},
        {"max_tokens": 0},
        {"prompt": [7] * 128},
        {"max_tokens": 128 - 23},
        {"prompt": [7, 160]},
        {"prompt": [7, -1]},
    ],
)
def test_a_request_with_an_invalid_prompt_or_length_fails(worker, changes):
    (failed,) = worker.handle(request(**changes))
    assert isinstance(failed, Failed)
    assert worker.idle


def test_an_answer_that_fills_the_context_ends_with_length(worker):
    messages = list(worker.generate(request(max_tokens=128 - len(PROMPT))))
    assert len(tokens_of(messages)) == 128 - len(PROMPT)
    assert messages[-1].finish_reason == "length"


def test_a_request_that_runs_out_of_memory_fails_and_the_next_one_runs(
    worker, denoiser, monkeypatch
):
    expected = tokens_of(worker.generate(request()))

    def exhausted(work):
        raise torch.OutOfMemoryError("no memory left")

    with monkeypatch.context() as patched:
        patched.setattr(denoiser, "run", exhausted)
        messages = list(worker.generate(request("b")))
    assert [type(m) for m in messages] == [Failed]
    assert tokens_of(worker.generate(request())) == expected


def test_if_every_request_fits_alone_none_fails_and_fewer_run_together(
    worker, denoiser, monkeypatch
):
    requests = [request(name, seed=seed) for seed, name in enumerate("abc")]
    alone = [tokens_of(worker.generate(each)) for each in requests]
    run, widths = denoiser.run, []

    def small(works):
        if len(works) > 1:
            raise torch.OutOfMemoryError("no memory left")
        widths.append(len(works))
        return run(works)

    monkeypatch.setattr(denoiser, "run", small)
    messages = [m for each in requests for m in worker.handle(each)]
    while not worker.idle:
        messages += worker.step()
    for each, expected in zip(requests, alone, strict=True):
        assert tokens_of([m for m in messages if m.id == each.id]) == expected


@pytest.mark.parametrize("prefix_bytes", [0, 2**24])
def test_a_request_that_is_parked_in_the_middle_of_a_block_gets_the_same_tokens(
    denoiser, monkeypatch, prefix_bytes
):
    monkeypatch.setattr(denoiser, "_prefixes", PrefixCache(prefix_bytes))
    worker = Worker(denoiser, EngineConfig(prefill_chunk=16, max_active=1))
    job, person = request("job", max_tokens=60, priority=1), request("person", seed=9)
    alone = {r.id: tokens_of(worker.generate(r)) for r in (job, person)}
    for passes in range(1, 30, 3):
        messages = worker.handle(job)
        for _ in range(passes):
            messages += worker.step()
        first = "job" if any(m.finish_reason for m in messages) else "person"
        messages += worker.handle(person)
        while not worker.idle:
            messages += worker.step()
        for name, expected in alone.items():
            assert tokens_of([m for m in messages if m.id == name]) == expected
        assert next(m.id for m in messages if m.finish_reason) == first


@pytest.mark.parametrize("options", [{}, {"frequency_penalty": 1.5}, {"temperature": 0}])
def test_an_answer_continues_behind_its_delivered_blocks(worker, options):
    original = request(max_tokens=60, **options)
    blocks = [m for m in worker.generate(original) if isinstance(m, Block)]
    assert len(blocks) > 2
    for count in range(1, len(blocks)):
        delivered = [token for block in blocks[:count] for token in block.tokens]
        again = msgspec.structs.replace(
            original, id="again", delivered=delivered, delivered_blocks=count
        )
        continuation = [m for m in worker.generate(again) if isinstance(m, Block)]
        assert [(m.index, m.tokens) for m in continuation] == [
            (block.index, block.tokens) for block in blocks[count:]
        ]


def test_a_request_whose_answer_was_delivered_completely_fails(worker):
    (failed,) = worker.generate(request(max_tokens=2, delivered=[7, 8], delivered_blocks=1))
    assert "delivered before" in failed.message


def test_stats_are_sent_only_when_a_number_changes(denoiser, worker):
    denoiser.forget_prefixes()
    worker.stats()
    worker.handle(request("a"))
    worker.handle(request("b"))
    (queued,) = worker.stats()
    assert (queued.waiting, queued.running, queued.kv_used_bytes) == (2, 0, 0)
    worker.step()
    (running,) = worker.stats()
    assert (running.waiting, running.running) == (0, 2)
    assert 0 < running.kv_used_bytes < running.kv_budget_bytes == queued.kv_budget_bytes
    assert worker.stats() == []
    until_idle(worker)
    (last,) = worker.stats()
    assert (last.waiting, last.running, last.kv_used_bytes) == (0, 0, 0)
    assert last.kept_prefix_bytes == denoiser.kept_prefix_bytes > 0


def test_the_first_block_has_the_time_in_the_queue_and_each_block_a_time_for_each_step(worker):
    blocks = [m for m in worker.generate(request()) if isinstance(m, Block)]
    assert [block.queue_s is not None for block in blocks] == [True, False, False]
    for block in blocks:
        # The pass that wins a speculation has made the next block's first step as well.
        assert block.denoising_steps - 1 <= len(block.step_times_s) <= block.denoising_steps
        assert all(step_s > 0 for step_s in block.step_times_s)
    assert sum(sum(block.step_times_s) for block in blocks) <= sum(b.duration_s for b in blocks)


def test_a_request_that_waits_for_the_device_has_waited_longer(denoiser):
    worker = Worker(denoiser, EngineConfig(prefill_chunk=16, max_active=1))
    worker.handle(request("a"))
    worker.handle(request("b", prompt=[*PROMPT, 5]))
    firsts = {m.id: m for m in until_idle(worker) if isinstance(m, Block) and m.index == 0}
    assert firsts["b"].queue_s > firsts["a"].queue_s + firsts["a"].duration_s


def test_at_temperature_zero_only_the_starting_noise_is_random(worker, monkeypatch):
    expected = tokens_of(worker.generate(request(temperature=0)))

    def only_the_start(*args, **kwargs):
        noise = block_noise(*args, **kwargs)
        noise.canvases[1:] = -1
        noise.uniforms.fill_(float("nan"))
        return noise

    monkeypatch.setattr("engine.denoise.canvas.block_noise", only_the_start)
    assert tokens_of(worker.generate(request(temperature=0))) == expected


def test_a_heartbeat_names_the_requests_of_the_pass_before_it_runs(worker, monkeypatch):
    now = 100.0
    monkeypatch.setattr("engine.worker.monotonic", lambda: now)

    def beats():
        works = worker.next_pass()
        announced = worker.heartbeat(works)
        return [(b.in_pass, b.accepted) for b in announced], worker.run(works)

    assert worker.heartbeat([]) == [Heartbeat([], 0, 0.0)]
    assert worker.heartbeat([]) == []
    worker.handle(request("a", max_tokens=40))
    assert beats()[0] == [(["a"], 1)]
    worker.handle(request("b", prompt=[]))  # it fails at once
    worker.handle(request("c", max_tokens=40))
    assert beats()[0] == [(["a", "c"], 3)]
    while not worker._times.longest_s(works := worker.next_pass()):
        assert [b.longest_pass_s for b in worker.heartbeat(works)] == [None]
        worker.run(works)
    assert beats()[0] == []  # nothing is new
    now += 1.0
    assert beats()[0] == [(["a", "c"], 3)]
    worker.handle(Cancel("a"))
    assert beats()[0] == [(["c"], 3)]
    until_idle(worker)
    assert worker.heartbeat([]) == [Heartbeat([], 3, 0.0)]


CHOICES = [Sibling(name, choice) for choice, name in enumerate("bcdefg", 1)]


@pytest.mark.parametrize("prefix_bytes", [0, 2**24])
def test_the_choices_of_a_prompt_encode_it_once(denoiser, monkeypatch, prefix_bytes):
    monkeypatch.setattr(denoiser, "_prefixes", PrefixCache(prefix_bytes))
    worker = Worker(denoiser, EngineConfig(prefill_chunk=16, max_active=4))
    siblings = CHOICES if prefix_bytes else CHOICES[:3]  # kept for those that start later
    together = request("a", siblings=siblings)

    def answer():
        return [*worker.handle(together), *until_idle(worker)]

    messages, encoded = encoded_by(denoiser, monkeypatch, answer)
    committed = sum(len(m.tokens) for m in messages if m.finish_reason is None)
    assert encoded == len(PROMPT) + committed
    for each in together.choices():
        denoiser.forget_prefixes()
        assert tokens_of(m for m in messages if m.id == each.id) == tokens_of(worker.generate(each))


def test_a_choice_encodes_the_prompt_if_the_one_before_it_is_cancelled(worker, denoiser):
    denoiser.forget_prefixes()
    together = request("a", siblings=CHOICES[:2])
    expected = tokens_of(worker.generate(together.choices()[1]))
    denoiser.forget_prefixes()
    worker.handle(together)
    worker.step()  # the first chunk of the prompt
    assert worker.handle(Cancel("a")) == [Cancelled("a")]
    messages = until_idle(worker)
    assert tokens_of(m for m in messages if m.id == "b") == expected
    assert {m.id for m in messages if m.finish_reason} == {"b", "c"}


def test_choices_of_a_kept_prompt_all_start_in_the_first_pass(worker):
    list(worker.generate(request("before")))
    worker.handle(request("a", siblings=CHOICES[:3]))
    assert [work.sequence.request.id for work in worker.next_pass()] == ["a", "b", "c", "d"]
    until_idle(worker)


def test_choices_that_wait_hold_no_copy_of_the_prompt_and_its_images(worker):
    sent = request("a", siblings=CHOICES)
    worker.handle(sent)
    for name in "abcdefg":
        sequence = worker._scheduler.find(name)
        assert sequence.unencoded is sequence.request.prompt is sent.prompt
        assert sequence.request.images is sent.images
    until_idle(worker)


def test_each_choice_of_a_bad_prompt_fails(worker):
    replies = worker.handle(request("a", prompt=[7, 160], siblings=CHOICES[:1]))
    assert [(type(reply), reply.id) for reply in replies] == [(Failed, "a"), (Failed, "b")]
    assert worker.idle


@pytest.mark.parametrize(
    "wrong",
    [
        Sibling("b", -1),
        Sibling("b", 2**31),
        Sibling("b", 1, [7] * 20, 1),
        Sibling("b", 1, [160], 1),
        Sibling("b", 1, [7], -1),
        Sibling("b", 1, [7], 2**31),
    ],
)
def test_only_a_choice_that_is_wrong_itself_fails(worker, wrong):
    (failed,) = worker.handle(request("a", siblings=[wrong]))
    assert isinstance(failed, Failed)
    assert failed.id == "b"
    assert {m.id for m in until_idle(worker)} == {"a"}


def test_choices_continue_behind_their_delivered_blocks(worker):
    together = request("a", siblings=CHOICES[:3], max_tokens=40)
    worker.handle(together)
    blocks = [m for m in until_idle(worker) if isinstance(m, Block)]
    expected = {each.id: tokens_of(m for m in blocks if m.id == each.id) for each in CHOICES[:3]}
    delivered = {"b": 0, "c": 1, "d": 2}
    siblings = [
        Sibling(s.id, s.choice, expected[s.id][: 8 * delivered[s.id]], delivered[s.id])
        for s in CHOICES[:3]
    ]
    worker.handle(msgspec.structs.replace(together, siblings=siblings))
    messages = until_idle(worker)
    for name, count in delivered.items():
        assert tokens_of(m for m in messages if m.id == name) == expected[name][8 * count :]
