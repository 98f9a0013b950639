"""Text from tokens: the same whatever way the tokens are cut into blocks."""

import pytest
from tokenizers import Tokenizer

from app.output import TextOutput
from demo.tokenizer import SPECIAL_TOKENS, build_tokenizer

TEXTS = [
    "Hello! How can I help you?",
    "  two spaces, a tab\t and\n\nlines  ",
    "naïve 你好 😀👩‍👩‍👧 é end",
    "1, 2, 3, 4, 5, 6",
    "STOP STO STOPP S T O P",
    "",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer(0, examples=4000).backend_tokenizer


def said(tokenizer, blocks, stops=()):
    output = TextOutput(tokenizer, stops)
    text = "".join([output.feed(block) for block in blocks])
    return text + output.finish(), output


def cuts(tokens):
    """Whole, one token at a time, and cut in two at every place."""
    yield [tokens]
    yield [[token] for token in tokens]
    for at in range(len(tokens)):
        yield [tokens[:at], tokens[at:]]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_the_same_however_it_is_cut(tokenizer, text):
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    for blocks in cuts(tokens):
        assert said(tokenizer, blocks)[0] == text


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("stops", [("STOP",), ("你",), ("4, 5", "3, 4, 5"), ("\n",), ("can I",)])
def test_nothing_of_a_stop_string_leaks_however_it_is_cut(tokenizer, text, stops):
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    ends = [text.index(stop) for stop in stops if stop in text]
    for blocks in cuts(tokens):
        shown, output = said(tokenizer, blocks, stops)
        assert shown == (text[: min(ends)] if ends else text)
        assert output.stopped == bool(ends)


def test_tokens_are_counted_up_to_the_one_that_completes_the_stop_string(tokenizer):
    tokens = tokenizer.encode("one two three four", add_special_tokens=False).ids
    upto = tokenizer.encode("one two", add_special_tokens=False).ids
    _, output = said(tokenizer, [tokens], (" two",))
    assert output.tokens == len(upto)


def test_what_may_become_a_stop_string_is_held_back_until_it_cannot(tokenizer):
    output = TextOutput(tokenizer, (" green!",))
    red, green, blue = tokenizer.encode("red green blue", add_special_tokens=False).ids
    assert output.feed([red, green]) == "red"
    assert output.feed([blue]) == " green blue"


def test_control_tokens_have_no_text_but_count(tokenizer):
    end = SPECIAL_TOKENS["<turn|>"]
    text, output = said(tokenizer, [[*tokenizer.encode("hello").ids, end]])
    assert text == "hello"
    assert output.tokens == len(tokenizer.encode("hello").ids) + 1


def test_a_cut_character_comes_out_once_as_the_replacement_character(tokenizer):
    tokens = tokenizer.encode("a😀", add_special_tokens=False).ids
    assert said(tokenizer, [tokens[:-1]])[0] == "a\ufffd"


def test_bytes_that_are_no_utf_8_do_not_spoil_what_stands_around_them(tokenizer):
    bad = tokenizer.token_to_id("<0xFF>")
    tokens = [*tokenizer.encode("你").ids, bad, *tokenizer.encode("好!").ids]
    for blocks in cuts(tokens):
        assert said(tokenizer, blocks)[0] == "你\ufffd好!"
