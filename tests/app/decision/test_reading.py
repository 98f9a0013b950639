"""What canvases read becomes answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.decision.order import orders
from app.decision.questions import Option, Question
from app.decision.reading import Answer, combined
from app.prompting.conversation import TextPart
from engine.messages import SlotResult


def question(count):
    options = [Option(str(i)) for i in range(count)]
    return Question("choice", [TextPart("q")], options, "questions.0", "questions.0.choices")


def answer(*probabilities):
    return Answer(question(len(probabilities)), list(probabilities), 1.0, True)


def test_an_answer_is_the_mean_of_its_samples():
    first, second = SlotResult([0.2, 0.8], 0.5, True), SlotResult([0.6, 0.4], 0.7, False)
    mean = combined(question(2), [((0, 1), first), ((0, 1), second)])
    assert mean.probabilities == pytest.approx([0.4, 0.6])
    assert mean.label_mass == pytest.approx(0.6)
    assert not mean.argmax_is_label


def test_each_order_counts_once_and_its_options_go_back_to_their_places():
    results = [
        ((0, 1, 2), SlotResult([0.6, 0.3, 0.1], 1, True)),
        ((1, 2, 0), SlotResult([0.3, 0.1, 0.6], 1, True)),
        ((1, 2, 0), SlotResult([0.1, 0.3, 0.6], 1, True)),
    ]
    assert combined(question(3), results).probabilities == pytest.approx([0.6, 0.25, 0.15])


@given(st.data())
def test_a_position_bias_is_averaged_out(data):
    count = data.draw(st.integers(2, 8))
    bias = data.draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    shares = [each / sum(bias) for each in bias]
    results = [(order, SlotResult(shares, 1, True)) for order in orders(count, count)]
    mean = combined(question(count), results)
    assert mean.probabilities == pytest.approx([1 / count] * count)
    assert sum(mean.probabilities) == pytest.approx(1)
    assert mean.confidence == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("probabilities", "best", "score", "confidence"),
    [
        ((1.0, 0.0), 0, 0, 1),
        ((0.5, 0.5), 0, 0.5, 0),
        ((0.25, 0.75), 1, 0.75, 0.5),
        ((0.0, 0.2, 0.8), 2, 1.8, 0.7),
    ],
)
def test_the_best_option_the_score_and_the_confidence(probabilities, best, score, confidence):
    each = answer(*probabilities)
    assert each.best == best
    assert each.score == pytest.approx(score)
    assert each.confidence == pytest.approx(confidence)
