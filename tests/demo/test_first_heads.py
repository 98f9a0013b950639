"""The attention heads that the demo model's training starts with."""

import pytest
import torch
from torch.nn import functional as F

from demo.batches import pool_of_batches
from demo.first_heads import NEIGHBOURS
from demo.network import Network, new_model
from demo.tokenizer import VOCAB_SIZE, build_tokenizer
from demo.train import check_forward

LETTERS, SUN, TREE, RIVER = (1000, 1001, 1002), 1100, 1101, 1102


@pytest.fixture(scope="module")
def model():
    return new_model(0, heads=True)


@pytest.fixture
def attention(model, monkeypatch):
    """Returns a function that gives each layer's attention [H, T, S] in a pass over tokens [T]."""
    seen = []
    attend = F.scaled_dot_product_attention

    def spy(queries, keys, values, *, attn_mask, scale):
        scores = (queries @ keys.mT * scale).masked_fill(~attn_mask, -torch.inf)
        seen.append(scores.softmax(-1)[0])
        return attend(queries, keys, values, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    network = Network(model)

    @torch.no_grad()
    def by_layer(prefix, canvas):
        encoded = torch.tensor([prefix])
        _, cache = network.encode(encoded)
        seen.clear()
        network.decode(torch.tensor([canvas]), torch.tensor([len(prefix)]), cache, None)
        return list(seen)

    return by_layer


def test_the_first_layer_looks_at_each_neighbour(attention):
    tokens = torch.randint(500, 1500, (2, 40), generator=torch.Generator().manual_seed(0)).tolist()
    first = attention(*tokens)[0]
    positions = torch.arange(5, 35)
    for head, offset in enumerate(NEIGHBOURS):
        assert first[head, positions, 40 + positions + offset].mean() > 0.6


def test_a_word_finds_its_choice_by_the_token_before(attention):
    """The first head asks for the token before, and the second one for the token itself."""
    prefix = [7, LETTERS[0], 8, SUN, LETTERS[1], 8, TREE, LETTERS[2], 8, RIVER]
    full = attention(prefix, [TREE, 900, SUN, 901, RIVER, 902])[2]
    choices = torch.tensor([3, 6, 9])
    for slot, choice in ((1, 1), (3, 0), (5, 2)):
        assert full[0, slot, choices].argmax() == choice
        assert full[1, slot - 1, choices].argmax() == choice


def test_what_stands_behind_a_token_is_found(attention):
    prefix = [7, SUN, 1200, 8, TREE, 1201, 9, RIVER, 1202]
    full = attention(prefix, [TREE, 900, SUN, 901, RIVER, 902])[2]
    behind = torch.tensor([2, 5, 8])
    for slot, place in ((1, 1), (3, 0), (5, 2)):
        assert full[3, slot, behind].argmax() == place


def test_the_training_forward_with_these_heads_is_that_of_transformers(model, monkeypatch):
    monkeypatch.setattr("demo.batches.BLOCKS", 2)
    monkeypatch.setattr("demo.batches.POOL_BATCHES", 1)
    batches = pool_of_batches(
        build_tokenizer(0, examples=4000), VOCAB_SIZE, 0, 0, {"edit": 1.0}, narrow_share=0.0
    )
    check_forward(model, next(batches))
