"""Finds a checkpoint and loads its weights into the network.

The network's weights are loaded one after another: each is read, merged from its tensors, quantised
if requested, and put on the device. So memory never holds more than the model and one weight. Every
tensor of the files is accounted for: missing, unexpected and mis-shaped tensors are listed in an
error. `engine.weights` knows how published formats look on disk.
"""

import glob
import math
import weakref
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.config import UNQUANTIZED, Formats
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig, UnsupportedModelError
from engine.model.vision import Vision, VisionConfig, is_vision
from engine.model.weight_map import (
    WeightTarget,
    canonical,
    is_computed,
    scheme,
    weight_targets,
)
from engine.sizing.dimensions import Dimensions, DimensionsError, read_dimensions
from engine.sizing.gguf import with_gguf
from engine.sizing.gguf_header import GgufError, find_gguf
from engine.sizing.model_files import ModelFiles, ModelFilesError, one_line
from engine.sizing.weight_files import find_weights, listed, with_files
from engine.weights.errors import UnreadableWeightsError, UnsupportedFormatError
from engine.weights.published import PublishedWeights, ReadModule, find_format, read_dense
from engine.weights.quantization import (
    FromDense,
    QuantizedWeight,
    StackedWeight,
    UnquantizableError,
    Weight,
    flattened,
    quantize,
    stack,
)
from engine.weights.quantized_cache import QuantizedCache
from engine.weights.tensor_files import MissingTensorError, Progress, TensorFiles

if TYPE_CHECKING:
    from engine.weights.gguf_file import GgufWeights

# Of a repository, only the files that match these patterns are downloaded.
_CONFIG_FILES = ["*.json", "*.jinja"]
_WEIGHT_FILES = ["*.safetensors"]  # if the hub can't be asked which of them count
_CHUNK = 4096  # rows of a large weight that are dequantised at once


class CheckpointError(ValueError):
    """The checkpoint cannot be found, or its files do not fit its configuration."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration this engine can run.

    Its weights may still have to be downloaded.
    """

    folder: Path
    config: ModelConfig
    generation: dict[str, Any]  # its generation_config.json, with the padding of its config.json
    vision: VisionConfig | None
    read_module: ReadModule  # reads the format in which the weights are stored
    gguf: Path | None = None  # the file that holds the weights instead of the folder
    hub: ModelFiles | None = None  # the repository with the weights, unless they are in local files

    @property
    def weights(self) -> Path:
        """Returns the file or the folder that holds the weights."""
        return self.gguf or self.folder

    @property
    def quantized(self) -> bool:
        """Returns whether the weights are stored in a quantised format."""
        return self.gguf is not None or self.read_module is not read_dense


def find_dimensions(model: str, gguf: str = "", revision: str = "") -> Dimensions:
    """Returns the dimensions of a model, which is a folder or a Hugging Face id.

    They are read from its configuration: no weights are downloaded. `revision` is a branch, tag or
    commit on the hub. `gguf` names the file that holds the weights instead. Its header is read if
    the file is on this machine.

    Raises CheckpointError or UnsupportedModelError.
    """
    try:
        files = ModelFiles(model, revision)
        config = _read_config(files)
        dimensions = ModelConfig.from_transformers(config).dimensions
        return with_gguf(dimensions, gguf) if gguf else with_files(dimensions, files)
    except ModelFilesError as error:
        raise CheckpointError(str(error)) from error
    except (GgufError, OSError) as error:
        raise CheckpointError(f"gguf {gguf!r}: {error}") from error


def find_checkpoint(model: str, gguf: str = "", revision: str = "") -> Checkpoint:
    """Find a model, which is a folder or a Hugging Face id, and read its configuration.

    The model's own weights are not downloaded. `revision` is a branch, tag or commit on the hub.
    `gguf`, a path or owner/name/file on the hub, names a file that holds the weights instead, and
    which is downloaded if it is not local. A GGUF file has the language model alone, so the
    checkpoint has no vision then.

    Raises CheckpointError or UnsupportedModelError.
    """
    try:
        files = ModelFiles(model, revision)
        config = _read_config(files)
        shapes = ModelConfig.from_transformers(config)
        gguf_file = find_gguf(gguf) if gguf else None
        folder = files.download(_CONFIG_FILES)
        vision = None if gguf_file else VisionConfig.find(folder, config)
        generation = files.json("generation_config.json")
        if generation.get("pad_token_id") is None:
            generation["pad_token_id"] = config.text_config.pad_token_id
        stored: dict[str, Any] | None = getattr(config, "quantization_config", None)
        read_module = read_dense if gguf_file else find_format(folder, stored)
    except (ModelFilesError, GgufError) as error:
        raise CheckpointError(str(error)) from error
    except UnsupportedFormatError as error:
        raise CheckpointError(f"{model}: {error}") from error
    hub = files if files.folder is None and gguf_file is None else None
    return Checkpoint(folder, shapes, generation, vision, read_module, gguf_file, hub)


def download_weights(checkpoint: Checkpoint) -> None:
    """Download the weights unless they are local. Call this after all other checks have passed.

    Raises CheckpointError if weights are missing or the hub can't provide them.
    """
    if checkpoint.hub is None:
        return
    try:
        names = find_weights(checkpoint.hub)
        checkpoint.hub.download(_WEIGHT_FILES if names is None else [*map(glob.escape, names)])
    except ModelFilesError as error:
        raise CheckpointError(str(error)) from error


def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    formats: Formats = UNQUANTIZED,
    cache_root: Path | None = None,
    cache_bytes: float = math.inf,
    vision: Vision | None = None,
    on_progress: Progress = lambda _loaded, _total: None,
) -> DiffusionGemma:
    """Returns the network with its weights on `device`.

    `formats` says which weights are quantised while loading. If there is a `cache_root`, the
    quantised weights are kept below it for the next start, together with those of earlier starts as
    far as `cache_bytes` allow. All other weights are held in `dtype`. `on_progress` is called with
    the bytes read so far and the bytes of all files. This function also fills `vision`, which must
    have been built for the same formats. Without it the files' vision tensors are passed over.

    Raises CheckpointError if a file is missing or damaged; if tensors are missing, unexpected,
    mis-shaped or not numbers, which the error lists; if tied tensors differ; or if the checkpoint
    cannot be quantised as requested.
    """
    if checkpoint.quantized and formats.quantized:
        raise CheckpointError(
            f"{checkpoint.folder} is already quantised: quantize_experts, quantize_linears and "
            "quantize_rest can only be 'none'"
        )
    with torch.device("meta"):
        model = DiffusionGemma(checkpoint.config)
    cache_root = cache_root if formats.quantized else None
    source, paths = _open(checkpoint, on_progress)
    cache = None
    if cache_root is not None:
        cache = QuantizedCache(cache_root, paths, asdict(formats), most_bytes=cache_bytes)
        weakref.finalize(model, cache.release)  # for as long as it exists, its folder is kept
    loading = _Loading(source, formats, cache, device, dtype)
    targets = weight_targets(model) + ([] if vision is None else vision.weight_targets())
    with cache or nullcontext():
        try:
            for target in targets:
                loading.fill(target)
            for name, tensor in ({} if vision is None else vision.tensors()).items():
                loading.copy(name, tensor)
        except (UnquantizableError, UnreadableWeightsError) as error:
            raise CheckpointError(f"{checkpoint.weights}: {error}") from error
        source.pass_over(lambda name: is_computed(name) or (vision is None and is_vision(name)))
        loading.report(checkpoint.weights)
    return model.requires_grad_(False).eval()


def _open(
    checkpoint: Checkpoint, on_progress: Progress
) -> "tuple[PublishedWeights | GgufWeights, list[Path]]":
    """Returns the checkpoint's weights and the files that hold them.

    Raises CheckpointError if a file is missing or damaged.
    """
    if checkpoint.gguf is not None:
        from engine.weights.gguf_file import GgufWeights  # few checkpoints need it

        try:
            return GgufWeights(checkpoint.gguf, on_progress), [checkpoint.gguf]
        except UnsupportedFormatError as error:
            raise CheckpointError(str(error)) from error
    try:
        weights = find_weights(ModelFiles(str(checkpoint.folder)))
        paths = [checkpoint.folder / name for name in weights or ()]
        files = TensorFiles(paths, canonical, on_progress)
    except (ModelFilesError, UnreadableWeightsError) as error:
        raise CheckpointError(str(error)) from error
    experts = checkpoint.config.dimensions.experts
    return PublishedWeights(files, checkpoint.read_module, experts), paths


@dataclass
class _Loading:
    """The loading of a network: its source, its settings, and the errors so far."""

    source: "PublishedWeights | GgufWeights"
    formats: Formats
    cache: QuantizedCache | None
    device: torch.device
    dtype: torch.dtype
    missing: list[str] = field(default_factory=list)
    mis_shaped: list[str] = field(default_factory=list)
    whole_numbers: list[str] = field(default_factory=list)

    def fill(self, target: WeightTarget) -> None:
        """Read a weight and put it into the network, quantised if requested.

        If one of its tensors is missing or mis-shaped, that is noted for `report` instead.
        """
        read = [self._read(name, shape) for name, shape in target.parts.items()]
        parts = [part for part in read if part is not None]
        if len(parts) < len(target.parts):
            return
        dense = [part for part in parts if isinstance(part, Tensor)]
        requested = scheme(target.kind, self.formats)
        if requested is not None:
            assert len(dense) == len(parts)
            target.put(self._quantized(target.name, dense, requested))
        elif len(dense) == len(parts) or target.kind in ("dense", "embedding"):
            target.put(self._dense(parts, target.shape))
        else:
            target.put(self._as_stored(parts))

    def copy(self, name: str, tensor: Tensor) -> None:
        """Read a weight into `tensor`, which the network has already."""
        weight = self._read(name, tensor.shape)
        if weight is not None:
            _copy(weight, tensor)

    def report(self, weights: Path) -> None:
        """Raise CheckpointError if tensors are missing, unexpected, mis-shaped or not numbers."""
        lists = {
            "missing": sorted(self.missing),
            "unexpected": self.source.left,
            "mis-shaped": self.mis_shaped,
            "stored as codes, which need their quantization_config": self.whole_numbers,
        }
        faults = [f"{len(names)} {what}: {listed(names)}" for what, names in lists.items() if names]
        if faults:
            raise CheckpointError(
                f"{weights}: the weights do not fit config.json; tensors " + "; ".join(faults)
            )

    def _read(self, name: str, shape: torch.Size) -> Weight | None:
        try:
            weight = self.source.read(name)
        except MissingTensorError as error:
            self.missing.append(str(error))
            return None
        if isinstance(weight, Tensor) and not weight.dtype.is_floating_point:
            self.whole_numbers.append(f"{name} ({str(weight.dtype).removeprefix('torch.')})")
            return None
        if weight.shape != shape:
            self.mis_shaped.append(f"{name} ({tuple(weight.shape)} instead of {tuple(shape)})")
            return None
        return weight

    def _dense(self, parts: list[Weight], shape: torch.Size) -> Tensor:
        whole, start = torch.empty(shape, device=self.device, dtype=self.dtype), 0
        for part in parts:
            rows = whole if len(parts) == 1 else whole[start : start + part.shape[0]]
            _copy(part, rows)
            start += rows.shape[0]
        return whole

    def _as_stored(self, parts: list[Weight]) -> Weight:
        """Returns the parts as one weight: quantised parts unchanged, dense ones in our dtype."""
        return stack(
            [
                part.to(self.device, self.dtype, copy=True)
                if isinstance(part, Tensor)
                else part.copied_to(self.device)
                for part in flattened(parts)
            ]
        )

    def _quantized(self, name: str, parts: list[Tensor], requested: FromDense) -> QuantizedWeight:
        kept = None if self.cache is None else self.cache.read(name, self.device)
        if kept is not None:
            return kept
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        weight = quantize(whole, requested, self.device)
        if self.cache is not None:
            self.cache.write(name, weight)
        return weight


def _copy(weight: Weight, destination: Tensor) -> None:
    """Copy a weight into a tensor. A quantised weight is dequantised in chunks of rows."""
    match weight:
        case Tensor():
            destination.copy_(weight)
        case QuantizedWeight():
            for start in range(0, weight.shape[-2], _CHUNK):
                rows = slice(start, start + _CHUNK)
                destination[..., rows, :].copy_(weight.rows(rows).dequantize(destination.dtype))
        case StackedWeight():
            start = 0
            for part in weight.parts:
                rows = slice(start, start + part.shape[-2])
                _copy(part, destination[..., rows, :])
                start = rows.stop


def _read_config(files: ModelFiles) -> Any:
    """Returns the model's Transformers config.

    Raises ModelFilesError, CheckpointError or UnsupportedModelError.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig  # slow to import, and only loading needs it

    files.refuse_adapter()
    file = files.file("config.json")
    try:
        read_dimensions(file)
    except DimensionsError as error:
        raise UnsupportedModelError(str(error)) from error
    try:
        # Unless told, Transformers would ask on the terminal whether to run a checkpoint's code.
        return AutoConfig.from_pretrained(str(file.parent), trust_remote_code=False)
    except (
        StrictDataclassError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
    ) as error:  # Transformers checks values in many ways
        raise CheckpointError(f"{file}: {one_line(error)}") from error
