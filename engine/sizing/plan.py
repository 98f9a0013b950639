"""Plan the device memory of a configuration, and find configurations that fit.

Plain Python: the arithmetic uses a model's dimensions only, before anything is downloaded or
allocated. Weights and KV caches are counted to the byte. Activations, CUDA graphs and libraries are
upper estimates. The configuration that `nearest` returns always fits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from engine.config import EngineConfig, Formats
from engine.sizing.activations import (
    PassShape,
    activation_bytes,
    network_bytes,
    rope_elements,
    split_bytes,
)
from engine.sizing.dimensions import Dimensions
from engine.sizing.kv import cache_elements, pass_tokens
from engine.sizing.weights import Part, weight_bytes, widest_elements

# Graphs that are kept at the same time. With `max_active` 3 there are 31 if requests speculate.
MOST_GRAPHS = 32
# Bytes per element of a quantised matrix that is widened to 32 bits, for its code and its value. On
# a GPU this happens at the start, when the kernels are tried, and in every product if they fail.
_WIDENING_BYTES = 12
# An estimate, not measured: the nodes and arguments of a graph of some hundred launches.
_GRAPH_BYTES = 8 * 2**20
# An estimate, not measured: the context, compiled kernels and the allocator's fragments.
_LIBRARIES_BYTES = 512 * 2**20
# torch gives cuBLAS and cuBLASLt a workspace each for every stream that makes products: 32 MiB from
# compute capability 9.0 on and 8 MiB before (parseChosenWorkspaceSize in CublasHandlePool.cpp).
_WORKSPACES_BYTES = 2 * 32 * 2**20
_LEAST_CONTEXT = 4096  # `nearest` reduces the weights' bits before it proposes a shorter context
_CONTEXT_STEP = 1024  # between proposed contexts
_PREFIX_STEP_MIB = 256  # between proposed budgets for kept prefixes
_MOST_CANVASES = 64  # for more canvases memory is not the limit
# The formats that `nearest` proposes, from the largest weights to the smallest.
_FORMATS = (
    Formats("int8", "int8"),
    Formats("int4"),
    Formats("int4", "int8"),
    Formats("int4", "int8", "int8"),
    Formats("int4", "int4", "int8"),
)


class DoesNotFitError(RuntimeError):
    """The configuration needs more memory than the device has."""


@dataclass(frozen=True)
class Plan:
    """The device memory that a configuration needs. All values but the first two are in bytes."""

    context_tokens: int
    canvases: int
    weights: dict[Part, int]
    kv_token: int  # one KV cache grows by this for each additional token of context
    kv_slot: int  # one KV cache
    activations: int
    graphs: int
    libraries: int
    prefix_cache: int

    @property
    def weights_total(self) -> int:
        return sum(self.weights.values())

    @property
    def kv(self) -> int:
        return self.kv_slot * self.canvases

    @property
    def total(self) -> int:
        return (
            self.weights_total
            + self.kv
            + self.activations
            + self.graphs
            + self.libraries
            + self.prefix_cache
        )

    def __str__(self) -> str:
        parts = {
            "weights": self.weights_total,
            f"{self.canvases} x KV of {self.context_tokens} tokens": self.kv,
            "activations": self.activations,
            "CUDA graphs": self.graphs,
            "libraries": self.libraries,
            "kept prefixes": self.prefix_cache,
        }
        return ", ".join(f"{name} {gb(value)}" for name, value in parts.items() if value)


def make_plan(dimensions: Dimensions, config: EngineConfig, *, cuda: bool) -> Plan:
    """Returns the memory that the engine needs with this configuration.

    The configuration's device profile must have been applied before.
    """
    d = dimensions
    element_bytes = _element_bytes(config, cuda=cuda)
    context = min(config.max_context, d.max_positions)
    room = pass_tokens(
        context=context,
        canvas=d.canvas_length,
        prefill_chunk=config.prefill_chunk,
        image_tokens=d.image_tokens,
    )

    def slot(capacity: int) -> int:
        return element_bytes * cache_elements(d.layers, capacity=capacity, pass_tokens=room)

    shape = PassShape(
        encoded=room - d.canvas_length,
        canvases=config.max_active,
        speculates=config.speculate,
        context=context + room,
    )
    graphs = 0
    if cuda and config.cuda_graphs == "auto":
        # A captured pass has a canvas of each sequence, and of one sequence a block to commit, or a
        # draft and the next block's canvas. The buffers would serve three segments of each, two of
        # which are canvases.
        segments = config.max_active + (2 if config.speculate else 1)
        static = config.max_active * d.canvas_length * element_bytes
        static *= 2 * d.hidden_size + 3 * rope_elements(d)
        # Their pool holds the layers' tensors beside those of the passes without a graph, and the
        # capture stream has workspaces of its own.
        pool = network_bytes(d, segments * d.canvas_length, element_bytes) + split_bytes(d)
        graphs = MOST_GRAPHS * _GRAPH_BYTES + static + pool + _WORKSPACES_BYTES
    widest = widest_elements(d, config.formats)
    activations = activation_bytes(d, shape, element_bytes=element_bytes, cuda=cuda)
    return Plan(
        context_tokens=context,
        canvases=config.max_active,
        weights=weight_bytes(d, config.formats, element_bytes=element_bytes),
        kv_token=slot(context + 1) - slot(context),
        kv_slot=slot(context),
        activations=activations + widest * (_WIDENING_BYTES + element_bytes),
        graphs=graphs,
        libraries=_LIBRARIES_BYTES + _WORKSPACES_BYTES if cuda else 0,
        prefix_cache=config.prefix_cache_mib * 2**20,
    )


def largest_context(
    dimensions: Dimensions, config: EngineConfig, memory_bytes: int, *, cuda: bool
) -> int:
    """Returns the longest context that fits with all other options unchanged, or 0 if none fits.

    It is a multiple of 1,024 tokens, unless it is the model's longest context.
    """

    def fits(context: int) -> bool:
        changed = _changed(config, max_context=context)
        return make_plan(dimensions, changed, cuda=cuda).total <= memory_bytes

    most = dimensions.max_positions
    if fits(most):
        return most
    low, high = 0, most // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * _CONTEXT_STEP) else (low, middle - 1)
    return low * _CONTEXT_STEP


def most_canvases(
    dimensions: Dimensions, config: EngineConfig, memory_bytes: int, *, cuda: bool
) -> int:
    """Returns how many requests can denoise together with all other options unchanged.

    The result is at most 64, because memory is not the limit for more, and 0 if no request fits.
    """

    def total(canvases: int) -> int:
        changed = _changed(config, max_active=canvases)
        return make_plan(dimensions, changed, cuda=cuda).total

    most = 0
    while total(most + 1) <= memory_bytes and most < _MOST_CANVASES:
        most += 1
    return most


def nearest(
    dimensions: Dimensions, config: EngineConfig, memory_bytes: int, *, cuda: bool
) -> EngineConfig | None:
    """Returns the configuration that fits and gives up least, or None if no configuration fits.

    These are given up in this order: kept prefixes, canvases, speculation, context down to 4,096
    tokens, bits of the weights.
    """
    for each in _formats(dimensions, config, cuda=cuda):
        for candidate in _smaller(each):
            free_bytes = memory_bytes - make_plan(dimensions, candidate, cuda=cuda).total
            if free_bytes >= 0:
                return _with_prefixes(candidate, config.prefix_cache_mib, free_bytes)
        least = list(_smaller(each))[-1]
        context = largest_context(dimensions, least, memory_bytes, cuda=cuda)
        if context >= min(_LEAST_CONTEXT, config.max_context, dimensions.max_positions):
            return _changed(least, max_context=min(context, config.max_context))
    return None


def check_fit(
    dimensions: Dimensions, config: EngineConfig, memory_bytes: int, *, cuda: bool, device: str
) -> Plan:
    """Returns the plan if it fits.

    Raises DoesNotFitError otherwise. Its text names options that fit.
    """
    plan = make_plan(dimensions, config, cuda=cuda)
    if plan.total > memory_bytes:
        fitting = nearest(dimensions, config, memory_bytes, cuda=cuda)
        raise DoesNotFitError(refusal(plan, config, fitting, memory_bytes, device))
    return plan


def refusal(
    plan: Plan,
    config: EngineConfig,
    fitting: EngineConfig | None,
    memory_bytes: int,
    device: str,
) -> str:
    """Returns a message that says why a plan is refused and which options would fit."""
    if fitting is None:
        advice = "No settings of this model fit."
    else:
        options = " ".join(
            f"--{name.replace('_', '-')} {str(value).lower()}"
            for name, value in differences(config, fitting).items()
        )
        advice = f"These options fit: {options}"
    return (
        f"model {config.model!r} needs {gb(plan.total)} ({plan}), but {device} has "
        f"{gb(memory_bytes)} for it. {advice}"
    )


def differences(config: EngineConfig, other: EngineConfig) -> dict[str, Any]:
    """Returns the options in which `other` differs from `config`, with the values in `other`."""
    before, after = config.model_dump(), other.model_dump()
    return {name: value for name, value in after.items() if value != before[name]}


def gb(size: int) -> str:
    """Returns a size as text in GB (10^9 bytes), or in MB (10^6 bytes) below 0.1 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _element_bytes(config: EngineConfig, *, cuda: bool) -> int:
    """Returns the bytes per element of the type that `engine.device.choose_dtype` chooses."""
    if config.dtype == "auto":
        return 2 if cuda else 4
    return {"bfloat16": 2, "float32": 4}[config.dtype]


def _formats(dimensions: Dimensions, config: EngineConfig, *, cuda: bool) -> Iterator[EngineConfig]:
    """Yields the configuration itself, then copies whose weights have fewer and fewer bits."""
    yield config
    size = make_plan(dimensions, config, cuda=cuda).weights_total
    for formats in _FORMATS:
        changed = _changed(config, **formats.options)
        smaller = make_plan(dimensions, changed, cuda=cuda).weights_total
        if smaller < size:
            size = smaller
            yield changed


def _smaller(config: EngineConfig) -> Iterator[EngineConfig]:
    """Yields copies without kept prefixes, then with fewer canvases, then without speculation."""
    for canvases in range(config.max_active, 0, -1):
        yield _changed(config, prefix_cache_mib=0, max_active=canvases)
    if config.speculate:
        yield _changed(config, prefix_cache_mib=0, max_active=1, speculate=False)


def _with_prefixes(config: EngineConfig, most_mib: int, free_bytes: int) -> EngineConfig:
    """Returns a copy with the largest budget for kept prefixes that fits, at most `most_mib`."""
    steps = free_bytes // (_PREFIX_STEP_MIB * 2**20)
    return _changed(config, prefix_cache_mib=min(most_mib, steps * _PREFIX_STEP_MIB))


def _changed(config: EngineConfig, **changes: Any) -> EngineConfig:
    return config.model_copy(update=changes)
