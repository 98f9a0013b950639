"""Gemma's answers become the same events however their text is cut, and nothing is made up."""

import json
import re
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from app.chat_format.events import TextDelta, ThinkingDelta, ToolCallDelta, ToolCallEnd
from app.chat_format.gemma import AnswerParser, Control

TEMPLATE = (Path(__file__).parents[3] / "demo" / "chat_template.jinja").read_text()
MARKERS = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>"]
MARKERS += ["<turn|>", '<|"|>', "<pad>"]

# Every run tries the same answers, so that it does not fail by chance.
examples = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def pieces(source, tokens=tuple(MARKERS)):
    """Returns the pieces of a source in which every marker is a control token."""
    parts = re.split("(" + "|".join(map(re.escape, tokens)) + ")", source)
    return [Control(part) if part in tokens else part for part in parts if part]


def merged(events):
    """Returns the events with neighbours of one kind joined, without the ends of calls."""
    result = []
    for event in events:
        if isinstance(event, ToolCallEnd):
            continue
        last = result[-1] if result else None
        if isinstance(event, ToolCallDelta):
            if event.name is None:
                assert isinstance(last, ToolCallDelta)
                assert last.index == event.index
                result[-1] = replace(last, arguments=last.arguments + event.arguments)
                continue
            assert event.arguments == ""
        elif type(last) is type(event):
            result[-1] = type(event)(last.text + event.text)
            continue
        result.append(event)
    return result


def parse(answer, **options):
    """Returns an answer's merged events and the ends of its calls."""
    parser = AnswerParser(**options)
    events = [event for piece in answer for event in parser.feed(piece)] + parser.finish()
    calls = [event for event in events if isinstance(event, ToolCallEnd)]
    assert [call.index for call in calls] == [*range(len(calls))]
    return merged(events), calls


def cuts(answer):
    """Yields the answer character by character, then with one piece cut in two at every index."""
    yield [part for piece in answer for part in ([piece] if isinstance(piece, Control) else piece)]
    for index, piece in enumerate(answer):
        if isinstance(piece, str):
            for cut in range(1, len(piece)):
                yield [*answer[:index], piece[:cut], piece[cut:], *answer[index + 1 :]]


def parse_all_ways(answer, **options):
    """Returns the result of `parse`. Asserts that it is the same however the text is cut."""
    events, calls = parse(answer, **options)
    for cut in cuts(answer):
        other, again = parse(cut, **options)
        assert other == events
        assert again == calls
    return events, calls


def parse_source(source, **options):
    return parse_all_ways(pieces(source), **options)


def is_json(text):
    def refuse(constant):
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def the_call(source):
    """Returns the end of the only call in a source. Asserts that the source is nothing else."""
    events, calls = parse_source(f"<|tool_call>{source}<tool_call|>")
    (call,) = calls
    assert events == [ToolCallDelta(0, call.name, call.arguments)]
    assert is_json(call.arguments) == call.complete
    return call


def arguments(source):
    call = the_call(f"call:f{source}")
    assert call.complete
    return json.loads(call.arguments)


# Answers made by hypothesis: the values that the model means, and the pieces that it writes.

texts = st.lists(
    st.sampled_from([*MARKERS, *'{}[]:,"\\\n<|>', "thought\n", "call:f{", "\\u00", " 😀"])
    | st.text(max_size=4),
    max_size=4,
).map("".join)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=3)
spaces = st.sampled_from(["", "", "", " ", "\n  "])


@st.composite
def written(draw, value):
    """Draws the pieces of a value in one of the ways in which models write it."""
    if isinstance(value, str):
        if draw(st.booleans()):
            return [Control('<|"|>'), value, Control('<|"|>')]
        return [json.dumps(value, ensure_ascii=draw(st.booleans()))]
    if not isinstance(value, list | dict):
        return [json.dumps(value)]
    parts = []
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, dict):
            bare = re.fullmatch(r"[\w.-]+", key) and draw(st.booleans())
            parts += [[key] if bare else draw(written(key)), [draw(spaces), ":", draw(spaces)]]
        parts += [draw(written(each)), [draw(spaces), ",", draw(spaces)]]
    if parts and draw(st.booleans()):
        parts.pop()  # else a trailing comma
    brackets = "{}" if isinstance(value, dict) else "[]"
    return [brackets[0], draw(spaces), *chain(*parts), draw(spaces), brackets[1]]


@st.composite
def answers(draw):
    """Draws the pieces of an answer, its merged events and the arguments that its calls mean."""
    answer, events, meant, after_thought = [], [], [], False
    for kind in draw(st.lists(st.sampled_from(["thought", "text", "call"]), max_size=4)):
        if kind == "call":
            value = draw(objects)
            name = draw(st.from_regex(r"[a-zA-Z0-9_-]{1,6}", fullmatch=True))
            head = draw(st.sampled_from(["call:", " call: ", ""])) + name + draw(spaces)
            body = draw(written(value))
            answer += [Control("<|tool_call>"), head, *body, Control("<tool_call|>")]
            events.append(ToolCallDelta(len(meant), name, ""))
            meant.append(value)
        elif text := draw(texts):
            if kind == "thought":
                header = draw(st.sampled_from(["thought\n", "analysis \n", "\n"]))
                answer += [Control("<|channel>"), header, text, Control("<channel|>")]
            else:
                break_due = after_thought and (text[0] == "\n" or draw(st.booleans()))
                answer += ["\n" * break_due, text]
            events.append((ThinkingDelta if kind == "thought" else TextDelta)(text))
        else:
            continue
        after_thought = kind == "thought"
        if draw(st.booleans()):
            answer.append(Control("<pad>"))
    joined = []
    for piece in answer:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined, merged(events), meant


@examples
@given(answers())
def test_an_answer_means_the_same_however_its_text_is_cut(made):
    answer, expected, meant = made
    events, calls = parse_all_ways(answer)
    assert [
        replace(event, arguments="") if isinstance(event, ToolCallDelta) else event
        for event in events
    ] == expected
    assert [(json.loads(call.arguments), call.complete) for call in calls] == [
        (value, True) for value in meant
    ]
    assert [event for event in events if isinstance(event, ToolCallDelta)] == [
        ToolCallDelta(index, call.name, call.arguments) for index, call in enumerate(calls)
    ]
    # Equal values may differ as JSON: 1 == 1.0 == True, and dictionaries ignore the order of keys.
    assert [json.dumps(json.loads(call.arguments)) for call in calls] == [
        json.dumps(value) for value in meant
    ]


nonsense = st.lists(
    st.sampled_from(MARKERS).map(Control)
    | st.sampled_from(["call:f{", "a:", "{", "}", "[", "]", ",", ":", '"', "\\", "1", "true", " "])
    | st.sampled_from(["{a:1}", "{a:1,", "\\u12", "\n", "thought\n", "x y"]),
    max_size=14,
)


@settings(examples, max_examples=1000)
@given(nonsense)
def test_arguments_are_json_exactly_when_the_call_is_complete(answer):
    _, calls = parse_all_ways([Control("<|tool_call>"), "call:f{", *answer])
    assert calls
    for call in calls:
        assert is_json(call.arguments) == call.complete


@settings(examples, max_examples=200)
@given(nonsense)
def test_without_tools_everything_but_markers_and_headers_is_text(answer):
    outside = [piece for piece in answer if piece != Control("<|channel>")]
    events, calls = parse_all_ways(outside, calls=False)
    ends = [outside.index(Control(end)) for end in ("<turn|>", "<|tool_response>")
            if Control(end) in outside]  # fmt: skip
    texts = [
        '"' if piece == Control('<|"|>') else piece
        for piece in outside[: min(ends, default=None)]
        if isinstance(piece, str) or piece.text == '<|"|>'
    ]
    assert events == ([TextDelta("".join(texts))] if "".join(texts) else [])
    assert calls == []


template_texts = texts.filter(lambda text: not any(marker in text for marker in MARKERS))
template_values = st.recursive(
    scalars.filter(lambda value: not isinstance(value, str)) | template_texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[A-Za-z_]\w{0,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=6,
)
template_objects = st.dictionaries(
    st.from_regex(r"[A-Za-z_]\w{0,5}", fullmatch=True), template_values, max_size=4
)


@examples
@given(st.lists(template_objects, min_size=1, max_size=3))
def test_calls_written_by_the_chat_template_are_read_back_unchanged(meant):
    calls = [{"function": {"name": f"f{n}", "arguments": each}} for n, each in enumerate(meant)]
    message = {"role": "assistant", "content": "One moment.", "tool_calls": calls}
    (rendered,), _ = render_jinja_template(
        [[{"role": "user", "content": "Go"}, message]], chat_template=TEMPLATE, bos_token="<bos>"
    )
    answer = rendered.split("<|turn>model\n")[1]
    events, calls = parse(pieces(answer))
    assert events[0] == TextDelta("One moment.")
    assert [(call.name, json.loads(call.arguments), call.complete) for call in calls] == [
        (f"f{n}", each, True) for n, each in enumerate(meant)
    ]


# Thoughts.


def test_a_thought_comes_without_its_header_and_the_newline_after_it():
    events, _ = parse_source("<|channel>thought\nHm.\nYes.\n<channel|>\n\nHello\n")
    assert events == [ThinkingDelta("Hm.\nYes.\n"), TextDelta("\nHello\n")]


def test_the_first_newline_of_an_answer_is_kept_if_no_thought_comes_before_it():
    assert parse_source("\nHello")[0] == [TextDelta("\nHello")]
    assert parse_source("<channel|>\nHello")[0] == [TextDelta("\nHello")]


def test_a_newline_after_a_call_is_text_even_if_the_call_follows_a_thought():
    events, _ = parse_source("<|channel>thought\nHm<channel|><|tool_call>f<tool_call|>\nDone")
    assert events == [ThinkingDelta("Hm"), ToolCallDelta(0, "f", "{}"), TextDelta("\nDone")]


@pytest.mark.parametrize("header", ["thought\n", "final\n", "thought", "", "\n", "tho"])
def test_an_empty_thought_makes_no_event(header):
    assert parse_source(f"<|channel>{header}<channel|>Hi")[0] == [TextDelta("Hi")]
    assert parse_source(f"<|channel>{header}")[0] == []


def test_a_channel_of_another_name_is_a_thought():
    events, _ = parse_source("<|channel>analysis\nHm<channel|>Hi")
    assert events == [ThinkingDelta("Hm"), TextDelta("Hi")]


def test_a_thought_without_a_header_loses_nothing():
    events, _ = parse_source("<|channel>Let me see.\nHm<channel|>")
    assert events == [ThinkingDelta("Let me see.\nHm")]


def test_a_thought_that_the_prompt_began_continues_without_a_header():
    events, _ = parse_source("thought\nis free<channel|>\nHi", thinking=True)
    assert events == [ThinkingDelta("thought\nis free"), TextDelta("Hi")]


def test_a_thought_that_is_never_closed_is_a_thought():
    assert parse_source("<|channel>thought\nHm")[0] == [ThinkingDelta("Hm")]


def test_a_thought_comes_out_as_it_grows():
    parser = AnswerParser()
    assert parser.feed(Control("<|channel>")) == parser.feed("thou") == []
    assert parser.feed("ght\nHm") == [ThinkingDelta("Hm")]
    assert parser.feed(", well") == [ThinkingDelta(", well")]


def test_a_thought_continues_after_a_call_in_it():
    events, _ = parse_source("<|channel>thought\nA<|tool_call>call:f{}<tool_call|>B<channel|>C")
    assert events == [
        ThinkingDelta("A"),
        ToolCallDelta(0, "f", "{}"),
        ThinkingDelta("B"),
        TextDelta("C"),
    ]


# Calls.


def test_several_calls_are_numbered_with_or_without_text_between_them():
    events, calls = parse_source(
        "Wait.<|tool_call>call:a{n:1}<tool_call|><|tool_call>call:b{}<tool_call|> and "
        "<|tool_call>call:a{n:2}<tool_call|>"
    )
    assert events == [
        TextDelta("Wait."),
        ToolCallDelta(0, "a", '{"n":1}'),
        ToolCallDelta(1, "b", "{}"),
        TextDelta(" and "),
        ToolCallDelta(2, "a", '{"n":2}'),
    ]
    assert calls[2] == ToolCallEnd(2, "a", '{"n":2}', complete=True)


@pytest.mark.parametrize("head", ["call:f", "f", " call : f ", ":f", "call:\nf\n"])
@pytest.mark.parametrize("body", ["{}", "{ }", ""])
def test_a_call_without_arguments_has_an_empty_object(head, body):
    assert the_call(head + body) == ToolCallEnd(0, "f", "{}", complete=True)


def test_names_may_have_dots_dashes_and_colons():
    assert the_call("call:files.read-all:v2{}").name == "files.read-all:v2"


def test_a_string_in_quote_tokens_may_have_any_text():
    text = 'a "b" {c}, [d]:\n\\n \\ \t <tool_call|> <|turn> 你好'
    parser = AnswerParser()
    quote = Control('<|"|>')
    for piece in [Control("<|tool_call>"), "call:f{x:", quote, text, quote, "}"]:
        parser.feed(piece)
    (end,) = parser.feed(Control("<tool_call|>"))
    assert json.loads(end.arguments) == {"x": text}


def test_markers_typed_as_text_are_text():
    text = '<|tool_call>call:f{x:<|"|>1<|"|>}<tool_call|><|channel>thought\nHm<channel|><turn|>!'
    assert parse_all_ways([text])[0] == [TextDelta(text)]


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ('"Paris"', "Paris"),
        (r'"a \"b\" \\ \/ \n \u00e9 \ud83d\ude00"', 'a "b" \\ / \n é 😀'),
        ('"line\nbreak"', "line\nbreak"),
        ('"<|"|>', ""),
        ('<|"|>say "hi"<|"|>', 'say "hi"'),
        ("Paris", "Paris"),
        ("New York ", "New York"),
        ("10:30", "10:30"),
        ("True", "True"),
        ("'a'", "'a'"),
        ("C:\\dir", "C:\\dir"),
        ("-0.5e+3", -500.0),
        ("007", "007"),
        ("+1", "+1"),
        ("1.", "1."),
        ("NaN", "NaN"),
        ("12345678901234567890", 12345678901234567890),
        ("true", True),
        ("null", None),
        ("[]", []),
        ("[1, [2,], {a:b,},]", [1, [2], {"a": "b"}]),
    ],
)
def test_values_are_read_in_all_ways_in_which_models_write_them(source, value):
    assert arguments(f"{{x:{source}}}") == {"x": value}
    assert arguments(f'{{ "x" : {source} , y : [ {source} ] }}') == {"x": value, "y": [value]}


@pytest.mark.parametrize("key", ['<|"|>a key<|"|>', '"a key"', '"a\\u0020key"', "a key", " a key "])
def test_keys_may_be_bare_or_quoted(key):
    assert arguments(f"{{{key}:1}}") == {"a key": 1}


def test_a_key_is_a_string_whatever_it_looks_like():
    assert arguments("{1:a,true:b}") == {"1": "a", "true": "b"}


def test_keys_keep_their_order_and_may_be_repeated():
    call = the_call("call:f{b:1,a:2,b:3}")
    assert call.arguments == '{"b":1,"a":2,"b":3}'


def test_numbers_keep_their_digits():
    assert the_call("call:f{x:1.10E5,y:-0}").arguments == '{"x":1.10E5,"y":-0}'


@pytest.mark.parametrize("quote", [Control('<|"|>'), '"'])
def test_a_string_comes_out_as_it_grows(quote):
    parser = AnswerParser()
    parser.feed(Control("<|tool_call>"))
    assert parser.feed("call:f{x") == [ToolCallDelta(0, "f", ""), ToolCallDelta(0, None, "{")]
    assert parser.feed(":") == [ToolCallDelta(0, None, '"x":')]
    assert parser.feed(quote) == [ToolCallDelta(0, None, '"')]
    assert parser.feed("Hel") == [ToolCallDelta(0, None, "Hel")]
    assert parser.feed("lo\n") == [ToolCallDelta(0, None, "lo\\n")]


@pytest.mark.parametrize(
    ("source", "emitted"),
    [
        ("{x 1}", '{x 1}'),
        ("{x:}", '{"x":}'),
        ("{x:1,,y:2}", '{"x":1,,y:2}'),
        ('{"x":1,,"y":2}', '{"x":1,,"y":2}'),
        ("{,}", "{,}"),
        ("{:1}", "{:1}"),
        ("{x:[1}", '{"x":[1}'),
        ("{x:1]}", '{"x":1]}'),
        ("{x:1}}", '{"x":1}}'),
        ("{x:1} and more", '{"x":1}and more'),
        ("{x:1", '{"x":1'),
        ("{x:[1,]", '{"x":[1]'),
        ("{x:1,} and more", '{"x":1}and more'),
        ("{x:tru", '{"x":tru'),
        ("{x:1,", '{"x":1,'),
        ('{x:"a\\d"}', '{"x":"a\\d"}'),
        ('{x:"a\\u12g4"}', '{"x":"a\\u12g4"}'),
        ('{x:"a\\<|"|>}', '{"x":"a\\"}'),
        ('{x:<|"|>a', '{"x":"a'),
        ('{x:<|"|>a<|"|>b<|"|>}', '{"x":"a"b"}'),
        ('{x:5"}', '{"x":5"}'),
        ("{city:Paris, France}", '{"city":"Paris",France}'),
        ("{x:f{y:1}}", '{"x":f{y:1}}'),
        ("{x:f[1]}", '{"x":f[1]}'),
    ],
)  # fmt: skip
def test_broken_arguments_are_not_json_and_lose_no_text(source, emitted):
    assert the_call(f"call:f{source}") == ToolCallEnd(0, "f", emitted, complete=False)


def test_text_after_a_break_comes_out_at_once():
    parser = AnswerParser()
    parser.feed(Control("<|tool_call>"))
    parser.feed('call:f{x:"a')
    assert parser.feed("\\d") == [ToolCallDelta(0, None, "\\d")]
    assert parser.feed('"}') == [ToolCallDelta(0, None, '"}')]


@pytest.mark.parametrize(
    "source",
    ["{x:1}", "call:{x:1}", "call:two words{x:1}", "f(x=1)", 'call:<|"|>f<|"|>{x:1}', "", "call:"],
)
def test_a_call_without_a_name_is_text(source):
    events, calls = parse_source(f"Hm <|tool_call>{source}<tool_call|> yes")
    assert events == [TextDelta(f"Hm {source} yes".replace('<|"|>', '"'))]
    assert calls == []


@pytest.mark.parametrize("end", ["", "<turn|>", "<|tool_response>"])
def test_a_call_that_is_cut_off_is_not_complete(end):
    events, calls = parse_source(f'<|tool_call>call:f{{x:<|"|>a b{end}')
    assert events == [ToolCallDelta(0, "f", '{"x":"a b')]
    assert calls == [ToolCallEnd(0, "f", '{"x":"a b', complete=False)]


@pytest.mark.parametrize("end", ["", "<turn|>", "<|tool_response>", "<|tool_call>"])
def test_a_call_whose_arguments_are_closed_is_complete_without_its_end_marker(end):
    _, calls = parse_source(f"<|tool_call>call:f{{x:1}}{end}")
    assert calls == [ToolCallEnd(0, "f", '{"x":1}', complete=True)]


@pytest.mark.parametrize(
    "head", ["", "call", "call:", " call : get_wea", "get_weather", ":", "a.b:c"]
)
def test_a_call_that_is_cut_off_in_its_name_is_dropped(head):
    events, calls = parse_source(f"Hm<|tool_call>{head}")
    assert (events, calls) == ([TextDelta("Hm")], [])


def test_an_unfinished_head_that_is_not_a_name_is_text():
    events, calls = parse_source("<|tool_call>call the office")
    assert (events, calls) == ([TextDelta("call the office")], [])


def test_a_call_ends_where_another_call_or_a_thought_begins_in_it():
    events, calls = parse_source(
        '<|tool_call>call:f{x:[1,<|tool_call>call:g{y:<|"|>a<|channel>thought\nHm'
    )
    assert events == [
        ToolCallDelta(0, "f", '{"x":[1,'),
        ToolCallDelta(1, "g", '{"y":"a'),
        ThinkingDelta("Hm"),
    ]
    assert [call.complete for call in calls] == [False, False]


def test_the_end_of_a_thought_ends_the_call_in_it():
    events, _ = parse_source("<|channel>thought\nA<|tool_call>call:f{x:1<channel|>B")
    assert events == [ThinkingDelta("A"), ToolCallDelta(0, "f", '{"x":1'), TextDelta("B")]


def test_other_control_tokens_are_never_text():
    events, _ = parse_source(
        '<pad>A<tool_call|>B<pad><|tool_call>call<pad>:f<pad>{x:<|"|>a<pad>b<|"|><pad>}<tool_call|>'
    )
    assert events == [TextDelta("AB"), ToolCallDelta(0, "f", '{"x":"ab"}')]


@pytest.mark.parametrize("end", ["<turn|>", "<|tool_response>"])
def test_everything_after_the_end_is_ignored(end):
    source = f"Hi{end}more<|tool_call>call:f{{}}<tool_call|>"
    assert parse_source(source) == ([TextDelta("Hi")], [])
    parser = AnswerParser()
    for piece in pieces(source):
        parser.feed(piece)
    assert parser.ended


def test_without_tools_the_source_of_a_call_is_text():
    events, calls = parse_source('<|tool_call>call:f{x:<|"|>a<|"|>}<tool_call|>!', calls=False)
    assert (events, calls) == ([TextDelta('call:f{x:"a"}!')], [])


def test_the_section_is_that_of_the_next_piece():
    parser = AnswerParser(thinking=True)
    sections = [parser.section]
    for piece in pieces("Hm<channel|>A<|tool_call>call:f{}<tool_call|>B<|channel>"):
        parser.feed(piece)
        sections.append(parser.section)
    assert sections == [
        "thinking", "thinking", "text", "text", "call", "call", "text", "text", "thinking",
    ]  # fmt: skip
