"""Predicted answers: the place that an answer has reached in them, and the canvases they start."""

import random

import pytest

from engine.config import EngineConfig
from engine.denoise.prediction import PredictedAnswer
from engine.loading import build_denoiser
from engine.messages import Block, Failed, GenerateRequest, Prediction, Sampling
from engine.worker import Worker

WORDS = random.Random(0).choices(range(1000), k=300)
OTHERS = random.Random(1).choices(range(1000, 2000), k=300)


@pytest.mark.parametrize("length", range(0, 301, 7))
def test_an_answer_as_predicted_is_followed_by_all_that_is_left(length):
    predicted = PredictedAnswer(WORDS)
    assert predicted.following(WORDS[:length]) == WORDS[length:]
    assert predicted.agreed(WORDS[:length]) == length


@pytest.mark.parametrize("behind", [6, 20, 64])
@pytest.mark.parametrize("changed", [1, 3, 30])
@pytest.mark.parametrize("at", [0, 1, 100, 200])
def test_the_place_is_found_again_behind_every_kind_of_change(at, changed, behind):
    middle = at + changed
    answers = {
        "inserted": WORDS[:at] + OTHERS[:changed] + WORDS[at : at + behind],
        "removed": WORDS[:at] + WORDS[middle : middle + behind],
        "replaced": WORDS[:at] + OTHERS[:changed] + WORDS[middle : middle + behind],
    }
    places = {"inserted": at + behind, "removed": middle + behind, "replaced": middle + behind}
    for change, answer in answers.items():
        tokens = PredictedAnswer(WORDS).following(answer)
        # Behind many new tokens, a few known ones do not show yet that the answer is back.
        assert tokens == WORDS[places[change] :] or (tokens == [] and changed > behind), change


def test_text_that_was_moved_is_followed_by_what_follows_it():
    answer = WORDS[200:250] + WORDS[:50]
    assert PredictedAnswer(WORDS).following(answer) == WORDS[50:]


def test_a_repeated_text_is_followed_in_order():
    lines = [token for number in range(20) for token in (*range(2000, 2010), number)]
    for length in range(0, len(lines), 5):
        assert PredictedAnswer(lines).following(lines[:length]) == lines[length:]


@pytest.mark.parametrize("length", [1, 8, 100])
def test_nothing_follows_an_answer_that_is_not_in_the_prediction(length):
    predicted = PredictedAnswer(WORDS)
    assert predicted.following(OTHERS[:length]) == []
    assert predicted.agreed(OTHERS[:length]) == 0


def test_a_replaced_last_token_is_taken_for_one_of_the_prediction():
    assert PredictedAnswer(WORDS).following([*WORDS[:50], OTHERS[0]]) == WORDS[51:]


def test_the_place_does_not_depend_on_where_blocks_begin():
    answer = WORDS[:40] + OTHERS[:5] + WORDS[50:90] + WORDS[10:30]
    whole = PredictedAnswer(WORDS)
    expected = whole.following(answer), whole.agreed(answer)
    for cut in range(len(answer)):
        pieces = PredictedAnswer(WORDS)
        pieces.following(answer[:cut])
        assert (pieces.following(answer), pieces.agreed(answer)) == expected


def test_what_is_ahead_may_turn_out_otherwise():
    predicted = PredictedAnswer(WORDS)
    assert predicted.following(WORDS[:8], WORDS[8:16]) == WORDS[16:]
    assert predicted.following(WORDS[:8], OTHERS[:16]) == []
    assert predicted.following([*WORDS[:8], *WORDS[20:28]]) == WORDS[28:]


def test_a_prediction_begins_behind_the_last_token_that_ends_a_thought():
    predicted = PredictedAnswer(WORDS, behind=5000)
    assert predicted.following([]) == []
    assert predicted.following(WORDS[:20]) == []
    assert predicted.agreed(WORDS[:20]) == 0
    answer = [*OTHERS[:20], 5000, *WORDS[:10]]
    assert predicted.following(answer) == WORDS[10:]
    assert predicted.agreed(answer) == 10
    assert predicted.following(answer, [*OTHERS[:3], 5000]) == WORDS
    assert predicted.following([*answer, 5000]) == WORDS


@pytest.fixture(scope="module")
def denoiser():
    return build_denoiser(EngineConfig(device="cpu", threads=1, max_context=512))


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(EngineConfig().model_path, trust_remote_code=False)


@pytest.fixture
def blocks_of(denoiser, tokenizer):
    """Returns a function that answers the same question with this prediction."""

    def answer(prediction=None, *, max_tokens=100, **request):
        messages = [{"role": "user", "content": "Count to 20"}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        tokens = tokenizer.encode(prompt, add_special_tokens=False)
        made = GenerateRequest(
            "a",
            tokens,
            max_tokens,
            request.pop("sampling", Sampling(seed=3)),
            prediction=None if prediction is None else Prediction(prediction),
            **request,
        )
        messages = list(Worker(denoiser, EngineConfig()).generate(made))
        assert all(isinstance(message, Block) for message in messages), messages
        return messages

    return answer


def tokens_of(blocks):
    return [token for block in blocks for token in block.tokens]


def steps_of(blocks):
    return [block.denoising_steps for block in blocks]


def test_a_block_that_is_predicted_to_its_end_takes_one_step(blocks_of, denoiser):
    plain = blocks_of()
    text = tokens_of(plain)[:-1]
    predicted = blocks_of(text)
    assert tokens_of(predicted) == tokens_of(plain)
    canvas = denoiser.model.dimensions.canvas_length
    assert steps_of(predicted)[: len(text) // canvas] == [1] * (len(text) // canvas)
    assert len(text) >= canvas
    assert sum(steps_of(predicted)) < sum(steps_of(plain))
    assert predicted[-1].predicted_tokens == len(text)
    assert plain[-1].predicted_tokens == 0


def test_predictions_cut_at_every_place_end_in_the_same_answer(blocks_of):
    expected = tokens_of(blocks_of())
    for length in range(1, len(expected)):
        blocks = blocks_of(expected[:length])
        assert tokens_of(blocks) == expected, length
        assert blocks[-1].predicted_tokens == length


@pytest.mark.parametrize("max_tokens", [1, 5, 35])
def test_a_prediction_may_be_longer_than_the_answer(blocks_of, max_tokens):
    expected = tokens_of(blocks_of())
    blocks = blocks_of(expected[:-1] + list(range(120, 200)), max_tokens=max_tokens)
    assert tokens_of(blocks) == expected[:max_tokens]
    assert blocks[-1].finish_reason == "length"
    assert blocks[-1].predicted_tokens == max_tokens


def test_a_wrong_token_of_a_prediction_is_not_copied(blocks_of, tokenizer):
    expected = tokens_of(blocks_of())
    wrong = tokenizer.encode("banana", add_special_tokens=False)
    for at in (0, 10, 25):
        blocks = blocks_of([*expected[:at], *wrong, *expected[at + 1 : -1]])
        assert tokens_of(blocks) == expected, at
        assert blocks[-1].predicted_tokens == len(expected) - 2


def test_nonsense_is_answered_in_full(blocks_of, denoiser):
    for seed in range(4):
        nonsense = random.Random(seed).choices(range(denoiser.vocab_size), k=150)
        blocks = blocks_of(nonsense)
        assert blocks[-1].finish_reason in ("stop", "length")
        assert all(0 <= token < denoiser.vocab_size for token in tokens_of(blocks))


def test_an_answer_that_another_worker_continues_keeps_its_prediction(blocks_of):
    expected = tokens_of(blocks_of())
    whole = blocks_of(expected[:-1])
    first = whole[0]
    later = blocks_of(expected[:-1], delivered=first.tokens, delivered_blocks=1)
    assert [(b.tokens, b.denoising_steps, b.predicted_tokens) for b in later] == [
        (b.tokens, b.denoising_steps, b.predicted_tokens) for b in whole[1:]
    ]


def test_an_empty_first_block_is_made_again_without_the_prediction(blocks_of, denoiser):
    end = min(denoiser.sampler.end_tokens)
    pushed = Sampling(seed=3, logit_bias={end: 100.0})
    again = blocks_of([end] * 40, sampling=pushed)[0]
    plain = blocks_of(sampling=pushed)[0]
    assert again.rerolled
    assert plain.rerolled
    assert again.denoising_steps == plain.denoising_steps - 1  # only its first attempt is shorter


@pytest.mark.parametrize("tokens", [[], [-1], [10**6], [5] * 513])
def test_a_prediction_that_the_model_cannot_have_is_refused(denoiser, tokens):
    made = GenerateRequest("a", [5], 5, Sampling(seed=0), prediction=Prediction(tokens))
    (failed,) = Worker(denoiser, EngineConfig()).generate(made)
    assert isinstance(failed, Failed)
    assert "prediction" in failed.message
