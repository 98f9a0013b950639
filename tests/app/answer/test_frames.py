"""What a client sees of a draft."""

import pytest

from app.answer.figures import Figures
from app.answer.frames import Frame
from app.answer.output import TokenText
from app.prompting.vocabulary import Vocabulary
from demo.tokenizer import build_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(build_tokenizer(0, examples=4000), folder)
    return Vocabulary(folder / "tokenizer.json")


def sent(vocabulary, tokens, begun=b"", **options):
    frame = Frame(0, Figures(1), begun, 2, 3, tokens, [True] * len(tokens), 0.1234567, **options)
    return frame.sent(vocabulary)


def test_a_draft_has_the_text_of_each_token(vocabulary):
    tokens = vocabulary.encode_literally("one two three")
    shown = sent(vocabulary, tokens)
    assert shown == {
        "block": 2,
        "step": 3,
        "text": "one two three",
        "tokens": [vocabulary.decode([token]) for token in tokens],
        "accepted": [True] * len(tokens),
        "entropy": 0.123457,
    }
    ended = {"settled": [1, 3], "stopped": "stable"}
    assert sent(vocabulary, tokens, **ended) == {**shown, **ended}


def test_control_tokens_keep_their_position_but_have_no_text(vocabulary):
    turn = vocabulary.tokenizer.token_to_id("<turn|>")
    one, two = vocabulary.encode_literally("one")[0], vocabulary.encode_literally("two")[0]
    assert sent(vocabulary, [turn, one, turn, two, turn])["tokens"][::2] == ["", "", ""]


EURO = "€".encode()


def byte_tokens(vocabulary, raw):
    return [vocabulary.tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in raw]


def test_a_character_of_several_tokens_belongs_to_its_last_one(vocabulary):
    shown = sent(vocabulary, byte_tokens(vocabulary, EURO))
    assert (shown["tokens"], shown["text"]) == (["", "", "€"], "€")


def test_the_text_is_the_tokens_joined_whatever_bytes_there_are(vocabulary):
    word = vocabulary.encode_literally("one")
    for cut in range(1, 3):
        begun = byte_tokens(vocabulary, EURO[:cut])
        shown = sent(vocabulary, [*begun, *word, *begun])
        assert "".join(shown["tokens"]) == shown["text"] == "\ufffdone\ufffd"
        assert len(shown["tokens"]) == 2 * cut + len(word)


def test_a_character_that_the_block_before_has_begun_is_completed(vocabulary):
    for cut in range(1, 3):
        text = TokenText(vocabulary)
        for token in byte_tokens(vocabulary, EURO[:cut]):
            text.add(token)
        assert text.begun == EURO[:cut]
        shown = sent(vocabulary, byte_tokens(vocabulary, EURO[cut:]), text.begun)
        assert shown["text"] == "€"


def test_a_draft_without_tokens_has_an_empty_text(vocabulary):
    assert sent(vocabulary, [], EURO[:1])["text"] == ""
