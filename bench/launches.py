"""Counts the kernels that a GPU would launch for the network's part of a denoising step.

The pass runs on the meta device in the released dimensions: shapes are computed, numbers are not,
and no kernel runs. Each operation of PyTorch counts for as many launches as its CUDA code makes,
and each launch of a Triton kernel counts one. What cuBLAS does is not known here: a product counts
one, and is two if cuBLAS splits it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig, Rope
from engine.model.kv_cache import new_caches
from engine.model.rows import Segment
from engine.model.static_pass import Form, StaticPass
from engine.sizing.dimensions import Dimensions
from engine.weights.quantization import Kernel

# The launches of PyTorch 2.13's CUDA code, where they are not one. Files are in ATen/native/cuda.
_SEVERAL = {
    **dict.fromkeys(
        ("aten.sort", "aten.argsort"), 3
    ),  # Sort.cpp: up to 4,096 numbers are copied, numbered, and sorted in a block
    "aten.topk": 2,  # TensorTopK.cu: up to 10,000 numbers a row are gathered by radix, then sorted
    "aten._grouped_mm": 2,  # GroupMM.cu: one prepares the groups' addresses, then CUTLASS
}
_NONE = {  # they allocate, or only say how a tensor is looked at
    *("aten.empty", "aten.empty_like", "aten.new_empty", "aten.empty_strided", "aten.detach"),
    *("aten._reshape_alias", "aten.lift_fresh", "aten._unsafe_view", "aten.empty_permuted"),
}


def count_launches(work: Callable[[], object]) -> Counter[str]:
    """Run `work` on meta tensors, and return the number of launches by operation or kernel."""
    counts: Counter[str] = Counter()
    inside = False  # an operation that is counted as a whole

    class Dispatched(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            name, result = str(func).rsplit(".", 1)[0], func(*args, **(kwargs or {}))
            empty = isinstance(result, Tensor) and not result.numel()
            if not (inside or func.is_view or empty or name in _NONE):
                counts[name] += _SEVERAL.get(name, 1)
            return result

    class Called(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal inside
            if func not in (F.rms_norm, torch.rms_norm) or inside:
                return func(*args, **(kwargs or {}))
            # One kernel on a GPU (layer_norm_kernel.cu), several operations on other devices.
            counts["aten._fused_rms_norm"] += 1
            inside = True
            try:
                return func(*args, **(kwargs or {}))
            finally:
                inside = False

    with _counted_kernels(counts), Called(), Dispatched():
        work()
    return counts


@contextmanager
def _counted_kernels(counts: Counter[str]) -> Iterator[None]:
    """Count the launches of Triton kernels instead of making them, as on an H100 or H200.

    Attention splits its entries by the number of processors, and combines the parts by a launch.
    """
    # Imported here because triton is slow to import, and not installed everywhere.
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    from engine.kernels import prefix_attention
    from engine.kernels.target import Target

    def run(kernel: Any, *_args: object, **_options: object) -> None:
        counts[f"triton.{kernel.fn.__module__.rsplit('.', 1)[-1]}"] += 1

    hopper = Target((9, 0), multiprocessors=132, shared_bytes=227 * 1024)
    with (
        mock.patch.object(prefix_attention, "target_of", return_value=hopper),
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(InterpretedFunction, "run", run),
    ):
        yield


def step_launches(
    dimensions: Dimensions,
    *,
    canvases: int,
    product: Kernel,
    layer_kernel: Kernel = "triton",
    commits: bool = False,
) -> Counter[str]:
    """Returns the launches of one pass of canvases in 16 bits, with Triton's attention.

    `product` is the kernel of the experts' products, and `layer_kernel` that of the layers' other
    parts. If `commits` is set, each sequence commits a block before its canvas.
    """
    device, dtype = torch.device("meta"), torch.bfloat16
    # The numbers below change no launch.
    config = ModelConfig(dimensions, 1e-6, 30.0, Rope(1e4), Rope(1e6), bidirectional_images=False)
    with device:
        model = DiffusionGemma(config).to(dtype)
    model.__dict__["embedding_scale"] = 1.0  # otherwise a tensor's value is read, once
    model.attention_kernel = "triton"
    for layer in model.each_layer():
        layer.kernel, layer.experts.kernel = layer_kernel, product
    length = dimensions.canvas_length
    caches = new_caches(
        canvases,
        dimensions.layers,
        capacity=8192,
        pass_tokens=2 * length,
        dtype=dtype,
        device=device,
    )
    tokens = torch.zeros(length, dtype=torch.int64, device=device)
    soft = torch.zeros(length, dimensions.hidden_size, dtype=dtype, device=device)
    with torch.inference_mode():
        static = StaticPass(model, canvases=canvases)
        segments = []
        for cache in caches:
            if commits:
                segments.append(Segment(cache, tokens, causal=True))
            start = length if commits else 0
            segments.append(Segment(cache, tokens, causal=False, start=start))
        static.fill(segments, [soft] * canvases)
        forms = tuple(map(Form.of, segments))
        return count_launches(lambda: static.run(forms, static.length(forms)))
