"""GGUF files of DiffusionGemma, as llama.cpp converts and quantises the model (Q8_0 and Q4_K_M).

Codes and scales keep their values and are packed as `QuantizedWeight` needs them. Q8_0 becomes int8
in groups of 32, Q4_K becomes int4 with zeros in groups of 32, and Q6_K and Q5_0, which Q4_K_M also
uses, become int8. Only the products of Q4_K's two levels of scales are rounded, to float16.

A file holds the language model only. It has no vision tower and no configuration that Transformers
could read.

Sources: conversion/diffusion_gemma.py and gemma.py of llama.cpp for the tensors' names and meaning,
and quants.py of the `gguf` package for the layout of blocks.
"""

import re
from collections.abc import Callable
from math import prod
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import Q4_K
from numpy.typing import NDArray
from torch import Tensor

from engine.sizing.gguf import IDLE
from engine.sizing.gguf_header import GgufError, read_tensors
from engine.weights.errors import UnsupportedFormatError
from engine.weights.quantization import (
    QuantizedWeight,
    UnquantizableError,
    pack,
    stack_experts,
)
from engine.weights.tensor_files import MissingTensorError, Progress

_Type = gguf.GGMLQuantizationType
_IN_FULL = {_Type.F32: torch.float32, _Type.F16: torch.float16, _Type.BF16: torch.bfloat16}

_DECODER, _ENCODER = "model.decoder.", "model.encoder.language_model."
_NAMES = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
    "self_cond_pre_norm.weight": "self_conditioning.pre_norm.weight",
    "self_cond_gate.weight": "self_conditioning.gate_proj.weight",
    "self_cond_up.weight": "self_conditioning.up_proj.weight",
    "self_cond_down.weight": "self_conditioning.down_proj.weight",
}
_LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "layer_output_scale.weight": "layer_scalar",
}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


class GgufWeights:
    """A file's weights, by their names in the unquantised checkpoint."""

    def __init__(self, file: Path, on_progress: Progress) -> None:
        """Raises UnsupportedFormatError if it is not a GGUF file or holds another model."""
        try:
            tensors = read_tensors(file)
        except GgufError as error:
            raise UnsupportedFormatError(str(error)) from error
        self._tensors = {_canonical(tensor.name): tensor for tensor in tensors}
        self._data = np.memmap(file, np.uint8, mode="r")
        self._left = set(self._tensors)
        self._on_progress = on_progress
        self._loaded, self._total = 0, file.stat().st_size

    def read(self, name: str) -> Tensor | QuantizedWeight:
        """Returns a weight as it is stored.

        Raises MissingTensorError if the file does not have it, and UnquantizableError, which names
        the weight, if its type is not supported or its data is incomplete.
        """
        if name not in self._tensors:
            raise MissingTensorError(name)
        kind, data = self._stored(name)
        self._count(name, data.nbytes)
        if kind in _IN_FULL:
            return torch.from_numpy(np.array(data)).view(_IN_FULL[kind])
        if kind not in _UNPACK:
            known = ", ".join(each.name for each in (*_IN_FULL, *_UNPACK))
            raise UnquantizableError(f"{name}: it is stored as {kind.name}; supported: {known}")
        if data.ndim == 2:
            return _UNPACK[kind](data)
        return stack_experts([_UNPACK[kind](expert) for expert in data])

    def pass_over(self, is_idle: Callable[[str], bool]) -> None:
        """Count as read what is not needed: the tensor `IDLE` and names that `is_idle` accepts."""
        for name in sorted(self._left):
            if name == IDLE or is_idle(name):
                self._count(name, self._stored(name)[1].nbytes)

    @property
    def left(self) -> list[str]:
        """The names of the tensors that have not been read."""
        return sorted(self._left)

    def _stored(self, name: str) -> tuple[gguf.GGMLQuantizationType, NDArray[np.uint8]]:
        """Returns a tensor's type and a view of its bytes in the file, [..., bytes of a row].

        Raises UnquantizableError if the type is unknown or the file ends before the tensor.
        """
        tensor = self._tensors[name]
        try:
            kind = _Type(tensor.kind)
            shape = gguf.quant_shape_to_byte_shape(tensor.shape, kind)
            data = self._data[tensor.start :][: prod(shape)]
            if data.size < prod(shape):
                raise ValueError("the file ends before the tensor does. Download it again")
            return kind, data.reshape(shape)
        except ValueError as error:
            raise UnquantizableError(f"{name}: {error}") from error

    def _count(self, name: str, nbytes: int) -> None:
        self._left.discard(name)
        self._loaded += nbytes
        self._on_progress(min(self._loaded, self._total), self._total)


def _canonical(name: str) -> str:
    """Returns a tensor's name in the unquantised checkpoint.

    An unknown name is returned unchanged, so that it is reported as unexpected.
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        return _DECODER + _NAMES[name] if name in _NAMES else name
    layer, last = match.groups()
    if last == "enc_layer_output_scale.weight":
        return f"{_ENCODER}layers.{layer}.layer_scalar"
    return f"{_DECODER}layers.{layer}.{_LAYER_NAMES[last]}" if last in _LAYER_NAMES else name


def _q8_0(rows: NDArray[np.uint8]) -> QuantizedWeight:
    """Read blocks of 32 weights: a float16 scale, then the codes."""
    blocks = _blocks(rows, 34)
    codes = blocks[..., 2:].contiguous().view(torch.int8).flatten(1)
    return QuantizedWeight("int8", codes, _float16(blocks[..., :2]))


def _q4_k(rows: NDArray[np.uint8]) -> QuantizedWeight:
    """Read blocks of 256 weights, which are eight groups of 32.

    A block begins with two float16 numbers that scale the groups' scales and zeros. Eight scales
    and eight zeros of 6 bits follow, then the codes. In each 32 bytes of codes the low halves are
    one group and the high halves the next.
    """
    blocks = _blocks(rows, 144)
    packed = blocks[..., 16:].unflatten(-1, (4, 32))  # type: ignore[no-untyped-call]  # torch's
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-2).flatten(1)  # [N, K]
    levels = _float16(blocks[..., :4].unflatten(-1, (2, 2))).float()  # type: ignore[no-untyped-call]
    sixes = blocks[..., 4:16].reshape(-1, 12).numpy()
    scales, zeros = (
        torch.from_numpy(each).view(*blocks.shape[:2], 8).float() * levels[..., index, None]
        for index, each in enumerate(Q4_K.get_scale_min(sixes))
    )
    return QuantizedWeight("int4", pack(codes), scales.flatten(1).half(), zeros.flatten(1).half())


def _q6_k(rows: NDArray[np.uint8]) -> QuantizedWeight:
    """Read blocks of 256 weights: codes in two parts, 16 scales of 8 bits and their own scale.

    That second-level scale is float16.
    """
    blocks = _blocks(rows, 210)
    scales = blocks[..., 192:208].contiguous().view(torch.int8).float()
    return _counted(rows, _Type.Q6_K, (scales * _float16(blocks[..., 208:]).float()[..., None]))


def _q5_0(rows: NDArray[np.uint8]) -> QuantizedWeight:
    """Read blocks of 32 weights: a float16 scale, then codes in two parts."""
    return _counted(rows, _Type.Q5_0, _float16(_blocks(rows, 22)[..., :2]).float())


def _counted(
    rows: NDArray[np.uint8], kind: gguf.GGMLQuantizationType, scales: Tensor
) -> QuantizedWeight:
    """Returns an int8 weight with the codes of a type whose codes have fewer than 8 bits.

    The `gguf` package dequantises the rows, and division by the scales gives the codes. So the
    layout of such codes need not be implemented here.
    """
    values = torch.from_numpy(gguf.dequantize(rows, kind))  # [N, K] float32
    scales = scales.flatten(1)  # [N, G]
    groups = values.view(*scales.shape, -1) / torch.where(scales == 0, 1.0, scales)[..., None]
    return QuantizedWeight("int8", groups.round().to(torch.int8).flatten(1), scales)


def _blocks(rows: NDArray[np.uint8], size: int) -> Tensor:
    """Split rows into blocks: [N, bytes of a row] -> [N, blocks, size]."""
    return torch.from_numpy(np.array(rows)).view(rows.shape[0], -1, size)


def _float16(pairs: Tensor) -> Tensor:
    """Join pairs of bytes: [..., 2] uint8 -> [...] float16."""
    return pairs.contiguous().view(torch.float16)[..., 0]


# `engine/sizing/gguf.py` states how large each type is in this form.
_UNPACK = {_Type.Q8_0: _q8_0, _Type.Q4_K: _q4_k, _Type.Q6_K: _q6_k, _Type.Q5_0: _q5_0}
