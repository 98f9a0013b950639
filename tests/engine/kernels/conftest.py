"""Triton's interpreter, mended where it computes something else than a GPU."""

import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder


@pytest.fixture(autouse=True)
def numbers_in_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.9's interpreter multiplies the bit patterns of bfloat16 matrices."""
    create_dot = InterpreterBuilder.create_dot

    def mended(self, a, b, *rest):
        def number(handle):
            if handle.dtype.scalar == tl.bfloat16:
                return self.create_fp_ext(handle, tl.float32)
            return handle

        return create_dot(self, number(a), number(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", mended)
