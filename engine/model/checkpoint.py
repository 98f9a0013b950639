"""A checkpoint's files into the network: names, merging, loading.

Reads safetensors under Transformers' names, tensor by tensor, each straight into its place in the
merged weights: never more than the model and one tensor in memory. Every tensor of the file is
accounted for; what is missing, unexpected or mis-shaped is an error that lists it.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from engine.dimensions import Dimensions
from engine.model.diffusion_gemma import DiffusionGemma, Layer, ModelConfig
from engine.model.vision import Vision, VisionConfig, is_vision
from engine.sampler import SamplerConfig

# Files that a model needs here, of all that a repository may hold.
_WANTED_FILES = ["*.json", "*.safetensors", "*.jinja"]
_ENCODER = "model.encoder.language_model."
_DECODER = "model.decoder."
_LISTED = 8  # names that an error spells out
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name


class CheckpointError(ValueError):
    """The checkpoint can't be found, or its files don't fit its configuration."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose configuration this engine can run."""

    folder: Path
    config: ModelConfig
    sampler: SamplerConfig
    vision: VisionConfig | None


def find_checkpoint(
    model: str, before_download: Callable[[Dimensions], object] = lambda _dimensions: None
) -> Checkpoint:
    """Find a folder or a Hugging Face id, and read its configuration before any weight.

    `before_download` gets the dimensions of a model that can be run, and may raise.

    Raises CheckpointError, UnsupportedModelError or UnsupportedSamplerError.
    """
    from transformers import AutoConfig  # here: it is slow to import, and only loading needs it

    path = Path(model).expanduser()
    local = path.is_dir()
    if not local and not _HUB_ID.fullmatch(model):
        raise CheckpointError(f"model {model!r} is neither a folder nor a Hugging Face id")
    try:
        config = AutoConfig.from_pretrained(str(path) if local else model)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model {model!r}: {_first_line(error)}") from error
    shapes = ModelConfig.from_transformers(config)
    dimensions = Dimensions.of(config.to_dict())
    before_download(dimensions.in_folder(path) if local else dimensions)
    folder = path if local else _download(model)
    vision = VisionConfig.find(folder, config)
    return Checkpoint(folder, shapes, _sampler_config(folder), vision)


def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    vision: Vision | None = None,
    on_progress: Callable[[int, int], None] = lambda _loaded, _total: None,
) -> DiffusionGemma:
    """The network with its weights on `device`. `on_progress` gets bytes read and bytes in all.

    Fills `vision` too if there is one; if not, a file's vision tensors are passed over.

    Raises CheckpointError listing the tensors that are missing, unexpected or mis-shaped.
    """
    with torch.device("meta"):
        model = DiffusionGemma(checkpoint.config)
    model = model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    places = _places(model) | ({} if vision is None else vision.places())
    unfilled = set(places)
    unexpected, mis_shaped = [], []
    files = _weight_files(checkpoint.folder)
    total, loaded = sum(file.stat().st_size for file in files), 0
    for file in files:
        for name, tensor in _tensors(file):
            loaded += tensor.nbytes
            on_progress(min(loaded, total), total)
            name = _canonical(name)
            if vision is None and is_vision(name):
                continue
            if name not in places:
                unexpected.append(name)
            elif places[name].shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)} instead of {tuple(places[name].shape)}"
                mis_shaped.append(f"{name} ({shapes})")
                unfilled.discard(name)
            elif name in unfilled:  # else a second copy of a tied tensor
                places[name].copy_(tensor)
                unfilled.discard(name)
    _report(checkpoint.folder, sorted(unfilled), unexpected, mis_shaped)
    return model


def _places(model: DiffusionGemma) -> dict[str, Tensor]:
    """Where each tensor of the file belongs: a view into our (merged) weights by its name."""
    conditioning = model.self_conditioning
    places: dict[str, Tensor] = {
        f"{_DECODER}embed_tokens.weight": model.embedding,
        f"{_DECODER}norm.weight": model.norm.weight,
        f"{_DECODER}self_conditioning.pre_norm.weight": conditioning.pre_norm.weight,
        f"{_DECODER}self_conditioning.down_proj.weight": conditioning.mlp.down,
    }
    gate, up = conditioning.mlp.gate_up.chunk(2)
    places[f"{_DECODER}self_conditioning.gate_proj.weight"] = gate
    places[f"{_DECODER}self_conditioning.up_proj.weight"] = up
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        for name, place in _layer_places(layer).items():
            places[f"{_DECODER}layers.{index}.{name}"] = place
        places[f"{_ENCODER}layers.{index}.layer_scalar"] = layer.encoder_scalar
    return places


def _layer_places(layer: Layer) -> dict[str, Tensor]:
    attention = layer.attention
    size = attention.head_size
    query_rows, kv_rows = attention.query_heads * size, attention.kv_heads * size
    gate, up = layer.mlp.gate_up.chunk(2)
    places: dict[str, Tensor] = {
        "input_layernorm.weight": layer.attention_norm.weight,
        "self_attn.q_proj.weight": attention.qkv[:query_rows],
        "self_attn.k_proj.weight": attention.qkv[query_rows : query_rows + kv_rows],
        "self_attn.o_proj.weight": attention.out,
        "self_attn.q_norm.weight": attention.q_norm.weight,
        "self_attn.k_norm.weight": attention.k_norm.weight,
        "post_attention_layernorm.weight": layer.post_attention_norm.weight,
        "pre_feedforward_layernorm.weight": layer.mlp_norm.weight,
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": layer.mlp.down,
        "post_feedforward_layernorm_1.weight": layer.post_mlp_norm.weight,
        "router.scale": layer.router.scale,
        "router.proj.weight": layer.router.proj,
        "router.per_expert_scale": layer.router.per_expert_scale,
        "pre_feedforward_layernorm_2.weight": layer.experts_norm.weight,
        "experts.gate_up_proj": layer.experts.gate_up,
        "experts.down_proj": layer.experts.down,
        "post_feedforward_layernorm_2.weight": layer.post_experts_norm.weight,
        "post_feedforward_layernorm.weight": layer.post_feedforward_norm.weight,
        "layer_scalar": layer.decoder_scalar,
    }
    if attention.sliding:
        places["self_attn.v_proj.weight"] = attention.qkv[query_rows + kv_rows :]
    return places


def _canonical(name: str) -> str:
    """One name for tied tensors: the decoder's. The scalars are the only ones that are not tied."""
    if name == "lm_head.weight":
        return f"{_DECODER}embed_tokens.weight"
    if name.startswith(_ENCODER) and not name.endswith(".layer_scalar"):
        return _DECODER + name.removeprefix(_ENCODER)
    return name


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = ["model.safetensors"]
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(f"{folder}: weight files are missing: {_list(missing)}")
    return files


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  # not a dict: it can't be iterated
            yield name, opened.get_tensor(name)


def _report(folder: Path, missing: list[str], unexpected: list[str], mis_shaped: list[str]) -> None:
    lists = {"missing": missing, "unexpected": unexpected, "mis-shaped": mis_shaped}
    faults = [f"{len(names)} {what}: {_list(names)}" for what, names in lists.items() if names]
    if faults:
        raise CheckpointError(
            f"{folder}: the weights do not fit config.json; tensors " + "; ".join(faults)
        )


def _sampler_config(folder: Path) -> SamplerConfig:
    file = folder / "generation_config.json"
    try:
        return SamplerConfig.from_generation_config(json.loads(file.read_text()))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: there is no generation_config.json") from error


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=_WANTED_FILES))


def _list(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
