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


def parse(answer, *, cut_off=False, **options):
    """Returns an answer's merged events and the ends of its calls."""
    parser = AnswerParser(**options)
    events = [event for piece in answer for event in parser.feed(piece)]
    events += parser.finish(cut_off=cut_off)
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


def single_quoted(text):
    return "'" + json.dumps(text)[1:-1].replace("'", r"\'") + "'"


@st.composite
def written(draw, value, brackets="{}"):
    """Draws the pieces of a value in one of the ways in which models write it."""
    if isinstance(value, str):
        match draw(st.sampled_from(["quote tokens", "JSON", "single quotes"])):
            case "quote tokens":
                return [Control('<|"|>'), value, Control('<|"|>')]
            case "JSON":
                return [json.dumps(value, ensure_ascii=draw(st.booleans()))]
            case "single quotes":
                return [single_quoted(value)]
    if not isinstance(value, list | dict):
        is_python = value in (True, False, None) and draw(st.booleans())
        return [str(value) if is_python else json.dumps(value)]
    parts = []
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, dict):
            bare = re.fullmatch(r"[\w.-]+", key) and draw(st.booleans())
            separator = draw(st.sampled_from(":="))
            parts += [
                [key] if bare else draw(written(key)),
                [draw(spaces), separator, draw(spaces)],
            ]
        parts += [draw(written(each)), [draw(spaces), ",", draw(spaces)]]
    if parts and draw(st.booleans()):
        parts.pop()  # else a trailing comma
    opening, closing = "[]" if isinstance(value, list) else brackets
    return [opening, draw(spaces), *chain(*parts), draw(spaces), closing]


@st.composite
def written_calls(draw, values, names):
    """Draws the pieces of one or several calls between one pair of markers."""
    parts = []
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        separator = draw(st.sampled_from(["", ",", " ", "\n", " , \n"])) if number else ""
        heads = ["call:", "call : "] if number else ["call:", " call: ", ""]
        head = separator + draw(st.sampled_from(heads)) + name + draw(spaces)
        parts += [head, *draw(written(value, draw(st.sampled_from(["{}", "()"]))))]
    missing = draw(st.integers(0, 3))
    while missing and isinstance(parts[-1], str) and parts[-1].strip() in ("}", "]", ")", ""):
        missing -= parts.pop().strip() != ""
    return [Control("<|tool_call>"), *parts, Control("<tool_call|>")]


@st.composite
def answers(draw):
    """Draws the pieces of an answer, its merged events and the arguments that its calls mean."""
    answer, events, meant, after_thought = [], [], [], False
    kinds = ["thought", "text", "answer channel", "calls"]
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=4)):
        if kind == "calls":
            values = draw(st.lists(objects, min_size=1, max_size=3))
            names = [draw(st.from_regex(r"[a-zA-Z0-9_-]{1,6}", fullmatch=True)) for _ in values]
            answer += draw(written_calls(values, names))
            for name, value in zip(names, values, strict=True):
                events.append(ToolCallDelta(len(meant), name, ""))
                meant.append(value)
        elif text := draw(texts):
            if kind == "thought" and not answer and draw(st.booleans()):
                answer += ["thought\n", text, Control("<channel|>")]
            elif kind == "thought":
                header = draw(st.sampled_from(["thought\n", "analysis \n", "\n"]))
                answer += [Control("<|channel>"), header, text, Control("<channel|>")]
            elif kind == "answer channel":
                header = draw(st.sampled_from(["final\n", "Answer \n", "response\n"]))
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
    | st.sampled_from(["{a:1}", "{a:1,", "\\u12", "\n", "thought\n", "x y"])
    | st.sampled_from(["call:g(", "a=", "(", ")", "=", "'", "None", "(a=1)", "final\n", "call:"]),
    max_size=14,
)
openings = st.sampled_from(["call:f{", "call:f(", "f(a='"])


@settings(examples, max_examples=1000)
@given(openings, nonsense)
def test_arguments_are_json_exactly_when_the_call_is_complete(opening, answer):
    _, calls = parse_all_ways([Control("<|tool_call>"), opening, *answer])
    assert calls
    for call in calls:
        assert is_json(call.arguments) == call.complete


def leaves(value):
    """Yields the keys, strings, numbers and other literals in a value."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from leaves(each)
    else:
        yield value


@settings(examples, max_examples=1000)
@given(openings, nonsense)
def test_complete_calls_have_no_key_and_no_value_that_the_model_did_not_write(opening, answer):
    answer = [piece for piece in answer if piece != "\\"]
    _, calls = parse([Control("<|tool_call>"), opening, *answer])
    kept = [p for p in answer if isinstance(p, str) or p.text == '<|"|>']
    source = opening + "".join('"' if isinstance(piece, Control) else piece for piece in kept)
    python = {None: "None", True: "True", False: "False"}
    for call in calls:
        for leaf in leaves(json.loads(call.arguments)) if call.complete else ():
            written = leaf if isinstance(leaf, str) else json.dumps(leaf)
            assert written in source or python[leaf] in source


@settings(examples, max_examples=200)
@given(nonsense)
def test_without_tools_everything_but_markers_and_headers_is_text(answer):
    channels = (Control("<|channel>"), Control("<channel|>"))
    outside = [piece for piece in answer if piece not in channels]
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
def test_an_empty_channel_makes_no_event(header):
    assert parse_source(f"<|channel>{header}<channel|>Hi")[0] == [TextDelta("Hi")]
    assert parse_source(f"<|channel>{header}")[0] == []


@pytest.mark.parametrize("name", ["analysis", "commentary", "Thought", "think", "finally"])
def test_a_channel_of_an_unknown_name_is_a_thought(name):
    events, _ = parse_source(f"<|channel>{name}\nHm<channel|>Hi")
    assert events == [ThinkingDelta("Hm"), TextDelta("Hi")]


@pytest.mark.parametrize("name", ["final", "answer", "response", "Final", "final \t"])
@pytest.mark.parametrize("end", ["", "<channel|>", "<turn|>", "<|tool_response>"])
def test_a_channel_that_is_named_for_the_answer_is_text(name, end):
    events, _ = parse_source(f"<|channel>{name}\nHi\nthere{end}")
    assert events == [TextDelta("Hi\nthere")]


@pytest.mark.parametrize("closing", ["", "<channel|>", "<channel|>\n"])
def test_a_channel_may_begin_where_another_is_open_or_closed(closing):
    events, _ = parse_source(
        f"<|channel>thought\nA{closing}<|channel>final\nB{closing}<|channel>analysis\nC"
    )
    line_break = "\n" if closing.endswith("\n") else ""  # behind a text it is text
    assert events == [ThinkingDelta("A"), TextDelta("B" + line_break), ThinkingDelta("C")]


def test_text_behind_an_answer_channel_loses_no_line_break():
    assert parse_source("<|channel>final\nA<channel|>\nB")[0] == [TextDelta("A\nB")]


def test_a_call_in_an_answer_channel_ends_with_it():
    events, calls = parse_source("<|channel>final\nA<|tool_call>call:f{x:1<channel|>B")
    assert events == [TextDelta("A"), ToolCallDelta(0, "f", '{"x":1'), TextDelta("B")]
    assert not calls[0].complete


@pytest.mark.parametrize("header", ["thought\n", "thought \t\n"])
def test_a_thought_may_lack_its_opener_where_the_answer_begins(header):
    events, _ = parse_source(f"{header}Hm.\nYes.<channel|>\nHello<|channel>thought\nB<channel|>!")
    assert events == [
        ThinkingDelta("Hm.\nYes."), TextDelta("Hello"), ThinkingDelta("B"), TextDelta("!"),
    ]  # fmt: skip


@pytest.mark.parametrize("header", ["thought\n", "thought", "thought "])
def test_an_empty_thought_without_its_opener_makes_no_event(header):
    assert parse_source(f"{header}<channel|>\nHi")[0] == [TextDelta("Hi")]


@pytest.mark.parametrize("text", ["thought\nHm", "thought", "tho", "thoughts\nHm", "Thought\nHm"])
@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("end", ["", "<turn|>", "<|tool_response>"])
def test_a_text_that_begins_like_a_thought_is_text_if_no_channel_is_closed(text, cut_off, end):
    assert parse_source(text + end, cut_off=cut_off)[0] == [TextDelta(text)]


@pytest.mark.parametrize(
    ("marker", "more"),
    [
        ("<|channel>", "thought\nB<channel|>"),
        ("<|tool_call>", "call:f{}<tool_call|><channel|>"),
    ],
)
def test_another_marker_decides_that_the_beginning_is_text(marker, more):
    events, _ = parse_source(f"thought\nHm{marker}{more}")
    assert events[0] == TextDelta("thought\nHm")


def test_only_the_beginning_of_an_answer_may_be_a_thought_without_its_opener():
    assert parse_source("Hi\nthought\nHm<channel|>!")[0] == [TextDelta("Hi\nthought\nHm!")]
    assert parse_source("my thought\nHm<channel|>!")[0] == [TextDelta("my thought\nHm!")]
    assert parse_source("tho<channel|>ught\nHm<channel|>!")[0] == [TextDelta("thought\nHm!")]


def test_a_beginning_is_held_back_until_it_is_decided_and_no_longer():
    parser = AnswerParser()
    assert parser.feed("thought") == parser.feed("\nHm") == parser.feed(", well") == []
    assert parser.feed(Control("<channel|>")) == [ThinkingDelta("Hm, well")]
    parser = AnswerParser()
    assert parser.feed("thou") == []
    assert parser.feed("gh") == []
    assert parser.feed(" it rains") == [TextDelta("though it rains")]
    assert parser.feed("thought\n") == [TextDelta("thought\n")]


def test_a_thought_without_a_header_loses_nothing():
    events, _ = parse_source("<|channel>Let me see.\nHm<channel|>")
    assert events == [ThinkingDelta("Let me see.\nHm")]


def test_a_thought_that_the_prompt_began_continues_without_a_header():
    events, _ = parse_source("thought\nis free<channel|>\nHi", thinking=True)
    assert events == [ThinkingDelta("thought\nis free"), TextDelta("Hi")]


@pytest.mark.parametrize("end", ["", "<turn|>", "<|tool_response>"])
def test_the_text_of_a_thought_that_is_never_closed_is_the_answer_if_there_is_no_other(end):
    assert parse_source(f"<|channel>thought\nHm.\nHi{end}")[0] == [
        ThinkingDelta("Hm.\nHi"),
        TextDelta("Hm.\nHi"),
    ]
    assert parse_source(f"Hi{end}", thinking=True)[0] == [ThinkingDelta("Hi"), TextDelta("Hi")]
    # A text that is only white space is no answer. Closed thoughts are none either.
    events, _ = parse_source(f"<|channel>thought\nA<channel|>\n\n<|channel>analysis\nB{end}")
    assert events == [ThinkingDelta("A"), TextDelta("\n"), ThinkingDelta("B"), TextDelta("B")]


def test_a_thought_that_is_cut_off_is_only_a_thought():
    assert parse_source("<|channel>thought\nHm", cut_off=True)[0] == [ThinkingDelta("Hm")]
    assert parse_source("Hm", cut_off=True, thinking=True)[0] == [ThinkingDelta("Hm")]


@pytest.mark.parametrize("source", ["Hi", "<|tool_call>call:f{}<tool_call|>", "<|tool_call>f{x:"])
def test_a_thought_that_is_never_closed_is_only_a_thought_beside_an_answer(source):
    events, _ = parse_source(f"{source}<|channel>thought\nHm")
    assert events[1:] == [ThinkingDelta("Hm")]


def test_a_thought_that_is_never_closed_is_only_a_thought_if_it_calls():
    events, _ = parse_source(
        "<|channel>thought\nHm<|tool_call>call:f{}<tool_call|><|tool_response>"
    )
    assert events == [ThinkingDelta("Hm"), ToolCallDelta(0, "f", "{}")]


def test_a_closed_thought_is_never_the_answer():
    assert parse_source("<|channel>thought\nHm<channel|><turn|>")[0] == [ThinkingDelta("Hm")]


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


@pytest.mark.parametrize("separator", ["", ",", " ", "\n", " ,\n", ",,"])
@pytest.mark.parametrize("first", ["{x:1}", "(x=1)", "{x:'}call:h{'}"])
def test_several_calls_may_stand_between_one_pair_of_markers(separator, first):
    events, calls = parse_source(
        f"A<|tool_call>call:f{first}{separator}call:g{{}}{separator}call : f(y=2){separator}"
        f"call:h<tool_call|>B"
    )
    assert [(call.name, json.loads(call.arguments), call.complete) for call in calls] == [
        ("f", {"x": "}call:h{" if "'" in first else 1}, True),
        ("g", {}, True),
        ("f", {"y": 2}, True),
        ("h", {}, True),
    ]
    assert events == [
        TextDelta("A"),
        *(ToolCallDelta(call.index, call.name, call.arguments) for call in calls),
        TextDelta("B"),
    ]


@pytest.mark.parametrize("end", ["<tool_call|>", "<turn|>", "<|channel>", "<|tool_call>", ""])
def test_separators_behind_a_call_are_not_part_of_it(end):
    _, calls = parse_source(f"<|tool_call>call:f{{x:1}},\n {end}")
    assert calls == [ToolCallEnd(0, "f", '{"x":1}', complete=True)]


def test_the_end_of_a_call_is_known_where_the_next_one_begins():
    parser = AnswerParser()
    parser.feed(Control("<|tool_call>"))
    parser.feed("call:f{x:1}")
    assert parser.feed(", call") == []
    assert parser.feed(":g") == [ToolCallEnd(0, "f", '{"x":1}', complete=True)]
    assert parser.feed("(") == [ToolCallDelta(1, "g", ""), ToolCallDelta(1, None, "{")]


def test_a_next_call_that_is_cut_off_in_its_name_is_dropped():
    events, calls = parse_source("<|tool_call>call:f{x:1}call:get_wea")
    assert calls == [ToolCallEnd(0, "f", '{"x":1}', complete=True)]
    assert events == [ToolCallDelta(0, "f", '{"x":1}')]


def test_what_follows_a_call_like_another_one_but_has_no_name_is_text():
    events, calls = parse_source("<|tool_call>call:f{}, call: me later{x:1}<tool_call|>!")
    assert calls == [ToolCallEnd(0, "f", "{}", complete=True)]
    assert events[1:] == [TextDelta("call: me later{x:1}!")]


def test_many_calls_between_one_pair_of_markers_are_read():
    _, calls = parse(pieces("<|tool_call>" + "call:f{x:1}" * 5000 + "<tool_call|>"))
    assert len(calls) == 5000
    assert all(call.complete for call in calls)


@pytest.mark.parametrize("head", ["call:f", "f", " call : f ", ":f", "call:\nf\n"])
@pytest.mark.parametrize("body", ["{}", "{ }", "", "()", "( )"])
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
        ("True", True),
        ("False", False),
        ("None", None),
        ("TRUE", "TRUE"),
        ("none", "none"),
        ("Nonesuch", "Nonesuch"),
        ("'a'", "a"),
        ("''", ""),
        ("'say \"hi\", {ok}: [1]'", 'say "hi", {ok}: [1]'),
        (r"'it\'s \n \u00e9 \\'", "it's \n é \\"),
        (r'"it\'s"', "it's"),
        ("don't", "don't"),
        ("a=b", "a=b"),
        ("f(x)", "f(x)"),
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


@pytest.mark.parametrize(
    "key", ['<|"|>a key<|"|>', '"a key"', "'a key'", '"a\\u0020key"', "a key", " a key "]
)
@pytest.mark.parametrize("separator", [":", "=", " = "])
def test_keys_may_be_bare_or_quoted_and_an_equals_sign_may_follow(key, separator):
    assert arguments(f"{{{key}{separator}1,b:2}}") == {"a key": 1, "b": 2}
    assert arguments(f"({key}{separator}1, b = 2)") == {"a key": 1, "b": 2}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ('(city="Paris")', {"city": "Paris"}),
        ("(a='Paris', b=3, c=True, d=None,)", {"a": "Paris", "b": 3, "c": True, "d": None}),
        ("(x=[1, 'a', {'b': False}], y=-1.5)", {"x": [1, "a", {"b": False}], "y": -1.5}),
        ('(command:<|"|>ls (all)<|"|>)', {"command": "ls (all)"}),
        ("(x='a) b', y=(", None),
        ("(x=1}", {"x": 1}),
        ("( )", {}),
    ],
)  # fmt: skip
def test_a_call_may_be_written_as_in_python(source, value):
    call = the_call(f"call:f{source}")
    assert call.complete == (value is not None)
    assert value is None or json.loads(call.arguments) == value


@pytest.mark.parametrize(
    ("source", "emitted"),
    [
        ("{", "{}"),
        ("(", "{}"),
        ("{x:1", '{"x":1}'),
        ("(x=1", '{"x":1}'),
        ("{x:New York ", '{"x":"New York"}'),
        ("{x:1,", '{"x":1}'),
        ("{x:[1,", '{"x":[1]}'),
        ("{x:[", '{"x":[]}'),
        ('{x:[{y:<|"|>a<|"|>,z:1}]', '{"x":[{"y":"a","z":1}]}'),
        ("{x:[{y:'a'", '{"x":[{"y":"a"}]}'),
        ("(x=[{'y':None", '{"x":[{"y":null}]}'),
    ],
)
def test_closing_brackets_that_are_missing_at_the_end_marker_are_added(source, emitted):
    assert the_call(f"call:f{source}") == ToolCallEnd(0, "f", emitted, complete=True)


@pytest.mark.parametrize("end", ["", "<turn|>", "<|tool_response>", "<|tool_call>", "<|channel>"])
def test_no_bracket_is_added_without_the_end_marker(end):
    _, calls = parse_source(f"<|tool_call>call:f{{x:[1{end}")
    assert calls == [ToolCallEnd(0, "f", '{"x":[1', complete=False)]


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
        ("{x:1} and more", '{"x":1} and more'),
        ("{x:1,} and more", '{"x":1} and more'),
        ("{x:1}, cal", '{"x":1}, cal'),
        ("{x:1}g{y:2}", '{"x":1}g{y:2}'),
        ("{x", "{x"),
        ("{x:", '{"x":'),
        ("{x=", '{"x":'),
        ("{x:1,y", '{"x":1,y'),
        ("{x:'a", '{"x":"a'),
        ("{x:'a\\'", '{"x":"a\''),
        ("{x:[\"a", '{"x":["a'),
        ("{x==1}", '{"x":=1}'),
        ("{x=>1}", '{"x":>1}'),
        ("{=1}", "{=1}"),
        ("{x:'don't'}", '{"x":"don"t\'}'),
        ("(\"Paris\")", '{"Paris")'),
        ("(Paris)", "{Paris)"),
        ("(x=1, 2)", '{"x":1,2)'),
        ("(x=f(1))", '{"x":f(1))'),
        ("(x=(1, 2))", '{"x":(1, 2))'),
        ("(x=[a)", '{"x":["a")'),
        ("(x=b'a')", '{"x":b\'a\')'),
        ("{x:'1')", '{"x":"1")'),
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
    [
        "{x:1}", "(x=1)", "call:{x:1}", "call:(x=1)", "call:two words{x:1}", "two words(x=1)",
        'call:<|"|>f<|"|>{x:1}', "", "call:",
    ],
)  # fmt: skip
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
        "thinking", "thinking", "text", "text", "call", "call", "text", "text", "header",
    ]  # fmt: skip
    sections = [(parser.feed(piece), parser.section)[1] for piece in ("though", "t\n", "Hm")]
    assert sections == ["header", "thinking", "thinking"]
    parser = AnswerParser()
    source = pieces("thought\nHm<channel|>Hi")
    assert parser.section == "text"
    assert [(parser.feed(piece), parser.section)[1] for piece in source] == [
        "undecided", "text", "text",
    ]  # fmt: skip
