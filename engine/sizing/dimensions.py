"""A model's dimensions, from its `config.json` alone: what memory and time can be computed from.

Plain Python, so that a plan needs neither torch nor Transformers. What a file leaves out has the
default of Transformers' `DiffusionGemmaTextConfig` and `Gemma4VisionConfig`, against which the
tests hold every number. Whether the engine can run such a model is not said here: that is
`ModelConfig.from_transformers`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.config import CONFIGS

# Numbers of the published configuration, for plans without a network.
_KNOWN = {"google/diffusiongemma-26b-a4b-it": CONFIGS / "models" / "diffusiongemma-26b-a4b.json"}
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
# By which checkpoints say that they are quantised where their config.json does not.
MODELOPT_FILE, W4_FILE = QUANTIZED_FILES = ("hf_quant_config.json", "w4_meta.json")
_IMAGE_TOKENS = 280  # of one image, where no processor's configuration says otherwise


class DimensionsError(ValueError):
    """The configuration is not one of a DiffusionGemma, or lacks a number."""


@dataclass(frozen=True)
class LayerShape:
    """One layer as the KV cache sees it; `window` is None where every token is kept."""

    kv_heads: int
    head_size: int
    window: int | None


@dataclass(frozen=True)
class Tower:
    """The vision tower. An image token stands for a square of `pooling` x `pooling` patches."""

    hidden_size: int
    mlp_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_size: int
    patch_size: int
    pooling: int
    positions: int
    standardize: bool


@dataclass(frozen=True)
class Stored:
    """Weights of a checkpoint that is quantised: bytes held as they are, and what is in full."""

    nbytes: int
    elements: int = 0  # in the model's type


@dataclass(frozen=True)
class Dimensions:
    """Of the network; sizes in elements, lengths in tokens."""

    vocab_size: int
    hidden_size: int
    mlp_size: int
    query_heads: int
    layers: tuple[LayerShape, ...]
    experts: int
    experts_per_token: int
    expert_size: int
    canvas_length: int
    max_positions: int
    tower: Tower | None
    quantized: bool  # in the checkpoint
    stored: Stored | None = None  # of a quantised checkpoint, where its files are there

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Dimensions":
        """From a parsed `config.json`. Raises DimensionsError, naming the key."""
        if config.get("model_type") != "diffusion_gemma":
            raise DimensionsError(
                f"model_type is {config.get('model_type')!r}; supported: 'diffusion_gemma'"
            )
        text = config.get("text_config") or {}
        for key in ("num_experts", "top_k_experts", "moe_intermediate_size"):
            if not text.get(key):
                raise DimensionsError(f"text_config.{key} is {text.get(key)!r}, not above 0")
        return cls(
            vocab_size=text.get("vocab_size", 262_144),
            hidden_size=text.get("hidden_size", 2304),
            mlp_size=text.get("intermediate_size", 9216),
            query_heads=text.get("num_attention_heads", 8),
            layers=_layers(text),
            experts=text["num_experts"],
            experts_per_token=text["top_k_experts"],
            expert_size=text["moe_intermediate_size"],
            canvas_length=config.get("canvas_length", 256),
            max_positions=text.get("max_position_embeddings", 131_072),
            tower=_tower(config.get("vision_config") or {}),
            quantized=config.get("quantization_config") is not None,
        )

    @property
    def image_tokens(self) -> int:
        """Most tokens of one image; an image is encoded in one pass, whatever the chunk."""
        return 0 if self.tower is None else _IMAGE_TOKENS

    @property
    def sized(self) -> bool:
        """Whether it is known how large the weights are: quantised ones are as large as stored."""
        return not self.quantized or self.stored is not None

    def in_folder(self, folder: Path) -> "Dimensions":
        """Of a checkpoint in a folder: without an image processor's file it takes no images."""
        seeing = any((folder / name).exists() for name in PROCESSOR_FILES)
        told = any((folder / name).exists() for name in QUANTIZED_FILES)
        quantized = self.quantized or told
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return replace(
            self,
            tower=self.tower if seeing else None,
            quantized=quantized,
            stored=Stored(stored) if quantized else None,
        )


def known_dimensions(model: str) -> Dimensions | None:
    """Of a model whose numbers come with Easel."""
    file = _KNOWN.get(model.lower())
    return None if file is None else read_dimensions(file)


def read_dimensions(file: Path) -> Dimensions:
    """From a `config.json`. Raises OSError if it is not there, DimensionsError if it is no such."""
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise DimensionsError(f"{file}: {error}") from error
    if not isinstance(config, dict):
        raise DimensionsError(f"{file}: not a JSON object")
    return Dimensions.of(config)


def _layers(text: Mapping[str, Any]) -> tuple[LayerShape, ...]:
    count = text.get("num_hidden_layers", 30)
    kinds = list(text.get("layer_types") or _default_kinds(count))
    kinds[-1] = "full_attention"  # whatever the file says, as in Transformers
    kv_heads, head_size = text.get("num_key_value_heads", 4), text.get("head_dim", 256)
    overrides = text.get("per_layer_config")
    if overrides is None:
        full = {"head_dim": text.get("global_head_dim", 512)}
        if text.get("num_global_key_value_heads") is not None:
            full["num_key_value_heads"] = text["num_global_key_value_heads"]
        overrides = {i: full for i, kind in enumerate(kinds) if kind == "full_attention"}
    own = {int(index): values for index, values in overrides.items()}
    return tuple(
        LayerShape(
            kv_heads=own.get(index, {}).get("num_key_value_heads", kv_heads),
            head_size=own.get(index, {}).get("head_dim", head_size),
            window=text.get("sliding_window", 512) if kind == "sliding_attention" else None,
        )
        for index, kind in enumerate(kinds)
    )


def _default_kinds(count: int) -> list[str]:
    """Five sliding layers, then a full one."""
    return ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(count)]


def _tower(vision: Mapping[str, Any]) -> Tower:
    return Tower(
        hidden_size=vision.get("hidden_size", 768),
        mlp_size=vision.get("intermediate_size", 3072),
        layers=vision.get("num_hidden_layers", 16),
        query_heads=vision.get("num_attention_heads", 12),
        kv_heads=vision.get("num_key_value_heads", 12),
        head_size=vision.get("head_dim", 64),
        patch_size=vision.get("patch_size", 16),
        pooling=vision.get("pooling_kernel_size", 3),
        positions=vision.get("position_embedding_size", 10 * 1024),
        standardize=vision.get("standardize", False),
    )
