"""Runs Triton kernels on a GPU although their arguments lie on the CPU.

Without a GPU the tests of kernels run on Triton's interpreter, with tensors on the CPU. With a GPU
the same tests run the compiled kernels: each launch copies its tensors to the GPU and back.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Run = Callable[..., Any]  # a kernel's method that launches it


def launched_on(device: torch.device, run: Run) -> Run:
    """Returns `run` with every tensor on the CPU replaced by a copy on `device`.

    What the kernel writes into the copies is copied back. Tensors that share memory share it on the
    device too, and keep their strides.
    """

    @torch.inference_mode()
    def launch(kernel: object, *args: Any, **options: Any) -> Any:
        memory: dict[int, tuple[Tensor, Tensor]] = {}  # by address: the bytes, and their copy

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.device.type != "cpu":
                return value
            storage = value.untyped_storage()
            if storage.data_ptr() not in memory:
                held = torch.empty(0, dtype=torch.uint8).set_(storage)
                memory[storage.data_ptr()] = held, held.to(device, copy=True)
            _held, copy = memory[storage.data_ptr()]
            like = torch.empty(0, dtype=value.dtype, device=device)
            return like.set_(
                copy.untyped_storage(), value.storage_offset(), value.shape, value.stride()
            )

        result = run(
            kernel, *map(moved, args), **{name: moved(value) for name, value in options.items()}
        )
        for held, copy in memory.values():
            held.copy_(copy)
        return result

    return launch
