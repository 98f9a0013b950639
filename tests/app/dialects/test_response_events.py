"""An answer's events become output items of the Responses API, and its stream's events."""

from app.chat_format.events import TextDelta, ThinkingDelta, ToolCallDelta
from app.dialects.responses.events import OutputItems
from engine.messages import TokenLogprobs


def output(*, summary=False):
    """Returns items that show each log-probability as its token id."""
    return OutputItems(
        lambda logprobs: [each.token for each in logprobs], summary=summary, namespaces={}
    )


def types(events):
    return [event["type"].removeprefix("response.") for event in events]


def test_neighbours_of_one_kind_are_one_item_and_another_kind_begins_a_new_item():
    items = output()
    for event in (
        ThinkingDelta("a"),
        ThinkingDelta("b"),
        TextDelta("c"),
        ThinkingDelta("d"),
        TextDelta("e"),
        TextDelta("f"),
    ):
        items.add(event, [])
    items.end()
    assert [item["content"][0]["text"] for item in items.items] == ["ab", "c", "d", "ef"]
    assert {item["status"] for item in items.items} == {"completed"}
    assert len({item["id"] for item in items.items}) == 4


def test_each_call_is_an_item_of_its_own_however_its_arguments_are_cut():
    items = output()
    events = items.add(ToolCallDelta(0, "f", '{"a":'), [])
    events += items.add(ToolCallDelta(0, None, "1}"), [])
    events += items.add(ToolCallDelta(1, "f", ""), [])
    events += items.add(ToolCallDelta(1, None, "{}"), [])
    events += items.end()
    one = ["output_item.added", *["function_call_arguments.delta"] * 2]
    done = ["function_call_arguments.done", "output_item.done"]
    assert types(events) == [*one, *done, *one[:-1], *done]
    assert [event["output_index"] for event in events] == [0] * 5 + [1] * 4
    assert [item["arguments"] for item in items.items] == ['{"a":1}', "{}"]
    assert len({item["call_id"] for item in items.items}) == 2


def test_an_event_that_was_sent_does_not_change_later():
    items = output(summary=True)
    first = items.add(ThinkingDelta("a"), [])
    items.add(TextDelta("b"), [])
    items.end()
    assert first[0]["item"] == {
        "id": items.items[0]["id"],
        "type": "reasoning",
        "status": "in_progress",
        "summary": [],
        "content": [],
    }
    assert [event["part"]["text"] for event in first if "part" in event] == ["", ""]


def test_log_probabilities_come_with_their_text_and_the_item_has_all_of_them():
    items = output()
    events = items.add(TextDelta("a"), [TokenLogprobs(1, -0.5)])
    events += items.add(TextDelta("bc"), [TokenLogprobs(2, -0.5), TokenLogprobs(3, -0.5)])
    events += items.end()
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["logprobs"] for event in deltas] == [[1], [2, 3]]
    assert items.items[0]["content"][0]["logprobs"] == [1, 2, 3]
    done = next(event for event in events if event["type"] == "response.output_text.done")
    assert done["logprobs"] == [1, 2, 3]


def test_an_empty_answer_has_no_item():
    items = output()
    assert items.end() == []
    assert items.items == []


def test_the_item_that_is_open_at_the_end_gets_the_status_of_the_answer():
    items = output()
    items.add(ThinkingDelta("a"), [])
    items.add(TextDelta("b"), [])
    (*_, last) = items.end("incomplete")
    assert last["item"]["status"] == "incomplete"
    assert [item["status"] for item in items.items] == ["completed", "incomplete"]
