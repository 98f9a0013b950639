"""Runs the PTX of the kernels on Triton's interpreter, which has no inline assembly of its own.

It knows the few instructions that the kernels use, as the PTX ISA describes them.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import torch
from triton.runtime.interpreter import TensorHandle

_STATEMENT = re.compile(r"^([a-z0-9_.]+)\s+(.*)$")
_OPERAND = re.compile(r"\{[^}]*\}|[^,\s]+")
_ONES = np.uint32(0xFFFFFFFF)


@dataclass
class Result:
    """The tensors that a block of assembly returns."""

    handles: list[TensorHandle]

    def get_result(self, index):
        return self.handles[index]


def create_inline_asm(_builder, asm, constraints, values, types, _is_pure, pack):
    """Returns the outputs of `asm` for tensors of which `pack` elements are in its operands."""
    shape = values[0].data.shape
    outputs = [each.startswith("=") for each in constraints.split(",")]
    machine = Machine()
    number = sum(outputs)
    for value in values:
        for register in _registers(value.data, pack):
            machine.registers[f"${number}"] = register
            number += 1
    machine.run(asm)
    each = sum(outputs) // len(types)
    handles = []
    for index, made in enumerate(types):
        operands = [machine.registers[f"${index * each + part}"] for part in range(each)]
        halves = np.stack(operands, -1).view(np.uint16).reshape(-1)
        handles.append(TensorHandle(halves[: np.prod(shape)].reshape(shape), made.scalar))
    return Result(handles)


def _registers(data, pack):
    """Returns the 32-bit operands of a tensor, for all of its parts of `pack` elements at once."""
    flat = np.ascontiguousarray(data).reshape(-1)
    words = flat.view(np.uint8).reshape(-1, pack * flat.itemsize)
    return words.copy().view(np.uint32).T


@dataclass
class Machine:
    """The values of the registers by name, each for all parts of the tensors."""

    registers: dict[str, np.ndarray] = field(default_factory=dict)

    def run(self, asm):
        for line in asm.split(";"):
            text = line.strip().removeprefix("{\n").strip("} \n" if line.strip() == "}" else " \n")
            if text and not text.startswith("."):
                name, operands = _STATEMENT.match(text).groups()
                self.execute(name, _OPERAND.findall(operands))

    def value(self, operand):
        if operand in self.registers:
            return self.registers[operand]
        return np.uint32(int(operand, 0))

    def execute(self, name, operands):
        target, sources = operands[0], [self.value(each) for each in operands[1:]]
        match name:
            case "mov.b32" if target.startswith("{"):
                low, high = _OPERAND.findall(target.strip("{}"))
                self.registers[low] = sources[0] & np.uint32(0xFFFF)
                self.registers[high] = sources[0] >> np.uint32(16)
                return
            case "mov.b32":
                result = sources[0]
            case "prmt.b32":
                result = permuted(*sources)
            case "lop3.b32":
                result = looked_up(*sources)
            case "and.b32":
                result = sources[0] & sources[1]
            case "shr.u32":
                result = sources[0] >> sources[1]
            case "shl.b32":
                result = sources[0] << sources[1]
            case "fma.rn.bf16x2":
                a, b, c = map(bfloat16_pairs, sources)
                result = packed_bfloat16(a * b + c)
            case "cvt.rn.f16x2.e4m3x2":
                result = packed_float16(e4m3_pairs(sources[0]))
            case "cvt.f32.f16":
                result = sources[0].astype(np.uint16).view(np.float16).astype(np.float64)
            case "cvt.rn.bf16x2.f32":
                result = packed_bfloat16(np.stack([sources[1], sources[0]], -1))
            case _:
                raise NotImplementedError(name)
        self.registers[target] = result


def permuted(a, b, selector):
    """Returns `prmt.b32` in its default mode, without the replication of signs."""
    a, b = np.broadcast_arrays(a, b)
    eight = [(each >> np.uint32(8 * byte)) & np.uint32(255) for each in (a, b) for byte in range(4)]
    result = np.zeros_like(a)
    for byte in range(4):
        chosen = (int(selector) >> (4 * byte)) & 15
        assert chosen < 8
        result |= eight[chosen] << np.uint32(8 * byte)
    return result


def looked_up(a, b, c, table):
    """Returns `lop3.b32`: the bit of the table that the bits of a, b and c choose."""
    result = np.zeros_like(np.broadcast_arrays(a, b, c)[0])
    for index in range(8):
        if int(table) >> index & 1:
            bits = [each if index & bit else each ^ _ONES for each, bit in ((a, 4), (b, 2), (c, 1))]
            result |= bits[0] & bits[1] & bits[2]
    return result


def bfloat16_pairs(words):
    """Returns the two numbers of each word, [.., 2] float64."""
    words = np.atleast_1d(words).astype(np.uint32)
    bits = np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], -1)
    return bits.view(np.float32).astype(np.float64)


def packed_bfloat16(pairs):
    """Round pairs of float32 numbers to the nearest bfloat16."""
    single = pairs.astype(np.float32)
    assert np.array_equal(single, pairs, equal_nan=True)
    rounded = torch.from_numpy(single).bfloat16().view(torch.int16).numpy()
    return np.ascontiguousarray(rounded).view(np.uint32)[..., 0]


def e4m3_pairs(words):
    both = np.stack([words & np.uint32(255), words >> np.uint32(8)], -1).astype(np.uint8)
    return torch.from_numpy(both).view(torch.float8_e4m3fn).double().numpy()


def packed_float16(pairs):
    return np.ascontiguousarray(pairs.astype(np.float16)).view(np.uint32)[..., 0]
