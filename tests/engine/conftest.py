"""Runs the kernels on a GPU if there is one, and otherwise on Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch

from tests.engine.gpu_launches import launched_on


@pytest.fixture(scope="session", autouse=True)
def kernels_on_the_gpu() -> Iterator[None]:
    if not torch.cuda.is_available():
        yield
        return
    # Imported here, because only tests of kernels need triton.
    from triton.runtime.jit import JITFunction

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", launched_on(torch.device("cuda"), JITFunction.run))
        yield
