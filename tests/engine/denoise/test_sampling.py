"""The effect of each field of `Sampling` on whole answers of a tiny random model."""

import dataclasses

import pytest
import torch

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.denoise.sampler import accept
from engine.loading import build_denoiser
from engine.messages import Block, Failed, GenerateRequest, Prediction, Sampling
from engine.tail.vocab_tail import vocab_tail
from engine.worker import Worker
from tests.engine.plain_answer import plain_answer

PROMPT = list(range(6, 30))
CANVAS, VOCAB, STEPS = 8, 160, 6
SHAPE = Shape(layers="sf", canvas=CANVAS, vocab=VOCAB, steps=STEPS, entropy_bound=6.0)
FEW_ENDS = frozenset(range(150, 160))  # tokens that are drawn now and then
PADDING = 0


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    folder = write_random_model(tmp_path_factory.mktemp("tiny"), SHAPE)
    return build_denoiser(EngineConfig(model=str(folder), device="cpu", max_context=128))


@pytest.fixture
def with_ends(denoiser, monkeypatch):
    """Returns a function that replaces the model's end tokens and its padding."""

    def replace(ends, padding=None):
        sampler = dataclasses.replace(denoiser.sampler, end_tokens=frozenset(ends), padding=padding)
        monkeypatch.setattr(denoiser, "sampler", sampler)

    return replace


@pytest.fixture
def worker(denoiser, with_ends):
    with_ends(())
    return Worker(denoiser, EngineConfig(prefill_chunk=16))


def request(
    request_id="a", *, prompt=PROMPT, max_tokens=20, seed=1, prediction=(), behind=None, **sampling
):
    predicted = Prediction(list(prediction), behind) if prediction else None
    return GenerateRequest(
        request_id, prompt, max_tokens, Sampling(seed, **sampling), prediction=predicted
    )


def answer(worker, **options):
    blocks = list(worker.generate(request(**options)))
    assert all(isinstance(block, Block) for block in blocks), blocks
    return blocks, blocks[-1].finish_reason


def tokens_of(blocks):
    return [token for block in blocks for token in block.tokens]


def until_idle(worker):
    messages = []
    while not worker.idle:
        messages += worker.step()
    return messages


def plain_tokens(denoiser, **options):
    return tokens_of(plain_answer(denoiser, request(**options))[0])


OPTIONS = {
    "nothing": {},
    "choice": {"choice": 3},
    "cool": {"temperature": 0.3},
    "greedy": {"temperature": 0},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 3},
    "top_k of one": {"top_k": 1},
    "top_k and top_p": {"top_k": 20, "top_p": 0.7, "temperature": 1.5},
    "min_p": {"min_p": 0.2},
    "top_k and top_p and min_p": {"top_k": 20, "top_p": 0.9, "min_p": 0.1, "temperature": 1.5},
    "logit_bias": {"logit_bias": {7: 5.0, 8: -100.0, 9: 4.5, 120: 3.0}},
    "penalties": {
        "presence_penalty": 1.5,
        "frequency_penalty": 0.5,
        "logit_bias": {77: 9.0, 78: 8.5, 79: 8.0},
        "max_tokens": 40,
    },
    "repetition_penalty": {"repetition_penalty": 1.4, "max_tokens": 40},
    "repetition reward": {
        "repetition_penalty": 0.6,
        "logit_bias": {77: 9.0, 78: 8.5},
        "presence_penalty": 0.5,
        "max_tokens": 40,
    },
    "banned_tokens": {"banned_tokens": list(range(60, 160)), "logit_bias": {77: 100.0}},
    "rewards": {"presence_penalty": -2.0, "frequency_penalty": -2.0, "max_tokens": 40},
    "end_tokens": {"end_tokens": list(range(120, 150))},
    "stop_token_ids": {"stop_token_ids": list(range(120, 150)), "ignore_eos": True},
    "min_tokens": {"min_tokens": 13, "max_tokens": 40, "stop_token_ids": list(range(120, 150))},
    "padding": {"logit_bias": {PADDING: 12.0}, "max_tokens": 40},
    "mostly padding": {"logit_bias": {PADDING: 16.0}},
    "ignore_eos": {"ignore_eos": True},
    "fewer steps": {"max_denoising_steps": 3},
    "more steps": {"max_denoising_steps": 20, "confidence_threshold": 0.05},
    "entropy_bound": {"entropy_bound": 0.5},
    "confidence": {"confidence_threshold": 1.0},
    "top_logprobs": {"top_logprobs": 4},
    "suffix": {"suffix": [40, 41, 42], "max_tokens": 5},
    "prediction": {"prediction": range(40, 70)},
    "prediction of less than a block": {"prediction": [40, 41, 42]},
    "prediction and suffix": {"prediction": range(60, 80), "suffix": [40, 41], "max_tokens": 5},
    "everything": {
        "choice": 1,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 50,
        "logit_bias": {150: 3.0, 30: 2.0},
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.2,
        "banned_tokens": [31, 32, 150],
        "min_p": 0.01,
        "min_tokens": 9,
        "end_tokens": [140, 141],
        "stop_token_ids": [142, 143],
        "max_denoising_steps": 9,
        "entropy_bound": 4.0,
        "confidence_threshold": 0.5,
        "top_logprobs": 2,
        "max_tokens": 30,
    },
    "everything with a suffix": {
        "suffix": [50, 151],
        "max_tokens": 6,
        "top_p": 0.8,
        "repetition_penalty": 1.1,
        "logit_bias": {30: 3.0},
        "min_tokens": 3,
        "top_logprobs": 0,
    },
}


UNCHANGING = {"nothing", "top_logprobs", "padding", "mostly padding"}  # or only by their bias


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_answers_are_those_of_plain_float64_arithmetic(denoiser, worker, with_ends, options):
    with_ends(FEW_ENDS, PADDING)
    for seed in range(4):
        blocks, reason = answer(worker, seed=seed, **options)
        expected, expected_reason = plain_answer(denoiser, request(seed=seed, **options))
        assert [block.tokens for block in blocks] == [block.tokens for block in expected]
        assert [block.denoising_steps for block in blocks] == [block.steps for block in expected]
        assert [block.rerolled for block in blocks] == [block.rerolled for block in expected]
        assert reason == expected_reason


QUALITIES = ("exact", "balanced", "fast")
TEMPERATURES = (0.02, 0.05, 0.08, 0.1, 0.15, 0.3)


@pytest.fixture
def unsure(denoiser, with_ends, monkeypatch):
    """Lets no block end by the checkpoint's own rule, as with a model that is never confident."""
    with_ends(FEW_ENDS, PADDING)
    sampler = dataclasses.replace(denoiser.sampler, confidence_threshold=0.0)
    monkeypatch.setattr(denoiser, "sampler", sampler)


@pytest.mark.usefixtures("unsure")
def test_answers_of_each_quality_are_those_of_plain_arithmetic_in_the_same_passes(denoiser):
    worker = Worker(denoiser, EngineConfig(max_active=3))
    options = {"max_denoising_steps": 16, "max_tokens": 30}
    several = {
        f"{quality} {temperature} {seed}": request(
            f"{quality} {temperature} {seed}",
            seed=seed,
            quality=quality,
            temperature=temperature,
            **options,
        )
        for seed in range(3)
        for temperature in TEMPERATURES
        for quality in QUALITIES
    }
    messages = [m for each in several.values() for m in worker.handle(each)] + until_idle(worker)
    reasons = {quality: set() for quality in QUALITIES}
    for name, each in several.items():
        blocks = [m for m in messages if m.id == name]
        expected, _ = plain_answer(denoiser, each)
        assert [block.tokens for block in blocks] == [block.tokens for block in expected], name
        assert [block.denoising_steps for block in blocks] == [block.steps for block in expected]
        reasons[each.sampling.quality] |= {block.stopped for block in blocks}
    assert reasons["exact"] == {"limit"}
    assert reasons["balanced"] >= {"certain", "stable"}
    assert reasons["fast"] >= {"certain", "stable"}


@pytest.mark.usefixtures("unsure")
def test_speculation_changes_no_answer_of_another_quality(denoiser):
    made, speculations = {}, 0
    for speculate in (False, True):
        worker = Worker(denoiser, EngineConfig(speculate=speculate))
        answers = [
            answer(worker, seed=seed, quality="fast", temperature=temperature, max_tokens=40)[0]
            for seed in range(5)
            for temperature in TEMPERATURES
        ]
        made[speculate] = [
            [(block.tokens, block.denoising_steps, block.stopped) for block in blocks]
            for blocks in answers
        ]
        speculations = sum(block.speculations for blocks in answers for block in blocks)
    assert made[True] == made[False]
    assert speculations > 0


@pytest.mark.usefixtures("unsure")
def test_the_quality_of_the_worker_holds_for_requests_that_name_none(denoiser, monkeypatch):
    options = {"temperature": 0.02, "max_denoising_steps": 16, "max_tokens": 30}
    named = [
        answer(Worker(denoiser, EngineConfig()), quality=quality, **options)[0]
        for quality in ("fast", "exact")
    ]
    monkeypatch.setattr(denoiser, "sampler", dataclasses.replace(denoiser.sampler, quality="fast"))
    worker = Worker(denoiser, EngineConfig())
    unnamed = answer(worker, **options)[0], answer(worker, quality="exact", **options)[0]
    steps = [[block.denoising_steps for block in blocks] for blocks in (*named, *unnamed)]
    assert steps[0] == steps[2] != steps[1] == steps[3]


@pytest.mark.parametrize("name", sorted({*OPTIONS} - UNCHANGING))
def test_each_option_changes_an_answer(worker, with_ends, name):
    with_ends(FEW_ENDS, PADDING)
    options = OPTIONS[name]
    kept = {"max_tokens", "logit_bias"} - {name}
    plain = {option: value for option, value in options.items() if option in kept}
    seeds = range(8)
    assert [tokens_of(answer(worker, seed=seed, **options)[0]) for seed in seeds] != [
        tokens_of(answer(worker, seed=seed, **plain)[0]) for seed in seeds
    ]


@pytest.mark.parametrize("speculate", [False, True])
def test_answers_do_not_depend_on_the_options_of_others_in_their_passes(
    denoiser, with_ends, speculate
):
    with_ends(FEW_ENDS, PADDING)
    config = EngineConfig(prefill_chunk=16, max_active=4, speculate=speculate)
    worker = Worker(denoiser, config)
    mixed = [
        request(name, seed=seed, prompt=PROMPT[seed:], **options)
        for seed in range(2)
        for name, options in ((f"{name} {seed}", OPTIONS[name]) for name in OPTIONS)
    ]
    alone = {each.id: list(worker.generate(each)) for each in mixed}
    messages = [message for each in mixed for message in worker.handle(each)] + until_idle(worker)
    for each in mixed:
        together = [m for m in messages if m.id == each.id]
        assert tokens_of(together) == tokens_of(alone[each.id]), each.id
        assert together[-1].finish_reason == alone[each.id][-1].finish_reason


@pytest.mark.parametrize("options", [OPTIONS["penalties"], OPTIONS["everything"]])
def test_speculation_changes_no_answer_that_has_options(denoiser, with_ends, options):
    with_ends(FEW_ENDS)
    sure = {**options, "confidence_threshold": 0.8}
    won, made = 0, {}
    for speculate in (False, True):
        worker = Worker(denoiser, EngineConfig(speculate=speculate))
        answers = [answer(worker, seed=seed, **sure)[0] for seed in range(12)]
        made[speculate] = [tokens_of(blocks) for blocks in answers]
        won = sum(block.speculation_won for blocks in answers for block in blocks)
    assert made[True] == made[False]
    assert won > 0


def test_choices_differ_and_each_one_is_reproducible(worker):
    first = [tokens_of(answer(worker, choice=choice)[0]) for choice in range(3)]
    again = [tokens_of(answer(worker, choice=choice)[0]) for choice in range(3)]
    assert first == again
    assert len({tuple(tokens) for tokens in first}) == 3


def test_a_bias_of_minus_100_bans_a_token_and_one_of_100_forces_it(worker):
    banned = set(tokens_of(answer(worker)[0]))
    assert banned.isdisjoint(tokens_of(answer(worker, logit_bias=dict.fromkeys(banned, -100))[0]))
    forced, _ = answer(worker, logit_bias={77: 100})
    assert tokens_of(forced) == [77] * 20


@pytest.mark.parametrize(
    ("penalties", "expected"),
    [
        ({}, [77, 77, 77]),
        ({"presence_penalty": 300.0}, [77, 77, 77]),  # it does not grow with the count
        ({"presence_penalty": 500.0}, [77, 78, 77]),
        ({"frequency_penalty": 30.0}, [77, 77, 78]),  # 240 a block
        ({"frequency_penalty": 60.0}, [77, 78, 77]),
        ({"presence_penalty": 200.0, "frequency_penalty": 30.0}, [77, 78, 77]),
    ],
)
def test_penalties_count_the_tokens_of_all_blocks_so_far(worker, penalties, expected):
    likely = {77: 1000.0, 78: 600.0}  # so large that hidden states do not matter
    blocks, _ = answer(worker, logit_bias=likely, **penalties)
    assert [set(block.tokens) for block in blocks] == [{token} for token in expected]


def test_a_repetition_penalty_concerns_the_tokens_of_the_prompt_and_of_finished_blocks(worker):
    reward = {"repetition_penalty": 1e-4}  # repeated tokens with a positive logit win
    assert set(tokens_of(answer(worker, **reward)[0])) <= set(PROMPT)
    first, second, _ = answer(worker, **reward, banned_tokens=PROMPT)[0]
    assert set(second.tokens) <= set(first.tokens)
    first, second, _ = answer(worker, banned_tokens=PROMPT)[0]
    assert not set(second.tokens) <= set(first.tokens)


def test_a_banned_token_never_comes_whatever_its_bias(worker):
    blocks, _ = answer(worker, logit_bias={77: 1000.0, 78: 900.0}, banned_tokens=[77])
    assert tokens_of(blocks) == [78] * 20


@pytest.mark.parametrize(
    "neutral",
    [
        {"min_p": 0.0},
        {"repetition_penalty": 1.0},
        {"banned_tokens": []},
        {"logit_bias": {7: 0.0}, "presence_penalty": 0.0},
    ],
)
def test_options_that_ask_for_nothing_cost_nothing(worker, monkeypatch, neutral):
    used = []

    def recorded(*inputs, biases, **scales):
        used.append(biases)
        return vocab_tail(*inputs, **scales, biases=biases)

    monkeypatch.setattr("engine.denoise.denoising_step.vocab_tail", recorded)
    monkeypatch.setattr("engine.denoise.denoising_step.truncated_draw", None)
    answer(worker, **neutral)
    assert used
    assert not any(used)


def test_no_answer_ends_before_min_tokens(worker, with_ends):
    with_ends({150})
    eager = {"logit_bias": {150: 100.0}}
    assert tokens_of(answer(worker, **eager)[0]) == [150]
    for least in (1, 7, 8, 13):
        blocks, reason = answer(worker, **eager, min_tokens=least)
        tokens = tokens_of(blocks)
        assert (tokens.index(150), len(tokens), reason) == (least, least + 1, "stop")


@pytest.mark.parametrize("field", ["end_tokens", "stop_token_ids"])
def test_no_answer_ends_with_an_end_token_of_the_request_before_min_tokens(worker, field):
    eager = {"logit_bias": {150: 100.0}, field: [150]}
    for least in (0, 7, 8, 13):
        blocks, reason = answer(worker, **eager, min_tokens=least)
        tokens = tokens_of(blocks)
        assert (tokens.index(150), len(tokens), reason) == (least, least + 1, "stop")


def test_no_answer_ends_with_padding_before_min_tokens(worker, with_ends):
    with_ends((), PADDING)
    eager = {"logit_bias": {PADDING: 100.0}}
    for least in (0, 7, 8, 13):
        blocks, reason = answer(worker, **eager, min_tokens=least)
        assert (len(tokens_of(blocks)), reason) == (least, "stop")
        assert len(blocks) == least // CANVAS + 1  # the last one may be empty


def test_ignored_end_tokens_are_ordinary_tokens(worker, with_ends):
    with_ends({150}, PADDING)
    for token in (150, 140, PADDING):
        options = {"logit_bias": {token: 100.0}, "end_tokens": [140]}
        blocks, reason = answer(worker, **options, ignore_eos=True)
        assert (tokens_of(blocks), reason) == ([token] * 20, "length")
        assert not blocks[0].rerolled


def test_stop_token_ids_end_an_answer_that_ignores_other_end_tokens(worker, with_ends):
    with_ends({150}, PADDING)
    options = {"logit_bias": {140: 100.0}, "stop_token_ids": [140], "min_tokens": 3}
    blocks, reason = answer(worker, **options, ignore_eos=True)
    assert (tokens_of(blocks).index(140), reason) == (3, "stop")


@pytest.mark.parametrize("early_end", [False, True])
def test_ignored_end_tokens_do_not_end_a_canvas_early(denoiser, monkeypatch, early_end):
    sampler = dataclasses.replace(
        denoiser.sampler, end_tokens=frozenset(range(100, 160)), early_end=early_end
    )
    monkeypatch.setattr(denoiser, "sampler", sampler)
    ignoring = answer(Worker(denoiser, EngineConfig()), ignore_eos=True, seed=4)[0]
    monkeypatch.setattr(
        denoiser,
        "sampler",
        dataclasses.replace(sampler, end_tokens=frozenset(), padding=None, early_end=False),
    )
    assert [b.denoising_steps for b in ignoring] == [
        b.denoising_steps for b in answer(Worker(denoiser, EngineConfig()), seed=4)[0]
    ]


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_denoising_steps": 3},
        {"entropy_bound": 0.3},
        {"confidence_threshold": 1.2},
        {"max_denoising_steps": 11, "entropy_bound": 2.5, "confidence_threshold": 0.1},
    ],
)
def test_numbers_of_a_request_work_like_those_of_a_checkpoint(worker, denoiser, numbers):
    own = [answer(worker, seed=seed, **numbers) for seed in range(3)]
    for seed in range(3):  # in the same passes as requests with other numbers
        worker.handle(request(f"own {seed}", seed=seed, **numbers))
        worker.handle(request(f"other {seed}", seed=seed))
    messages = until_idle(worker)
    sampler = denoiser.sampler
    denoiser.sampler = dataclasses.replace(sampler, **numbers)
    try:
        expected = [answer(worker, seed=seed) for seed in range(3)]
    finally:
        denoiser.sampler = sampler
    for seed in range(3):
        steps = [block.denoising_steps for block in expected[seed][0]]
        shared = [m for m in messages if m.id == f"own {seed}" and isinstance(m, Block)]
        for blocks in (own[seed][0], shared):
            assert tokens_of(blocks) == tokens_of(expected[seed][0])
            assert [block.denoising_steps for block in blocks] == steps


@pytest.mark.parametrize("options", [{}, {"logit_bias": {7: 9.0}, "temperature": 1.5}])
def test_log_probabilities_are_the_log_softmax_of_the_raw_logits(denoiser, worker, options):
    blocks, _ = answer(worker, top_logprobs=5, **options)
    expected, _ = plain_answer(denoiser, request(**options))
    for block, plain in zip(blocks, expected, strict=True):
        assert [each.token for each in block.logprobs] == block.tokens
        chosen = plain.logprobs.gather(1, torch.tensor(block.tokens)[:, None]).squeeze(1)
        assert [each.logprob for each in block.logprobs] == pytest.approx(chosen.tolist(), abs=1e-4)
        best = plain.logprobs.topk(5)
        for each, tokens, values in zip(block.logprobs, best.indices, best.values, strict=True):
            assert [token for token, _ in each.top] == tokens.tolist()
            assert [value for _, value in each.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_log_probabilities_are_optional_and_so_are_those_of_other_tokens(worker):
    assert all(block.logprobs is None for block in answer(worker)[0])
    assert all(each.top == [] for b in answer(worker, top_logprobs=0)[0] for each in b.logprobs)


def test_log_probabilities_change_no_token(worker):
    assert tokens_of(answer(worker, top_logprobs=20)[0]) == tokens_of(answer(worker)[0])


def test_a_suffix_follows_the_free_positions_in_every_pass(worker, denoiser, monkeypatch):
    suffix, canvases, conditionings, run = [40, 41, 42], [], [], denoiser.model.run

    def recorded(segments, soft):
        canvases.extend(s.tokens.tolist() for s in segments if not s.causal)
        conditionings.append(soft)
        return run(segments, soft)

    monkeypatch.setattr(denoiser.model, "run", recorded)
    biases = {77: 12.0, 78: 12.0, 79: 12.0}
    blocks, reason = answer(worker, suffix=suffix, max_tokens=5, logit_bias=biases)
    assert (len(blocks), len(blocks[0].tokens), reason) == (1, 5, "length")
    assert all(len(canvas) == 8 and canvas[5:] == suffix for canvas in canvases)
    assert len({tuple(canvas[:5]) for canvas in canvases}) > 1
    later = [soft for soft in conditionings if soft is not None]
    assert len(later) == len(canvases) - 1
    expected = denoiser.model.embedding[suffix] * denoiser.model.embedding_scale
    for soft in later:
        assert torch.equal(soft[5:], expected)


def test_a_suffix_is_certain(worker, monkeypatch):
    """So only the free positions keep the canvas open, and they share the whole entropy bound."""
    biases = {77: 100.0, 78: 100.0, 79: 100.0}  # the model is uncertain between these
    entropies = []
    monkeypatch.setattr(
        "engine.denoise.denoising_step.accept",
        lambda entropy, configs: entropies.append(entropy) or accept(entropy, configs),
    )
    answer(worker, suffix=[40, 41, 42], max_tokens=5, logit_bias=biases)
    assert entropies
    for entropy in entropies:
        assert (entropy[0, :5] > 0.01).all()
        assert (entropy[0, 5:] == 0).all()


def test_an_infilled_block_is_cut_at_an_end_token_and_may_be_empty(worker, with_ends):
    with_ends({150})
    blocks, reason = answer(worker, suffix=[40], max_tokens=6, logit_bias={150: 100.0})
    assert ([block.tokens for block in blocks], reason) == ([[150]], "stop")
    assert not blocks[0].rerolled


def test_an_infilled_block_is_cut_where_padding_fills_it(worker, with_ends):
    with_ends((), PADDING)
    options = {"suffix": [40], "max_tokens": 6, "logit_bias": {PADDING: 100.0}}
    blocks, reason = answer(worker, **options)
    assert ([block.tokens for block in blocks], reason) == ([[]], "stop")
    assert not blocks[0].rerolled
    blocks, reason = answer(worker, **options, min_tokens=2)
    assert (len(tokens_of(blocks)), reason) == (2, "stop")


def test_an_empty_first_block_is_made_again_once(worker, with_ends):
    with_ends(range(VOCAB))  # every block is empty
    for _ in range(2):
        (block,), reason = answer(worker, max_denoising_steps=3, confidence_threshold=0.0)
        assert (block.rerolled, block.denoising_steps, len(block.tokens)) == (True, 6, 1)
        assert reason == "stop"


def test_a_block_made_again_has_other_noise_and_is_reproducible(worker, with_ends):
    first = {seed: tokens_of(answer(worker, seed=seed)[0])[0] for seed in range(12)}
    rerolled = 0
    for seed, token in first.items():
        with_ends({token})
        blocks, _ = answer(worker, seed=seed)
        assert blocks[0].rerolled
        assert [b.tokens for b in blocks] == [b.tokens for b in answer(worker, seed=seed)[0]]
        rerolled += blocks[0].tokens[0] != token
    assert rerolled > 0  # some now begin with another token


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("suffix", {"suffix": [40, 41], "max_tokens": 7}),
        ("suffix", {"suffix": [40, 41], "max_tokens": 4, "prompt": [7] * 123}),
        ("suffix", {"suffix": [VOCAB], "max_tokens": 4}),
        ("stop_token_ids", {"stop_token_ids": [7, VOCAB]}),
        ("stop_token_ids", {"stop_token_ids": [-1]}),
        ("logit_bias", {"logit_bias": {VOCAB: 1.0}}),
        ("logit_bias", {"logit_bias": {-1: 1.0}}),
        ("logit_bias", {"logit_bias": {7: float("nan")}}),
        ("presence_penalty", {"presence_penalty": float("inf")}),
        ("max_denoising_steps", {"max_denoising_steps": 0}),
        ("top_p", {"top_p": 0.0}),
        ("top_k", {"top_k": -1}),
        ("min_p", {"min_p": -0.1}),
        ("min_p", {"min_p": 1.1}),
        ("min_p", {"min_p": float("nan")}),
        ("repetition_penalty", {"repetition_penalty": 0.0}),
        ("repetition_penalty", {"repetition_penalty": 2e4}),
        ("banned_tokens", {"banned_tokens": [VOCAB]}),
        ("top_logprobs", {"top_logprobs": -1}),
        ("temperature", {"temperature": float("nan")}),
        ("top_k", {"top_k": 2**31}),
        ("min_tokens", {"min_tokens": -1}),
        ("min_tokens", {"min_tokens": 2**31}),
        ("end_tokens", {"end_tokens": [-1]}),
        ("end_tokens", {"end_tokens": [2**63]}),
        ("max_denoising_steps", {"max_denoising_steps": 1025}),
        ("entropy_bound", {"entropy_bound": -0.1}),
        ("entropy_bound", {"entropy_bound": 1e39}),
        ("entropy_bound", {"entropy_bound": float("nan")}),
        ("confidence_threshold", {"confidence_threshold": -0.1}),
        ("confidence_threshold", {"confidence_threshold": 3e38}),
        ("confidence_threshold", {"confidence_threshold": float("inf")}),
        ("top_logprobs", {"top_logprobs": 2**31}),
    ],
)
def test_an_impossible_option_fails_and_is_named(worker, name, options):
    (failed,) = worker.handle(request(**options))
    assert isinstance(failed, Failed)
    assert name in failed.message
    assert worker.idle


ON_A_GPU = (
    "nothing",
    "top_k and top_p and min_p",
    "logit_bias",
    "repetition reward",
    "min_tokens",
    "everything",
    "everything with a suffix",
)


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of the interpreter's numpy
def test_answers_with_the_kernels_are_the_same_alone_and_together(
    worker, denoiser, with_ends, monkeypatch
):
    with_ends(FEW_ENDS, PADDING)
    requests = [request(name, **OPTIONS[name]) for name in ON_A_GPU]
    expected = {each.id: tokens_of(worker.generate(each)) for each in requests}
    monkeypatch.setattr(denoiser._step, "_kernels", True)
    monkeypatch.setattr(denoiser._step, "_draws_ahead", True)
    monkeypatch.setattr("engine.denoise.denoising_step.vocab_tail", None)
    monkeypatch.setattr("engine.denoise.denoising_step.draw", None)
    monkeypatch.setattr("engine.denoise.denoising_step.truncated_draw", None)
    together = Worker(denoiser, EngineConfig(prefill_chunk=16, max_active=4))
    messages = [m for each in requests for m in together.handle(each)] + until_idle(together)
    made = {each.id: tokens_of(m for m in messages if m.id == each.id) for each in requests}
    assert made == expected


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 2**64 - 1, "choice": 2**31 - 1},
        {"temperature": 1e4},
        {"temperature": 5e-324},
        {"top_p": 5e-324},
        {"top_k": 2**31 - 1},
        {"min_p": 5e-324},
        {"min_p": 1.0},
        {"logit_bias": {7: 1e4, 8: -1e4}},
        {"presence_penalty": 1e4, "frequency_penalty": 1e4},
        {"presence_penalty": -1e4, "frequency_penalty": -1e4},
        {"repetition_penalty": 1e4},
        {"repetition_penalty": 1e-4},
        {"end_tokens": [2**31 - 1]},
        {"min_tokens": 2**31 - 1},
        {"max_denoising_steps": 1024, "max_tokens": 1},
        {"entropy_bound": 1e6},
        {"entropy_bound": 5e-324},
        {"confidence_threshold": 1e6},
        {"confidence_threshold": 5e-324},
        {"top_logprobs": 2**31 - 1},
    ],
    ids=str,
)
def test_an_option_at_its_bound_shares_a_pass_with_other_requests(worker, options):
    expected = plain_tokens(worker._denoiser)
    refused = [*worker.handle(request("bound", **options)), *worker.handle(request("plain"))]
    assert refused == []
    messages = until_idle(worker)
    assert not any(isinstance(message, Failed) for message in messages)
    blocks = [m for m in messages if isinstance(m, Block)]
    assert tokens_of(b for b in blocks if b.id == "plain") == expected
    assert any(b.id == "bound" for b in blocks)
