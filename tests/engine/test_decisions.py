"""Decisions in the worker: what is read, in how many passes, and that results never change."""

import dataclasses
import math
from collections import Counter

import msgspec
import pytest
import torch

from bench.passes import decode
from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.denoise.noise import block_noise
from engine.loading import build_denoiser
from engine.messages import (
    Block,
    Cancel,
    Cancelled,
    Decision,
    Failed,
    GenerateRequest,
    LabelSlot,
    Read,
    Sampling,
)
from engine.worker import Worker
from tests.engine.plain_answer import filled_cache

CANVAS = 16
SHAPE = Shape(layers="sssf", canvas=CANVAS, window=24, confidence_threshold=1e-9, steps=4)
CONFIG = {"device": "cpu", "max_context": 512, "prefill_chunk": 128, "max_active": 4}
PROMPT = [6 + i % 90 for i in range(150)]
PADDING = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_random_model(tmp_path_factory.mktemp("tiny"), SHAPE))


@pytest.fixture(scope="module")
def denoiser(folder):
    return build_denoiser(EngineConfig(model=folder, **CONFIG))


@pytest.fixture
def worker(denoiser):
    denoiser.forget_prefixes()
    worker = Worker(denoiser, EngineConfig(**CONFIG))
    yield worker
    for sequence in [*worker._scheduler._queued]:
        worker.handle(Cancel(sequence.request.id))


def read(first=30, slots=((2, (40, 41)), (5, (42, 43, 44))), tail=5):
    canvas = [first + i for i in range(9)]
    return Read(
        prompt=[first + i for i in range(tail)],
        canvas=canvas,
        slots=[LabelSlot(at, list(labels)) for at, labels in slots],
    )


def request(request_id="a", *reads, prompt=PROMPT, seed=1, priority=0, **options):
    reads = list(reads) or [read()]
    return GenerateRequest(
        request_id,
        prompt,
        max(len(each.prompt) for each in reads),
        Sampling(seed, priority=priority),
        decision=Decision(reads, **options),
    )


def chat(request_id="chat", prompt=PROMPT, max_tokens=64, **options):
    return GenerateRequest(request_id, prompt, max_tokens, Sampling(3, ignore_eos=True), **options)


def results(worker, *requests):
    """Returns what each of these requests reads, all of them at once."""
    for each in requests:
        assert worker.handle(each) == []
    read = {}
    while len(read) < sum(each.decision is not None for each in requests):
        for message in worker.step():
            assert not isinstance(message, Failed), message
            if message.reads is not None:
                read[message.id] = message.reads
    for each in requests:
        worker.handle(Cancel(each.id))
    return [read[each.id] for each in requests if each.decision is not None]


def plain(denoiser, asked, each, sample=0, steps=1):
    """Returns each slot's label probabilities and mass, from the network and the whole logits."""
    model, sampler = denoiser.model, denoiser.sampler
    most_steps = max(steps, sampler.max_denoising_steps)
    sampler = dataclasses.replace(sampler, max_denoising_steps=most_steps)
    cache = filled_cache(denoiser, [*asked.prompt, *each.prompt])
    noise = block_noise(
        asked.sampling.seed,
        0,
        steps=1,
        canvas_length=CANVAS,
        vocab_size=denoiser.vocab_size,
        device=torch.device("cpu"),
        stream=sample,
    ).canvases[0]
    tokens = torch.tensor(each.canvas + [sampler.padding] * (CANVAS - len(each.canvas)))
    slots = [slot.position for slot in each.slots]
    tokens[slots] = noise[slots]
    pinned, soft = tokens.clone(), None
    for step in range(steps):
        hidden = decode(model, tokens, soft, cache).double()
        cap = model.config.softcap
        logits = cap * (hidden @ model.embedding.double().T / cap).tanh()
        if step == steps - 1:
            break
        probs = (logits / sampler.temperature(step)).softmax(-1)
        entropy = torch.special.entr(probs).sum(-1)
        soft = ((probs @ model.embedding.double()) * model.embedding_scale).float()
        fixed = [at for at in range(CANVAS) if at not in slots]
        soft[fixed] = model.embed(pinned[fixed])
        spent, tokens = 0.0, pinned.clone()
        for slot in sorted(each.slots, key=lambda slot: float(entropy[slot.position])):
            if spent <= sampler.entropy_bound:
                best = logits[slot.position, slot.labels].argmax()
                tokens[slot.position] = slot.labels[best]
            spent += float(entropy[slot.position])
    shares = logits.softmax(-1)
    return [
        (
            logits[slot.position, slot.labels].softmax(-1).tolist(),
            float(shares[slot.position, slot.labels].sum()),
        )
        for slot in each.slots
    ]


@torch.inference_mode()
def assert_plain(denoiser, asked, each, slots, **options):
    for slot, (probabilities, mass) in zip(
        slots, plain(denoiser, asked, each, **options), strict=True
    ):
        assert slot.probabilities == pytest.approx(probabilities, abs=1e-4)
        assert slot.label_mass == pytest.approx(mass, rel=1e-3)
        assert math.isclose(sum(slot.probabilities), 1, abs_tol=1e-9)


@pytest.mark.parametrize("steps", [1, 3, 13])  # the last are more than an answer's block has
@pytest.mark.parametrize("samples", [1, 2])
def test_a_read_equals_a_plain_computation(denoiser, worker, steps, samples):
    asked = request("a", read(), read(50), steps=steps, samples=samples)
    (canvases,) = results(worker, asked)
    assert len(canvases) == 2 * samples
    for number, slots in enumerate(canvases):
        each, sample = asked.decision.reads[number // samples], number % samples
        assert_plain(denoiser, asked, each, slots, sample=sample, steps=steps)


def test_a_read_on_a_device_that_batches_equals_a_plain_computation(folder):
    denoiser = build_denoiser(EngineConfig(model=folder, **CONFIG))
    denoiser.exact_piece = None  # as on a GPU
    worker = Worker(denoiser, EngineConfig(**CONFIG))
    asked, other = request("a", read(), read(50), samples=2), request("b", read(20), seed=5)
    first, second = results(worker, chat(), asked, other)[0:2]
    for number, slots in enumerate(first):
        assert_plain(denoiser, asked, asked.decision.reads[number // 2], slots, sample=number % 2)
    assert_plain(denoiser, other, other.decision.reads[0], second[0])
    again = results(worker, asked)[0]  # its prompt is kept now
    assert_plain(denoiser, asked, asked.decision.reads[0], again[0])


def test_the_argmax_says_whether_it_is_a_label(denoiser, worker):
    every = list(range(denoiser.vocab_size))
    (canvases,) = results(worker, request("a", read(slots=((1, every), (3, (40, 41))))))
    assert canvases[0][0].argmax_is_label
    assert canvases[0][0].label_mass == pytest.approx(1)
    assert canvases[0][0].label_mass <= 1
    assert not canvases[0][1].argmax_is_label


def test_results_are_the_same_bits_in_a_batch_of_eight_as_alone(folder):
    options = {**CONFIG, "max_active": 8}
    worker = Worker(build_denoiser(EngineConfig(model=folder, **options)), EngineConfig(**options))
    others = [
        request(str(i), read(20 + i, tail=1 + i), prompt=PROMPT[: 50 + 9 * i], seed=i)
        for i in range(6)
    ]
    (alone,) = results(worker, request())
    worker._denoiser.forget_prefixes()
    assert results(worker, chat(), *others, request())[-1] == alone


def test_results_are_the_same_bits_whatever_prefix_is_kept(denoiser, worker):
    asked = request("a", read(), read(50))
    (fresh,) = results(worker, asked)
    assert results(worker, asked) == [fresh]
    for common in (20, 64, 100, 140, 150):
        denoiser.forget_prefixes()
        results(worker, request("b", read(70), prompt=[*PROMPT[:common], 5, 5, 5]))
        list(worker.generate(chat(prompt=PROMPT[:common], max_tokens=8)))
        assert results(worker, asked) == [fresh], common


def test_a_question_has_the_same_bits_with_other_questions_on_canvases_of_their_own(worker):
    ((alone,),) = results(worker, request("a", read()))
    (several,) = results(worker, request("a", read(60), read(), read(50, tail=9)))
    assert several[1] == alone


def test_another_seed_and_another_sample_have_other_noise(worker):
    (first, second), (other,) = results(worker, request("a", samples=2), request("b", seed=2))
    assert first != second
    assert first != other


def passes(worker, asked):
    worker.handle(asked)
    count = 0
    while not worker.idle:
        works = worker.next_pass()
        worker.run(works)
        count += 1
    return count


@pytest.mark.parametrize("exact", [True, False])
def test_a_decision_after_a_kept_prefix_takes_exactly_one_pass(folder, exact):
    denoiser = build_denoiser(EngineConfig(model=folder, **CONFIG))
    denoiser.exact_piece = denoiser.exact_piece if exact else None
    worker = Worker(denoiser, EngineConfig(**CONFIG))
    assert passes(worker, request()) == 2  # the prompt is longer than one chunk
    assert passes(worker, request("b", read(70))) == 1
    assert passes(worker, request("c", read(30), read(40), read(50), samples=1)) == 1
    # More canvases than the batch has.
    assert passes(worker, request("d", *(read(30 + i) for i in range(9)))) == 3
    assert passes(worker, request("e", steps=3)) == 3


@pytest.mark.parametrize("prefill_chunk", [1, 8, 12, 16, 33])
def test_the_longest_read_is_made_whatever_the_size_of_a_chunk(folder, prefill_chunk):
    options = {**CONFIG, "prefill_chunk": prefill_chunk}
    denoiser = build_denoiser(EngineConfig(model=folder, **options))
    worker = Worker(denoiser, EngineConfig(**options))
    for length in range(50, 60):
        worker.handle(request("a", read(tail=denoiser.read_tokens), prompt=PROMPT[:length]))
        messages = [message for _ in range(2 * length) for message in worker.step()]
        assert [message.finish_reason for message in messages] == ["stop"]


def test_all_slots_of_a_canvas_are_read_in_one_pass(worker):
    list(worker.generate(request()))
    full = read(slots=[(at, (40, 41)) for at in range(9)])
    assert passes(worker, request("b", full)) == 1


def test_a_decision_says_how_much_of_its_prompt_was_kept(worker):
    worker.handle(request())
    (block,) = [m for m in [*worker.step(), *worker.step()] if isinstance(m, Block)]
    assert (block.tokens, block.finish_reason, block.cached_tokens) == ([], "stop", 0)
    worker.handle(request("b", read(70)))
    (block,) = worker.step()
    assert block.cached_tokens == 128
    assert block.denoising_steps == 1


@pytest.mark.parametrize("running", [1, 4])
def test_a_decision_joins_the_next_pass_of_running_answers(worker, running):
    for i in range(running):
        worker.handle(chat(f"chat {i}", prompt=PROMPT[:100]))
        worker.step()
    worker.handle(request("a", prompt=PROMPT[:100]))
    works = worker.next_pass()
    assert works[0].sequence.request.id == "a"
    assert len(works) == min(running + 1, 4)
    blocks = [m for m in worker.run(works) if isinstance(m, Block)]
    assert "a" in [block.id for block in blocks]


def test_answers_lose_nothing_to_decisions_that_take_their_places(worker):
    def tokens(asked, *, decisions):
        worker.handle(asked)
        found = Counter()
        answer = []
        while not worker.idle:
            if decisions and found["passes"] % 2:
                worker.handle(request(f"d{found['passes']}", prompt=PROMPT[:70]))
            found["passes"] += 1
            for message in worker.step():
                if message.id == asked.id:
                    answer += message.tokens
                found["decisions"] += message.reads is not None
            if answer and len(answer) >= asked.max_tokens:
                decisions = False
        return answer, found["decisions"]

    quiet, none = tokens(chat(max_tokens=32), decisions=False)
    worker._scheduler.shrink(1)
    busy, many = tokens(chat(max_tokens=32), decisions=True)
    assert (quiet, none) == (busy, 0)
    assert many > 0


def test_a_decision_with_a_worse_priority_waits_for_answers(worker):
    worker.handle(chat())
    worker.step()
    worker.handle(request("a", priority=1))
    assert [work.sequence.request.id for work in worker.next_pass()] == ["chat"]


def test_a_decision_that_gives_way_between_two_steps_goes_on_where_it_was(worker):
    (quiet,) = results(worker, request("a", read(), read(50), steps=3))
    worker._scheduler.shrink(1)
    worker.handle(request("a", read(), read(50), steps=3, priority=1))
    for _ in range(3):
        worker.step()
    worker.handle(chat(max_tokens=8))
    read_then = None
    while read_then is None:
        for message in worker.step():
            read_then = message.reads if message.id == "a" else read_then
    assert read_then == quiet


def test_a_pass_that_runs_out_of_memory_can_be_made_again(worker, monkeypatch):
    (quiet,) = results(worker, request("a", steps=2))
    reader, failures = worker._denoiser._reader, [MemoryError("out of memory")] * 2
    original = reader.read

    def failing(*args):
        if failures:
            raise failures.pop()
        return original(*args)

    monkeypatch.setattr(reader, "read", failing)
    worker._denoiser.forget_prefixes()
    monkeypatch.setattr(worker._denoiser, "forget_prefixes", lambda: True)
    assert results(worker, request("a", steps=2)) == [quiet]
    assert not failures


def test_outputs_that_are_not_finite_fail_a_decision(worker, monkeypatch):
    model = worker._denoiser.model
    original = type(model).run
    monkeypatch.setattr(model, "run", lambda *args: original(model, *args) * float("nan"))
    worker.handle(request())
    messages = [*worker.step(), *worker.step()]
    assert [(m.id, m.code) for m in messages] == [("a", "outputs_not_finite")]
    assert worker.idle


def test_a_decision_can_be_cancelled(worker):
    worker.handle(request())
    worker.step()
    assert worker.handle(Cancel("a")) == [Cancelled("a")]
    assert worker.idle


BAD = {
    "no reads": {"reads": []},
    "samples": {"samples": 0},
    "steps": {"steps": 2000},
    "too much work": {"steps": 100, "samples": 50},
    "an empty prompt": {"reads": [msgspec.structs.replace(read(), prompt=[])]},
    "a long prompt": {"reads": [read(tail=200)]},
    "no slots": {"reads": [read(slots=())]},
    "a slot outside": {"reads": [read(slots=((9, (40, 41)),))]},
    "a slot twice": {"reads": [read(slots=((2, (40, 41)), (2, (40, 41))))]},
    "no labels": {"reads": [read(slots=((2, ()),))]},
    "an unknown label": {"reads": [read(slots=((2, (40, 10**6)),))]},
    "a long canvas": {"reads": [msgspec.structs.replace(read(), canvas=[7] * (CANVAS + 1))]},
    "an unknown token": {"reads": [msgspec.structs.replace(read(), canvas=[10**6] * 9)]},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_a_wrong_decision_fails_before_it_reaches_the_device(worker, changes):
    asked = request()
    decision = msgspec.structs.replace(asked.decision, **changes)
    (failed,) = worker.handle(msgspec.structs.replace(asked, max_tokens=300, decision=decision))
    assert isinstance(failed, Failed)
    assert worker.idle


def test_a_decision_with_a_seed_out_of_range_fails(worker):
    (failed,) = worker.handle(request(seed=2**64))
    assert failed.message == "seed is out of range."
