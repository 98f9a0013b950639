"""Tokens become the same events however they are cut into blocks."""

import pytest
from tokenizers import Tokenizer

from app.answer.output import AnswerOutput
from app.chat_format.events import TextDelta, ThinkingDelta, ToolCallDelta, ToolCallEnd, merged
from app.chat_format.gemma import AnswerParser
from app.prompting.vocabulary import Vocabulary
from demo.tokenizer import SPECIAL_TOKENS, build_tokenizer, save_tokenizer
from engine.messages import TokenLogprobs

TEXTS = [
    "Hello! How can I help you?",
    "  two spaces, a tab\t and\n\nlines  ",
    "naïve 你好 😀👩‍👩‍👧 é end",
    "1, 2, 3, 4, 5, 6",
    "STOP STO STOPP S T O P",
    "",
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_tokenizer(0, examples=4000), folder)
    return Vocabulary(folder / "tokenizer.json")


def events(output, blocks):
    return merged([e for block in blocks for e in output.feed(block)] + output.finish())


def text_and_output(vocabulary, blocks, stops=()):
    output = AnswerOutput(vocabulary, stops)
    return "".join(event.text for event in events(output, blocks)), output


def cuts(tokens):
    """Yields the tokens whole, one by one, and cut in two at every index."""
    yield [tokens]
    yield [[token] for token in tokens]
    for index in range(len(tokens)):
        yield [tokens[:index], tokens[index:]]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_the_same_however_it_is_cut(vocabulary, text):
    tokens = vocabulary.encode_literally(text)
    for blocks in cuts(tokens):
        assert text_and_output(vocabulary, blocks)[0] == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stops", [("STOP",), ("你",), ("4, 5", "3, 4, 5"), ("\n",), ("can I",)])
def test_no_part_of_a_stop_string_is_given_out_however_it_is_cut(vocabulary, text, stops):
    tokens = vocabulary.encode_literally(text)
    ends = [text.index(stop) for stop in stops if stop in text]
    for blocks in cuts(tokens):
        shown, output = text_and_output(vocabulary, blocks, stops)
        assert shown == (text[: min(ends)] if ends else text)
        assert (output.stop_string in stops) == output.ended == bool(ends)


def test_tokens_are_counted_up_to_the_one_that_completes_the_stop_string(vocabulary):
    tokens = vocabulary.encode_literally("one two three four")
    upto = vocabulary.encode_literally("one two")
    _, output = text_and_output(vocabulary, [tokens], (" two",))
    assert output.tokens == len(upto)


def test_text_that_may_begin_a_stop_string_is_held_back_until_it_is_decided(vocabulary):
    output = AnswerOutput(vocabulary, (" green!",))
    red, green, blue = vocabulary.encode_literally("red green blue")
    assert output.feed([red, green]) == [TextDelta("red")]
    assert output.feed([blue]) == [TextDelta(" green blue")]


def test_control_tokens_have_no_text_but_are_counted(vocabulary):
    end = SPECIAL_TOKENS["<turn|>"]
    text, output = text_and_output(vocabulary, [[*vocabulary.encode_literally("hello"), end]])
    assert text == "hello"
    assert output.tokens == len(vocabulary.encode_literally("hello")) + 1


def test_a_character_that_is_cut_off_becomes_one_replacement_character(vocabulary):
    tokens = vocabulary.encode_literally("a😀")
    assert text_and_output(vocabulary, [tokens[:-1]])[0] == "a\ufffd"


def test_bytes_that_are_not_utf_8_do_not_affect_the_characters_around_them(vocabulary):
    bad = vocabulary.tokenizer.token_to_id("<0xFF>")
    tokens = [*vocabulary.encode_literally("你"), bad, *vocabulary.encode_literally("好!")]
    for blocks in cuts(tokens):
        assert text_and_output(vocabulary, blocks)[0] == "你\ufffd好!"


ANSWER = (
    '<|channel>thought\nI need it.<channel|>Wait!<|tool_call>call:get_weather{city:<|"|>Paris 4, 5'
    '<|"|>}<tool_call|><|tool_call>call:now{}<tool_call|><|tool_response>'
)


def test_the_events_of_an_answer_are_the_same_however_it_is_cut(vocabulary):
    tokens = vocabulary.encode(ANSWER)
    for blocks in cuts(tokens):
        # The stop strings are only in an argument and in a thought, where they do not count.
        output = AnswerOutput(vocabulary, ("4, 5", "need"), AnswerParser())
        assert events(output, blocks) == [
            ThinkingDelta("I need it."),
            TextDelta("Wait!"),
            ToolCallDelta(0, "get_weather", '{"city":"Paris 4, 5"}'),
            ToolCallEnd(0, "get_weather", '{"city":"Paris 4, 5"}', complete=True),
            ToolCallDelta(1, "now", "{}"),
            ToolCallEnd(1, "now", "{}", complete=True),
        ]
        assert output.tokens == len(tokens)
        assert output.thinking_tokens == len(vocabulary.encode(ANSWER.split("Wait")[0]))
        assert not output.ended


def test_an_answer_ends_with_its_last_allowed_call(vocabulary):
    tokens = vocabulary.encode(ANSWER)
    upto = len(vocabulary.encode(ANSWER.split("<tool_call|>")[0])) + 1
    for blocks in cuts(tokens):
        output = AnswerOutput(vocabulary, parser=AnswerParser(), most_calls=1)
        assert [e.index for e in events(output, blocks) if isinstance(e, ToolCallDelta)] == [0]
        assert (output.ended, output.tokens) == (True, upto)


def test_calls_beyond_the_allowed_ones_are_dropped_wherever_tokens_and_markers_are(
    vocabulary, tmp_path
):
    file = tmp_path / "tokenizer.json"
    vocabulary.tokenizer.save(str(file))
    larger = Tokenizer.from_file(str(file))
    larger.add_tokens([":g{"])  # a token in which the first call ends and the second one begins
    larger.save(str(file))
    for each in (vocabulary, Vocabulary(file)):
        tokens = each.encode("Hi<|tool_call>call:f{x:1}, call:g{y:2}<tool_call|>Bye")
        for blocks in cuts(tokens):
            output = AnswerOutput(each, parser=AnswerParser(), most_calls=1)
            assert events(output, blocks) == [
                TextDelta("Hi"),
                ToolCallDelta(0, "f", '{"x":1}'),
                ToolCallEnd(0, "f", '{"x":1}', complete=True),
            ]
            assert output.ended
        output = AnswerOutput(each, parser=AnswerParser())
        ends = [end for end in events(output, [tokens]) if isinstance(end, ToolCallEnd)]
        assert [end.name for end in ends] == ["f", "g"]


def figures_of(block):
    return [TokenLogprobs(token, -0.5) for token in block]


def text_thoughts_and_figures(output, blocks):
    """Returns the answer's text and thoughts, and the tokens that have log-probabilities.

    Asserts that a token comes with its first character.
    """
    text, thoughts, taken = "", "", []
    for block in [*blocks, None]:
        given = output.finish() if block is None else output.feed(block, figures_of(block))
        text += "".join(event.text for event in given if isinstance(event, TextDelta))
        thoughts += "".join(event.text for event in given if isinstance(event, ThinkingDelta))
        taken += [each.token for each in output.take_logprobs()]
        assert output.vocabulary.decode(taken).startswith(text)
    return text, thoughts, taken


def test_a_thought_without_its_opener_counts_like_any_other(vocabulary):
    thought, answer = "thought\nI need 1, 2, 3.<channel|>", "The answer is 4, 5."
    tokens = vocabulary.encode(thought + answer)
    for blocks in cuts(tokens):
        output = AnswerOutput(vocabulary, ("need",), AnswerParser())
        text, thoughts, taken = text_thoughts_and_figures(output, blocks)
        assert (text, thoughts) == (answer, "I need 1, 2, 3.")
        assert output.thinking_tokens == len(vocabulary.encode(thought))
        assert taken == vocabulary.encode(answer)


@pytest.mark.parametrize("stops", [(), ("2, 3",), ("thought\n",), ("thought",)])
@pytest.mark.parametrize("beginning", ["thought\nI need ", "though I need ", "t"])
def test_a_text_that_begins_like_a_thought_is_text_with_log_probabilities(
    vocabulary, beginning, stops
):
    source = beginning + "1, 2, 3, 4, 5"
    ends = [source.index(stop) for stop in stops if stop in source]
    for blocks in cuts(vocabulary.encode(source)):
        output = AnswerOutput(vocabulary, stops, AnswerParser())
        text, thoughts, taken = text_thoughts_and_figures(output, blocks)
        assert (text, thoughts) == (source[: min(ends, default=None)], "")
        assert output.thinking_tokens == 0
        assert vocabulary.decode(taken[:-1]) in text
        assert ends or vocabulary.decode(taken) == source


def test_the_header_of_a_channel_belongs_to_a_thought_but_not_to_a_text(vocabulary):
    thought, answer = "<|channel>analysis\nHm.<channel|>", "<|channel>final\n1, 2, 3<channel|>"
    for blocks in cuts(vocabulary.encode(thought + answer)):
        output = AnswerOutput(vocabulary, parser=AnswerParser())
        text, thoughts, taken = text_thoughts_and_figures(output, blocks)
        assert (text, thoughts) == ("1, 2, 3", "Hm.")
        assert output.thinking_tokens == len(vocabulary.encode(thought))
        assert vocabulary.decode(taken) == "1, 2, 3"


@pytest.mark.parametrize(
    "text", ["<|channel>thought\n<channel|>", "<|channel>thought<channel|>", "<|channel><channel|>"]
)
def test_every_token_of_a_thought_without_text_counts(vocabulary, text):
    thought, spoken = vocabulary.encode(text), vocabulary.encode("Hi")
    for blocks in cuts(thought + spoken):
        output = AnswerOutput(vocabulary, parser=AnswerParser())
        assert events(output, blocks) == [TextDelta("Hi")]
        assert output.thinking_tokens == len(thought)


def test_the_text_of_a_thought_that_is_never_closed_ends_at_a_stop_string(vocabulary):
    tokens = vocabulary.encode("<|channel>thought\n1, 2, 3, 4<turn|>")
    for blocks in cuts(tokens):
        output = AnswerOutput(vocabulary, (", 3",), AnswerParser())
        assert events(output, blocks) == [ThinkingDelta("1, 2, 3, 4"), TextDelta("1, 2")]
        assert (output.stop_string, output.tokens) == (", 3", len(tokens))


def test_a_thought_that_is_cut_off_is_not_the_answer(vocabulary):
    tokens = vocabulary.encode("<|channel>thought\n1, 2")
    output = AnswerOutput(vocabulary, parser=AnswerParser())
    assert [*output.feed(tokens), *output.finish(cut_off=True)] == [ThinkingDelta("1, 2")]
    output = AnswerOutput(vocabulary, parser=AnswerParser(), stop_tokens={tokens[-1]})
    assert events(output, [tokens]) == [ThinkingDelta("1,")]


@pytest.mark.parametrize("with_parser", [False, True])
def test_a_stop_token_is_counted_but_is_no_part_of_the_text(vocabulary, with_parser):
    tokens = vocabulary.encode_literally("red green! blue")
    blue = tokens[-1]
    for blocks in cuts(tokens):
        parser = AnswerParser() if with_parser else None
        output = AnswerOutput(vocabulary, (" green! blue",), parser, stop_tokens={blue})
        text, _, taken = text_thoughts_and_figures(output, blocks)
        assert (text, taken) == ("red green!", tokens[:-1])
        assert (output.stop_string, output.ended, output.tokens) == (None, False, len(tokens))


def test_only_text_tokens_have_log_probabilities(vocabulary):
    tokens = vocabulary.encode(ANSWER)
    output = AnswerOutput(vocabulary, parser=AnswerParser())
    output.feed(tokens, [TokenLogprobs(token, -0.5) for token in tokens])
    assert [each.token for each in output.take_logprobs()] == vocabulary.encode("Wait!")
    assert output.take_logprobs() == []


def test_log_probabilities_come_with_their_text_but_not_for_a_stop_string(vocabulary):
    tokens = vocabulary.encode("1, 2, 3, 4, 5")
    for stop, expected in {
        "3, 4": "1, 2, ",
        ", 9": "1, 2, 3, 4, 5",
        "1": "",
        "2, 3, 4, 5": "1, ",
    }.items():
        for blocks in cuts(tokens):
            output = AnswerOutput(vocabulary, (stop,))
            taken, text = [], ""
            for block in [*blocks, None]:
                if block is None:
                    given = output.finish()
                else:
                    given = output.feed(block, [TokenLogprobs(token, -0.5) for token in block])
                text += "".join(event.text for event in given)
                taken += [each.token for each in output.take_logprobs()]
                # Only a token in which the stop string begins may have text that was not given out.
                assert vocabulary.decode(taken).startswith(text)
                assert len(vocabulary.decode(taken[:-1])) <= max(len(text) - 1, 0)
            assert text == expected
