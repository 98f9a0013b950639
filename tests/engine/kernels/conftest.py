"""Corrects Triton's interpreter where its results differ from a GPU's."""

import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

from tests.engine.kernels import ptx


@pytest.fixture(autouse=True)
def numbers_in_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply numbers: Triton 3.9's interpreter multiplies bfloat16 matrices' bit patterns."""
    create_dot = InterpreterBuilder.create_dot

    def corrected(self, a, b, *others):
        def number(handle):
            if handle.dtype.scalar == tl.bfloat16:
                return self.create_fp_ext(handle, tl.float32)
            return handle

        return create_dot(self, number(a), number(b), *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", corrected)


@pytest.fixture(autouse=True)
def inline_assembly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run PTX, which Triton's interpreter refuses."""
    monkeypatch.setattr(InterpreterBuilder, "create_inline_asm", ptx.create_inline_asm)
