"""Finds a checkpoint and loads its weights into the network.

The network's weights are loaded one after another: each is read, merged from its tensors, quantised
if requested, and put on the device. So memory never holds more than the model and one weight. Every
tensor of the files is accounted for: missing, unexpected and mis-shaped tensors are listed in an
error. `engine.weights` knows how published formats look on disk.
"""

import json
import re
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.config import UNQUANTIZED, Formats
from engine.model.diffusion_gemma import DiffusionGemma, ModelConfig
from engine.model.vision import Vision, VisionConfig, is_vision
from engine.model.weight_map import WeightTarget, canonical, scheme, weight_targets
from engine.sizing.dimensions import QUANTIZED_FILES, Dimensions
from engine.sizing.gguf import with_gguf
from engine.sizing.gguf_header import GgufError, place_on_hub
from engine.weights.dg_w4a16 import expert_files
from engine.weights.errors import UnsupportedFormatError
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
_WEIGHT_FILES = ["*.safetensors"]
_LISTED = 8  # names that an error lists at most
_CHUNK = 4096  # rows of a large weight that are dequantised at once
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name


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
    hub_id: str | None = None  # the repository with the weights, unless they are in local files

    @property
    def quantized(self) -> bool:
        """Returns whether the weights are stored in a quantised format."""
        return self.gguf is not None or self.read_module is not read_dense


def find_dimensions(model: str, gguf: str = "") -> Dimensions:
    """Returns the dimensions of a model, which is a folder or a Hugging Face id.

    They are read from its configuration: no weights are downloaded. `gguf` names the file that
    holds the weights instead. Its header is read if the file is on this machine.

    Raises CheckpointError or UnsupportedModelError.
    """
    folder, config = _find_config(model)
    ModelConfig.from_transformers(config)
    dimensions = Dimensions.of(config.to_dict())
    if gguf:
        try:
            return with_gguf(dimensions, gguf)
        except (GgufError, OSError) as error:
            raise CheckpointError(f"gguf {gguf!r}: {error}") from error
    if folder is not None:
        return dimensions.in_folder(folder)
    marked = any(_is_on_hub(model, name) for name in QUANTIZED_FILES)
    return replace(dimensions, quantized=dimensions.quantized or marked)


def find_checkpoint(model: str, gguf: str = "") -> Checkpoint:
    """Find a model, which is a folder or a Hugging Face id, and read its configuration.

    The model's own weights are not downloaded. `gguf`, a path or owner/name/file on the hub, names
    a file that holds the weights instead, and which is downloaded if it is not local. A GGUF file
    has the language model alone, so the checkpoint has no vision then.

    Raises CheckpointError or UnsupportedModelError.
    """
    local_folder, config = _find_config(model)
    shapes = ModelConfig.from_transformers(config)
    gguf_file = _find_gguf(gguf) if gguf else None
    folder = local_folder or _download(model, _CONFIG_FILES)
    vision = None if gguf_file else VisionConfig.find(folder, config)
    generation = _generation_config(folder)
    if generation.get("pad_token_id") is None:
        generation["pad_token_id"] = config.text_config.pad_token_id
    stored: dict[str, Any] | None = getattr(config, "quantization_config", None)
    try:
        read_module = read_dense if gguf_file else find_format(folder, stored)
    except UnsupportedFormatError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    hub_id = model if local_folder is None and gguf_file is None else None
    return Checkpoint(folder, shapes, generation, vision, read_module, gguf_file, hub_id)


def download_weights(checkpoint: Checkpoint) -> None:
    """Download the weights unless they are local. Call this after all other checks have passed."""
    if checkpoint.hub_id is not None:
        _download(checkpoint.hub_id, _WEIGHT_FILES)


def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    formats: Formats = UNQUANTIZED,
    cache_root: Path | None = None,
    vision: Vision | None = None,
    on_progress: Progress = lambda _loaded, _total: None,
) -> DiffusionGemma:
    """Returns the network with its weights on `device`.

    `formats` says which weights are quantised while loading. If there is a `cache_root`, the
    quantised weights are kept below it for the next start. All other weights are held in `dtype`.
    `on_progress` is called with the bytes read so far and the bytes of all files. This function
    also fills `vision`, which must have been built for the same formats. Without it the files'
    vision tensors are passed over.

    Raises CheckpointError if tensors are missing, unexpected or mis-shaped, which the error lists,
    or if the checkpoint cannot be quantised as requested.
    """
    if checkpoint.quantized and formats.quantized:
        raise CheckpointError(
            f"{checkpoint.folder} is already quantised: quantize_experts, quantize_linears and "
            "quantize_rest can only be 'none'"
        )
    with torch.device("meta"):
        model = DiffusionGemma(checkpoint.config)
    cache_root = cache_root if formats.quantized else None
    source, cache = _open(checkpoint, formats, cache_root, on_progress)
    loading = _Loading(source, formats, cache, device, dtype)
    targets = weight_targets(model) + ([] if vision is None else vision.weight_targets())
    with cache or nullcontext():
        try:
            for target in targets:
                loading.fill(target)
        except UnquantizableError as error:
            raise CheckpointError(f"{checkpoint.folder}: {error}") from error
        for name, tensor in ({} if vision is None else vision.tensors()).items():
            loading.copy(name, tensor)
        source.pass_over(lambda name: vision is None and is_vision(name))
        loading.report(checkpoint.folder)
    return model.requires_grad_(False).eval()


def _open(
    checkpoint: Checkpoint, formats: Formats, cache_root: Path | None, on_progress: Progress
) -> "tuple[PublishedWeights | GgufWeights, QuantizedCache | None]":
    if checkpoint.gguf is not None:
        from engine.weights.gguf_file import GgufWeights  # few checkpoints need it

        try:
            return GgufWeights(checkpoint.gguf, on_progress), None
        except UnsupportedFormatError as error:
            raise CheckpointError(str(error)) from error
    paths = _weight_files(checkpoint.folder)
    files = TensorFiles(paths, canonical, on_progress)
    source = PublishedWeights(files, checkpoint.read_module, checkpoint.config.dimensions.experts)
    cache = None if cache_root is None else QuantizedCache(cache_root, paths, asdict(formats))
    return source, cache


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

    def report(self, folder: Path) -> None:
        """Raise CheckpointError if tensors are missing, unexpected or mis-shaped."""
        lists = {
            "missing": sorted(self.missing),
            "unexpected": self.source.left,
            "mis-shaped": self.mis_shaped,
        }
        faults = [f"{len(names)} {what}: {_list(names)}" for what, names in lists.items() if names]
        if faults:
            raise CheckpointError(
                f"{folder}: the weights do not fit config.json; tensors " + "; ".join(faults)
            )

    def _read(self, name: str, shape: torch.Size) -> Weight | None:
        try:
            weight = self.source.read(name)
        except MissingTensorError as error:
            self.missing.append(str(error))
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


def _find_config(model: str) -> tuple[Path | None, Any]:
    """Returns the model's folder, or None if it is on the hub, and its Transformers config."""
    from transformers import AutoConfig  # slow to import, and only loading needs it

    path = Path(model).expanduser()
    local = path.is_dir()
    if not local and not _HUB_ID.fullmatch(model):
        raise CheckpointError(f"model {model!r} is neither a folder nor a Hugging Face id")
    try:
        config = AutoConfig.from_pretrained(str(path) if local else model)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model {model!r}: {_first_line(error)}") from error
    return path if local else None, config


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    files = [*(folder / name for name in names), *expert_files(folder)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(f"{folder}: weight files are missing: {_list(missing)}")
    return files


def _generation_config(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json"
    try:
        values: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: generation_config.json is missing") from error
    return values


def _is_on_hub(model: str, name: str) -> bool:
    """Download a file of a repository. Returns whether the repository has it.

    Without a network, returns whether the file was downloaded before.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hf_hub_download(model, name)
    except EntryNotFoundError:
        return False
    return True


def _download(model: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=patterns))


def _find_gguf(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    repository_and_file = place_on_hub(name)
    if repository_and_file is None:
        raise CheckpointError(f"gguf {name!r} is neither a file nor on Hugging Face's hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(*repository_and_file))
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"gguf {name!r}: {_first_line(error)}") from error


def _list(names: list[str]) -> str:
    unlisted = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {unlisted} more" if unlisted > 0 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
