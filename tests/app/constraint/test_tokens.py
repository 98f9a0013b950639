import json

import pytest
from tokenizers import Tokenizer

from app.constraint.tokens import token_texts, token_trie
from app.prompting.vocabulary import Vocabulary
from engine.config import DEMO_MODEL_PATH

# The parts of Gemma's tokenizer that matter: spaces as U+2581, bytes, and reserved tokens.
_WORDS = [
    "<pad>",
    "<eos>",
    "<unk>",
    "<mask>",
    "[multimodal]",
    "<unused0>",
    "<unused17>",
    "▁▁▁",
    "\n\n",
]
_WORDS += [
    "<|tool_call>",
    "<turn|>",
    "▁the",
    "é",
    "<table>",
    "<0x41>",
    "<0xC3>",
    "a",
    "<start_of_image>",
]
_SPECIAL = {"<pad>", "<eos>", "<unk>", "<turn|>"}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    added = [word for word in _WORDS if word.startswith(("<", "[")) and not word.startswith("<0x")]
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    data = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": _WORDS.index(word), "content": word, "special": word in _SPECIAL,
                "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            }
            for word in added
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "vocab": {word: index for index, word in enumerate(_WORDS)},
            "merges": [], "unk_token": "<unk>", "byte_fallback": True,
        },
    }  # fmt: skip
    file.write_text(json.dumps(data))
    Tokenizer.from_file(str(file))
    return Vocabulary(file)


def test_tokens_of_text_have_the_bytes_that_an_answer_shows(vocabulary):
    texts = token_texts(vocabulary, len(_WORDS))
    assert {_WORDS[token]: text for token, text in texts.items()} == {
        "▁▁▁": b"   ", "\n\n": b"\n\n", "▁the": b" the", "é": "é".encode(), "<table>": b"<table>",
        "<0x41>": b"A", "<0xC3>": b"\xc3", "a": b"a",
    }  # fmt: skip
    for token, text in texts.items():
        assert vocabulary.token_bytes(token) == text


def test_control_tokens_have_names_and_tokens_beyond_the_model_are_left_out(vocabulary):
    trie = token_trie(vocabulary, 11)
    assert trie.controls == {
        "<pad>": 0, "<eos>": 1, "<unk>": 2, "<|tool_call>": 9, "<turn|>": 10,
    }  # fmt: skip
    assert sorted(token for tokens, _ in trie.ends for token in tokens.tolist()) == [7, 8]


def test_the_trie_spells_every_token_of_the_demo_model():
    vocabulary = Vocabulary(DEMO_MODEL_PATH / "tokenizer.json")
    size = 1 + max(vocabulary.tokenizer.get_vocab().values())
    trie = token_trie(vocabulary, size)
    before = [b""]
    spelled = {}
    for level, (tokens, nodes) in zip(trie.levels, trie.ends, strict=True):
        pairs = zip(level.parent.tolist(), level.byte.tolist(), strict=True)
        before = [before[parent] + bytes([byte]) for parent, byte in pairs]
        spelled |= {
            token: before[node] for token, node in zip(tokens.tolist(), nodes.tolist(), strict=True)
        }
        assert len(set(before)) == len(before)
    assert spelled == token_texts(vocabulary, size)
