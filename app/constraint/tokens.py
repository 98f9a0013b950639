"""A vocabulary as a trie: the bytes of its tokens, and its control tokens as symbols of their own.

An automaton reads bytes, which are the symbols 0 to 255, and control tokens, which are the symbols
behind them. Tokens that no constraint may use have no symbols. They are the control tokens without
a name here, and those that the vocabulary only reserves: they are not marked as special, but no
text contains them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.prompting.vocabulary import Vocabulary

_RESERVED = re.compile(
    r"<unused\d+>|<mask>|\[multimodal\]|\[@BOS@\]|<\d*mass>|<(?:start|end)_of_\w+>"
    r"|<\w*soft_token>|<pad>|<bos>|<eos>|<unk>"
)


@dataclass(frozen=True, eq=False)
class Level:
    """The trie's nodes of one depth: the index of each parent one level up, and the byte."""

    parent: NDArray[np.int32]
    byte: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class TokenTrie:
    """The tokens of a vocabulary of `size`, and the nodes that they end at.

    `ends[depth]` are pairs of tokens and of nodes of `levels[depth]`. `controls` maps the names of
    control tokens to their ids.
    """

    size: int
    levels: tuple[Level, ...]
    ends: tuple[tuple[NDArray[np.int32], NDArray[np.int32]], ...]
    controls: Mapping[str, int]


def token_trie(vocabulary: Vocabulary, size: int) -> TokenTrie:
    """Returns the trie of a vocabulary, for a model whose logits have `size` entries."""
    named = {name: token for token, name in vocabulary.controls.items() if token < size}
    return trie_of(token_texts(vocabulary, size), size, named)


def token_texts(vocabulary: Vocabulary, size: int) -> dict[int, bytes]:
    """Returns the bytes of each token that stands for text."""
    return {
        token: text
        for token, text in vocabulary.all_bytes().items()
        if token < size and text and token not in vocabulary.controls and not _is_reserved(text)
    }


def trie_of(texts: Mapping[int, bytes], size: int, controls: Mapping[str, int]) -> TokenTrie:
    """Returns the trie of tokens whose bytes are not empty."""
    ordered = sorted(texts, key=texts.__getitem__)
    lengths = np.array([len(texts[token]) for token in ordered], np.int32)
    joined = np.frombuffer(b"".join(texts[token] for token in ordered), np.uint8)
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
    ids = np.array(ordered, np.int32)
    node = np.zeros(len(ordered), np.int32)  # the root, which is no node of a level
    levels, ends = [], []
    left = np.arange(len(ordered))
    depth = 0
    while left.size:
        byte = joined[starts[left] + depth]
        parent = node[left]
        # Sorted texts with one beginning stand together.
        new = np.ones(len(left), bool)
        new[1:] = (parent[1:] != parent[:-1]) | (byte[1:] != byte[:-1])
        node[left] = np.cumsum(new) - 1
        levels.append(Level(parent[new], byte[new]))
        depth += 1
        over = lengths[left] == depth
        ends.append((ids[left[over]], node[left[over]]))
        left = left[~over]
    return TokenTrie(size, tuple(levels), tuple(ends), dict(controls))


def _is_reserved(text: bytes) -> bool:
    return _RESERVED.fullmatch(text.decode(errors="replace")) is not None
