"""Questions become canvases and prompts for the worker."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.decision.order import orders
from app.decision.questions import Option, Question
from app.decision.request import (
    DecisionRequest,
    canvases,
    ending_with_user,
    prepare,
    with_questions,
)
from app.errors import BadRequest, ContextLengthExceeded
from app.prompting.conversation import TextPart, ToolCall, ToolResult, Turn
from app.prompting.prompt import PromptBuilder
from engine.config import DEMO_MODEL_PATH
from engine.messages import Ready

LIMITS = Ready("cpu", "float32", 2048, 32, 1280, "", read_tokens=961)


@pytest.fixture(scope="module")
def prompts():
    return PromptBuilder(str(DEMO_MODEL_PATH))


def question(text="Is it?", kind="predicate", options=("yes", "no"), number=0, described=()):
    described = [*described, *[None] * len(options)]
    return Question(
        kind,
        [TextPart(text)],
        [Option(each, why) for each, why in zip(options, described, strict=False)],
        f"questions.{number}",
        f"questions.{number}.choices",
    )


STATE = [Turn("user", "The sky is blue.")]


def request(*questions, conversation=STATE, **options):
    return DecisionRequest(list(conversation), list(questions), "input", **options)


def prepared(asked, prompts, limits=LIMITS):
    made = canvases(asked, prompts, limits)
    return prepare(asked, made, {-1: []}, prompts, limits)


def shown(asked, prompts, limits=LIMITS):
    """Returns the texts of each read's whole prompt and of its canvas."""
    return [
        tuple(
            prompts.vocabulary.decode(tokens)
            for tokens in ([*each.request.prompt, *read.prompt], read.canvas)
        )
        for each in prepared(asked, prompts, limits)
        for read in each.request.decision.reads
    ]


def test_the_model_is_shown_numbered_questions_with_their_labels(prompts):
    choice = question("Which?", "choice", ("Rome", "Paris"))
    levels = question("How many?", "score", ("0", "1", "2", "3"))
    named = question("How?", "score", ("low", "high"))
    described = question("Who?", "choice", ("a", "b"), described=("the first",))
    ((prompt, canvas),) = shown(request(question(), choice, levels, named), prompts)
    yes, no = prompts.labels.answers.texts
    assert prompt == (
        "<bos><|turn>user\n"
        "The sky is blue.\n"
        f"1: Is it? {yes} or {no}\n"
        "2: Which? A) Rome B) Paris\n"
        "3: How many? 0 to 3\n"
        "4: How? 0) low 1) high<turn|>\n"
        "<|turn>model\n<|channel>thought\n<channel|>"
    )
    assert canvas == f"1: {yes}\n2: A\n3: 0\n4: 0<turn|>"
    ((prompt, _),) = shown(request(described), prompts)
    assert "1: Who? \nA) a: the first\nB) b<turn|>" in prompt


def test_questions_follow_the_last_turn_of_any_side(prompts):
    call = Turn("assistant", "", calls=(ToolCall("a", "f", {}),))
    for before in (
        [],
        [Turn("user", "")],
        [Turn("user", "x"), Turn("assistant", "y")],
        [Turn("user", "x"), call, ToolResult("a", "z", "input.2")],
    ):
        asked = request(question(), question("Was it?"), conversation=before, joint=False)
        for text, (prompt, _) in zip(("Is it?", "Was it?"), shown(asked, prompts), strict=True):
            assert prompt.count("1: ") == 1
            assert prompt.count("<|turn>user") == len(
                [each for each in ending_with_user(before) if getattr(each, "role", "") == "user"]
            )
            assert f"1: {text} " in prompt.rpartition("<|turn>user\n")[2]


def test_each_canvas_has_the_prompt_that_the_template_makes(prompts):
    questions = [question(f"Is it {i} or\n<turn|>?") for i in range(9)]
    asked = request(*questions, joint=False)
    made = canvases(asked, prompts, LIMITS)
    (one,) = prepare(asked, made, {-1: []}, prompts, LIMITS)
    for read, each in zip(one.request.decision.reads, made, strict=True):
        whole = prompts.chat(with_questions(asked.conversation, each.asked))
        assert [*one.request.prompt, *read.prompt] == whole.tokens


def test_a_question_has_the_same_prompt_alone_as_behind_others_however_it_ends(prompts):
    asked = question("Which?", "choice", ("a", "b "))
    (alone,) = shown(request(asked), prompts)
    assert shown(request(question(), asked, question(), joint=False), prompts)[1] == alone


def test_the_shared_prompt_ends_where_the_questions_begin(prompts):
    (one,) = prepared(request(question()), prompts)
    assert prompts.vocabulary.decode(one.request.prompt).endswith("The sky is blue.")
    (other,) = prepared(request(question("Another?")), prompts)
    assert other.request.prompt == one.request.prompt


def test_more_questions_than_a_canvas_holds_have_several(prompts):
    asked = request(*(question(f"Is it {i}?", number=i) for i in range(20)))
    made = canvases(asked, prompts, LIMITS)
    assert [each.index for canvas in made for each in canvas.asked] == list(range(20))
    assert 1 < len(made) < 6
    for canvas in made:
        assert len(canvas.canvas) <= LIMITS.canvas_length
        labels = [canvas.canvas[slot.position] for slot in canvas.slots]
        assert labels == [slot.labels[0] for slot in canvas.slots]
    assert len(canvases(request(question()), prompts, LIMITS)) == 1


def test_questions_too_long_for_one_read_have_requests_of_their_own(prompts):
    limits = Ready("cpu", "float32", 2048, 32, 1280, "", read_tokens=40)
    long = question("Is it " + "very " * 100 + "blue?")
    asked = request(question(), long, question("Was it?"))
    made = prepared(asked, prompts, limits)
    assert [len(each.canvases) for each in made] == [2, 1]
    for each in made:
        for read in each.request.decision.reads:
            assert 1 <= len(read.prompt) <= limits.read_tokens
        assert each.request.max_tokens == max(
            len(read.prompt) for read in each.request.decision.reads
        )


def test_a_prompt_that_exceeds_the_context_is_refused(prompts):
    with pytest.raises(ContextLengthExceeded) as caught:
        prepared(request(question(), conversation=[Turn("user", "red " * 2040)]), prompts)
    assert caught.value.param == "input"


@pytest.mark.parametrize("kind", ["choice", "score"])
def test_too_many_options_for_the_vocabulary_are_refused_by_name(prompts, kind):
    many = question("Which?", kind, [f"v{i}" for i in range(255)], number=3)
    with pytest.raises(BadRequest, match=r"questions\.3\.choices: .* 255") as caught:
        prepared(request(many), prompts)
    assert (caught.value.param, caught.value.code) == ("questions.3.choices", "too_few_labels")


def test_more_than_ten_levels_have_letters(prompts):
    ((prompt, canvas),) = shown(
        request(question("How?", "score", [f"l{i}" for i in range(11)])), prompts
    )
    assert f"{prompts.labels.letters.texts[10]}) l10" in prompt
    assert canvas.startswith("1: A")


def test_levels_that_are_numbers_are_shown_with_their_letters(prompts):
    asked = question("How many?", "score", [str(i) for i in range(11)])
    ((prompt, canvas),) = shown(request(asked), prompts)
    assert "1: How many? A) 0 B) 1 " in prompt
    assert canvas.startswith("1: A")


def test_permuted_choices_are_shown_in_other_orders(prompts):
    choice = question("Which?", "choice", ("x", "y", "z"))
    asked = request(question(), choice, permute=True)
    texts = [prompt for prompt, _ in shown(asked, prompts)]
    assert [text.partition("Which? ")[2].partition("<")[0] for text in texts] == [
        "A) x B) y C) z",
        "A) y B) z C) x",
        "A) z B) x C) y",
    ]
    alone = canvases(request(question(), choice, permute=True, joint=False), prompts, LIMITS)
    assert [each.asked[0].index for each in alone] == [0, 1, 1, 1]


@given(st.integers(2, 255), st.integers(1, 8))
def test_each_order_has_every_option_once(count, number):
    made = orders(count, number)
    assert len(made) == number
    assert all(sorted(order) == list(range(count)) for order in made)
    assert len(set(made)) == min(count, number)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.booleans())
def test_every_question_is_asked_once_whatever_its_length(lengths, joint):
    prompts = PROMPTS
    asked = request(
        *(question("very " * length + "blue?", number=i) for i, length in enumerate(lengths)),
        joint=joint,
    )
    made = prepared(asked, prompts)
    found = [each.index for one in made for canvas in one.canvases for each in canvas.asked]
    assert sorted(found) == list(range(len(lengths)))


PROMPTS = PromptBuilder(str(DEMO_MODEL_PATH))
