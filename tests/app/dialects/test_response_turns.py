"""Response items become the chat template's messages."""

import pytest

from app.dialects.item_turns import conversation
from app.dialects.items import (
    FunctionCallItem,
    FunctionCallOutputItem,
    MessageItem,
    ReasoningItem,
    ReasoningText,
    SummaryText,
)
from app.errors import BadRequest
from tests.app.shown import shown_messages


def template_messages(earlier, new):
    return shown_messages(conversation(earlier, new))


def message(text, role="assistant"):
    return MessageItem(role=role, content=text)


def thought(text):
    return ReasoningItem(
        type="reasoning", content=[ReasoningText(type="reasoning_text", text=text)]
    )


def call(id):
    return FunctionCallItem(type="function_call", call_id=id, name="f", arguments='{"a": 1}')


def result(id, output="ok"):
    return FunctionCallOutputItem(type="function_call_output", call_id=id, output=output)


def called(id):
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def turn(content="", thought=None, **more):
    if thought is not None:
        more |= {"reasoning_content": thought, "reasoning": thought}
    return {"role": "assistant", "content": content, **more}


def answered(id, output="ok"):
    return {"role": "tool", "tool_call_id": id, "name": "f", "content": output}


@pytest.mark.parametrize(
    ("items", "turns"),
    [
        ([message("a"), message("b")], [turn("a\nb")]),
        ([thought("t"), message("a")], [turn("a", thought="t")]),
        ([thought("t"), thought("u"), message("a")], [turn("a", thought="t\nu")]),
        ([message("a"), thought("t"), message("b")], [turn("a\nb", thought="t")]),
        ([message("a"), call("1"), call("2")], [turn("a", tool_calls=[called("1"), called("2")])]),
        (
            [call("1"), message("a"), result("1")],
            [turn("a", tool_calls=[called("1")]), answered("1")],
        ),
        (
            [call("1"), result("1"), call("2"), result("2"), message("a")],
            [
                turn(tool_calls=[called("1")]),
                answered("1"),
                turn(tool_calls=[called("2")]),
                answered("2"),
                turn("a"),
            ],
        ),
        ([thought("t"), message("hi", "user")], [{"role": "user", "content": "hi"}]),
        (
            [message("s", "system"), message("d", "developer")],
            [{"role": "system", "content": "s"}, {"role": "system", "content": "d"}],
        ),
    ],
)
def test_items_of_the_assistant_in_a_row_are_one_turn(items, turns):
    for cut in range(len(items) + 1):
        assert template_messages(items[:cut], items[cut:]) == turns


def test_the_summary_of_a_thought_replaces_a_missing_text():
    item = ReasoningItem(type="reasoning", summary=[SummaryText(type="summary_text", text="s")])
    assert template_messages([], [item, message("a")]) == [turn("a", thought="s")]


def test_an_error_names_the_index_of_the_result_in_the_request():
    with pytest.raises(BadRequest) as error:
        template_messages([message("hi", "user"), message("a")], [message("b"), result("1")])
    assert error.value.param == "input.1.call_id"
