"""A checkpoint's files into the network: names, merging, quantising, loading.

One weight of ours after another is read, merged from its tensors, quantised if that was asked for,
and put on the device: never more than the model and one weight in memory. Every tensor of the
files is accounted for; what is missing, unexpected or mis-shaped is an error that lists it. How
published formats look on disk is `engine.weights`' to know.
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

# Files that a model needs here, of all that a repository may hold.
_WANTED_FILES = ["*.json", "*.jinja"]
_WEIGHT_FILES = ["*.safetensors"]
_LISTED = 8  # names that an error spells out
_CHUNK = 4096  # rows of a large weight that are dequantised at once
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name


class CheckpointError(ValueError):
    """The checkpoint can't be found, or its files don't fit its configuration."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration this engine can run. Its weights need not be here yet."""

    folder: Path
    config: ModelConfig
    generation: dict[str, Any]  # its generation_config.json
    vision: VisionConfig | None
    read_module: ReadModule  # reads the format in which the weights are stored
    gguf: Path | None = None  # a file that has the weights instead
    hub_id: str | None = None  # where the weights are downloaded from, if they are not local

    @property
    def quantized(self) -> bool:
        """Returns whether the weights are stored in a quantised format."""
        return self.gguf is not None or self.read_module is not read_dense


def find_dimensions(model: str, gguf: str = "") -> Dimensions:
    """Of a folder or a Hugging Face id, from its configuration: no more of it is downloaded.

    `gguf` is the file that has the weights instead, whose header is read if it is here.

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
    told = any(_is_on_hub(model, name) for name in QUANTIZED_FILES)
    return replace(dimensions, quantized=dimensions.quantized or told)


def find_checkpoint(model: str, gguf: str = "") -> Checkpoint:
    """Find a folder or a Hugging Face id, and read its configuration. Downloads no weights.

    With `gguf`, a file's path or owner/name/file on the hub, the weights are those of that file. It
    has the language model alone, so there is no vision.

    Raises CheckpointError or UnsupportedModelError.
    """
    local_folder, config = _find_config(model)
    shapes = ModelConfig.from_transformers(config)
    gguf_file = _find_gguf(gguf) if gguf else None
    folder = local_folder or _download(model, _WANTED_FILES)
    vision = None if gguf_file else VisionConfig.find(folder, config)
    generation = _generation_config(folder)
    stored: dict[str, Any] | None = getattr(config, "quantization_config", None)
    try:
        read_module = read_dense if gguf_file else find_format(folder, stored)
    except UnsupportedFormatError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    hub_id = model if local_folder is None and gguf_file is None else None
    return Checkpoint(folder, shapes, generation, vision, read_module, gguf_file, hub_id)


def download_weights(checkpoint: Checkpoint) -> None:
    """Download the weights unless they are here. Call this once nothing else can be refused."""
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
    """Returns the network with its weights on `device`. `on_progress` gets bytes read and in all.

    Weights are quantised while loading as `formats` says; the result is kept below `cache_root`, if
    there is one, for the next start. All others are held in `dtype`. This also fills `vision`,
    which was built for the same formats; without it the files' vision tensors are passed over.

    Raises CheckpointError listing the tensors that are missing, unexpected or mis-shaped, or if
    the checkpoint can't be quantised as asked.
    """
    if checkpoint.quantized and formats.quantized:
        raise CheckpointError(
            f"{checkpoint.folder} is quantised already: quantize_experts, quantize_linears and "
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
        from engine.weights.gguf_file import GgufWeights  # here: few need it

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
    """What is read from where to where, and what went wrong so far."""

    source: "PublishedWeights | GgufWeights"
    formats: Formats
    cache: QuantizedCache | None
    device: torch.device
    dtype: torch.dtype
    missing: list[str] = field(default_factory=list)
    mis_shaped: list[str] = field(default_factory=list)

    def fill(self, target: WeightTarget) -> None:
        """Put a weight in its place, quantised if that was asked for."""
        found = [self._read(name, shape) for name, shape in target.parts.items()]
        parts = [part for part in found if part is not None]
        if len(parts) < len(target.parts):
            return
        dense = [part for part in parts if isinstance(part, Tensor)]
        asked = scheme(target.kind, self.formats)
        if asked is not None:
            assert len(dense) == len(parts)
            target.put(self._quantized(target.name, dense, asked))
        elif len(dense) == len(parts) or target.kind in ("dense", "embedding"):
            target.put(self._dense(parts, target.shape))
        else:
            target.put(self._as_stored(parts))

    def copy(self, name: str, tensor: Tensor) -> None:
        """Into a tensor that is there already."""
        found = self._read(name, tensor.shape)
        if found is not None:
            _copy(found, tensor)

    def report(self, folder: Path) -> None:
        """Raises CheckpointError if anything went wrong."""
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
            place = whole if len(parts) == 1 else whole[start : start + part.shape[0]]
            _copy(part, place)
            start += place.shape[0]
        return whole

    def _as_stored(self, parts: list[Weight]) -> Weight:
        """Quantised weights as they are, and what is dense among them in our type."""
        return stack(
            [
                part.to(self.device, self.dtype, copy=True)
                if isinstance(part, Tensor)
                else part.copied_to(self.device)
                for part in flattened(parts)
            ]
        )

    def _quantized(self, name: str, parts: list[Tensor], asked: FromDense) -> QuantizedWeight:
        kept = None if self.cache is None else self.cache.read(name, self.device)
        if kept is not None:
            return kept
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        weight = quantize(whole, asked, self.device)
        if self.cache is not None:
            self.cache.write(name, weight)
        return weight


def _copy(weight: Weight, place: Tensor) -> None:
    """Fill a tensor, a large one by parts."""
    match weight:
        case Tensor():
            place.copy_(weight)
        case QuantizedWeight():
            for start in range(0, weight.shape[-2], _CHUNK):
                rows = slice(start, start + _CHUNK)
                place[..., rows, :].copy_(weight.rows(rows).dequantize(place.dtype))
        case StackedWeight():
            start = 0
            for part in weight.parts:
                rows = slice(start, start + part.shape[-2])
                _copy(part, place[..., rows, :])
                start = rows.stop


def _find_config(model: str) -> tuple[Path | None, Any]:
    """The folder, if the model is one, and Transformers' configuration."""
    from transformers import AutoConfig  # here: it is slow to import, and only loading needs it

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
        found: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: there is no generation_config.json") from error
    return found


def _is_on_hub(model: str, name: str) -> bool:
    """Whether the repository has the file, which then is here; without a network, if it is here."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        hf_hub_download(model, name)
    except EntryNotFoundError:
        return False
    return True


def _download(model: str, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=wanted))


def _find_gguf(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        return path
    place = place_on_hub(name)
    if place is None:
        raise CheckpointError(f"gguf {name!r} is neither a file nor one on Hugging Face's hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(*place))
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"gguf {name!r}: {_first_line(error)}") from error


def _list(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
