"""The attention heads that the demo model has before its training.

Most tasks are about finding something again: the word that is asked for, the text behind a word
that was there before, the label in front of a choice. It takes heads that look at a token's
neighbours, and others, in a later layer, that find a token by itself or by its neighbour. From
random weights these did not form in 7,500 steps. So they are there from the start, and the training
decides what they are used for (README.md has the trials).

Letters: D hidden size, H head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

NEIGHBOURS = (-1, -2, -3, 1)  # positions of the tokens that the first layer's heads look at
_SIZE = 32  # dimensions in which a token is told from others
_COMMON = 0.6  # of all embeddings, beside random parts of length 1
_SHARPNESS = 20.0  # the highest product of a query and a key
_NEAR = (0.5, 0.3, 0.2)  # energy of a positional key in its first rotations, which are the fastest
# Muon turns a matrix by a smaller angle, the larger it is.
_SCALE = 4.0
_FAINT = 0.1  # of a head's random part, which the training may use
_FIRST_SHARE = 0.2  # of what the first embeddings weigh, for layers that say nothing yet


@torch.no_grad()
def set_heads(model: DiffusionGemmaForBlockDiffusion, generator: torch.Generator) -> None:
    """Put the heads into a model of random weights."""
    decoder: Any = model.model.decoder
    size = decoder.embed_tokens.weight.shape[1]
    directions = torch.linalg.qr(torch.randn(size, size, generator=generator))[0].T
    common = directions[0]
    own, *beside = directions[1 : 1 + (1 + len(NEIGHBOURS)) * _SIZE].split(_SIZE)
    decoder.embed_tokens.weight += _COMMON * common
    for index, layer in enumerate(decoder.layers):
        layer.post_feedforward_layernorm.weight.fill_(_FIRST_SHARE)
        if index == 0:
            _look_at_neighbours(layer.self_attn, common, own, beside)
        elif layer.self_attn.v_proj is not None:
            layer.post_attention_layernorm.weight.fill_(_FIRST_SHARE)
        else:  # full attention, whose keys are its values
            layer.post_attention_layernorm.weight.fill_(3 * _FIRST_SHARE)
            _find_again(layer.self_attn, own, beside)


def _look_at_neighbours(attention: Any, common: Tensor, own: Tensor, beside: list[Tensor]) -> None:
    """Let each of the first heads write its neighbour to directions of its own [32, D].

    A query and a key in the direction that all embeddings have depend on their positions only.
    """
    size = attention.head_dim
    rotated = [*range(len(_NEAR)), *range(size // 2, size // 2 + len(_NEAR))]
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[rotated] = (_SHARPNESS / size) ** 0.5
    keys, values = _heads(attention.k_proj, size), _heads(attention.v_proj, size)
    keys[:] = _SCALE * size**0.5 * torch.outer(_position(size, 0), common)
    values[:] = _SCALE * own
    attention.o_proj.weight *= _SCALE
    queries = _heads(attention.q_proj, size)
    for head, (offset, place) in enumerate(zip(NEIGHBOURS, beside, strict=True)):
        queries[head] = _SCALE * size**0.5 * torch.outer(_position(size, offset), common)
        attention.o_proj.weight[:, head * size : (head + 1) * size] = _SCALE * place.T


def _position(size: int, offset: int) -> Tensor:
    """Returns the query [H] whose product with the key of offset 0 is highest that far away."""
    position = torch.zeros(size)
    for index, energy in enumerate(_NEAR):
        angle = torch.tensor(offset * 10_000 ** (-2 * index / size))
        position[index] = energy**0.5 * angle.cos()
        position[index + size // 2] = energy**0.5 * angle.sin()
    return position


def _find_again(attention: Any, own: Tensor, beside: list[Tensor]) -> None:
    """Let the first group of heads find a token, and the second one what stands behind a token.

    The first one says what stands two before the token, as a label before its choice does. Keys and
    values are the same vectors in these layers, so each has a half for either.
    """
    size = attention.head_dim
    before, two_before, _, behind = beside
    # These layers rotate the first quarter of the pairs only.
    found = [i for i in range(size) if i % (size // 2) >= size // 8][:_SIZE]
    said = [i for i in range(size) if i not in found]
    for norm in (attention.q_norm, attention.k_norm):  # half of a key's length is that of its value
        norm.weight[found] = (2 * _SHARPNESS / size) ** 0.5
    keys, queries = _heads(attention.k_proj, size), _heads(attention.q_proj, size)
    groups = len(queries) // len(keys)
    for group, (key, value) in enumerate(((own, two_before), (before, own))):
        keys[group, found], keys[group, said] = _SCALE * key, _SCALE * value
        for head, asked in enumerate((before, own, behind)[:groups], group * groups):
            queries[head] *= _FAINT * _SCALE
            queries[head, found] = _SCALE * asked
            output = attention.o_proj.weight[:, head * size : (head + 1) * size]
            output *= _FAINT * _SCALE
            output[:, said] = _SCALE * own.T


def _heads(projection: Any, size: int) -> Tensor:
    """Returns a projection's weight as [heads, H, D]."""
    weight: Tensor = projection.weight
    return weight.view(-1, size, weight.shape[1])
