"""A model's dimensions, read from its `config.json` alone. Memory and time are computed from them.

Plain Python, so that a plan needs neither torch nor Transformers. Values that a file leaves out get
the defaults of Transformers' `DiffusionGemmaTextConfig` and `Gemma4VisionConfig`; the tests compare
every number with these. This module does not check if the engine can run the model:
`ModelConfig.from_transformers` does.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.config import CONFIGS

# Copies of published configurations, so that a plan needs no network.
_KNOWN = {"google/diffusiongemma-26b-a4b-it": CONFIGS / "models" / "diffusiongemma-26b-a4b.json"}
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
# A checkpoint with one of these files is quantised even if its config.json does not say so.
MODELOPT_FILE, W4_FILE = QUANTIZED_FILES = ("hf_quant_config.json", "w4_meta.json")
_IMAGE_TOKENS = 280  # most tokens of one image with the image processor's default configuration


class DimensionsError(ValueError):
    """The configuration is not that of a DiffusionGemma, or it lacks a number."""


@dataclass(frozen=True)
class LayerShape:
    """The shape of one layer's keys and values. `window` is None if the layer keeps every token."""

    kv_heads: int
    head_size: int
    window: int | None


@dataclass(frozen=True)
class Tower:
    """The vision tower. One image token covers a square of `pooling` x `pooling` patches."""

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
    """The size of a quantised checkpoint's weights on the device."""

    nbytes: int  # of the weights that are held as they are stored
    elements: int = 0  # of the weights that are converted to the model's type


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of a network. Sizes are in elements, lengths in tokens."""

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
    quantized: bool  # whether the checkpoint is stored quantised
    stored: Stored | None = None  # of a quantised checkpoint, if its files are available

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Dimensions":
        """Returns the dimensions in a parsed `config.json`.

        Raises DimensionsError, which names the key, if they are not those of a DiffusionGemma.
        """
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
        """Returns the most tokens that one image has, or 0 if the model takes no images.

        An image is encoded in one pass, even if it has more tokens than a prefill chunk.
        """
        return 0 if self.tower is None else _IMAGE_TOKENS

    @property
    def sized(self) -> bool:
        """Returns whether the size of the weights is known.

        The size of quantised weights is known only from their files.
        """
        return not self.quantized or self.stored is not None

    def in_folder(self, folder: Path) -> "Dimensions":
        """Returns the dimensions, completed from the other files of the checkpoint's folder.

        These show if the checkpoint is quantised and how large its quantised weights are. Without
        an image processor's file the model takes no images.
        """
        takes_images = any((folder / name).exists() for name in PROCESSOR_FILES)
        marked = any((folder / name).exists() for name in QUANTIZED_FILES)
        quantized = self.quantized or marked
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return replace(
            self,
            tower=self.tower if takes_images else None,
            quantized=quantized,
            stored=Stored(stored) if quantized else None,
        )


def known_dimensions(model: str) -> Dimensions | None:
    """Returns the dimensions of a model whose configuration comes with Easel, or None."""
    file = _KNOWN.get(model.lower())
    return None if file is None else read_dimensions(file)


def read_dimensions(file: Path) -> Dimensions:
    """Returns the dimensions in a `config.json`.

    Raises OSError if the file cannot be read, and DimensionsError if it is not JSON or not the
    configuration of a DiffusionGemma.
    """
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
    kinds[-1] = "full_attention"  # regardless of the file, as in Transformers
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
    """Returns the default layer types: five sliding layers, then a full one, and so on."""
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
