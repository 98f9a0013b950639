"""A model's dimensions, read from its `config.json` alone. Memory and time are computed from them.

Plain Python, so that a plan needs neither torch nor Transformers. Values that a file leaves out get
the defaults of Transformers' `DiffusionGemmaTextConfig` and `Gemma4VisionConfig`; the tests compare
every number with these. Each number is checked to be one that a network can have. This module does
not check if the engine can run the model: `ModelConfig.from_transformers` does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import CONFIGS
from engine.sizing.model_files import read_json

# Copies of published configurations, so that a plan needs no network.
RELEASED_MODEL = "google/diffusiongemma-26B-A4B-it"

_KNOWN = {RELEASED_MODEL.lower(): CONFIGS / "models" / "diffusiongemma-26b-a4b.json"}
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
# A checkpoint with one of these files is quantised even if its config.json does not say so.
MODELOPT_FILE, W4_FILE = QUANTIZED_FILES = ("hf_quant_config.json", "w4_meta.json")
_IMAGE_TOKENS = 280  # most tokens of one image with the image processor's default configuration


class DimensionsError(ValueError):
    """The configuration is not that of a DiffusionGemma, or a number is missing or impossible."""


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
        whole, text = _Section("", config), _Section("text_config", config.get("text_config"))
        experts = text.number("num_experts", None)
        return cls(
            vocab_size=text.number("vocab_size", 262_144),
            hidden_size=text.number("hidden_size", 2304),
            mlp_size=text.number("intermediate_size", 9216),
            query_heads=text.number("num_attention_heads", 8),
            layers=_layers(text),
            experts=experts,
            experts_per_token=text.number("top_k_experts", None, most=experts),
            expert_size=text.number("moe_intermediate_size", None),
            canvas_length=whole.number("canvas_length", 256),
            max_positions=text.number("max_position_embeddings", 131_072),
            tower=_tower(_Section("vision_config", config.get("vision_config"))),
            quantized=whole.object("quantization_config") is not None,
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


def known_dimensions(model: str) -> Dimensions | None:
    """Returns the dimensions of a model whose configuration comes with Easel, or None."""
    file = _KNOWN.get(model.lower())
    return None if file is None else read_dimensions(file)


def read_dimensions(file: Path) -> Dimensions:
    """Returns the dimensions in a `config.json`.

    Raises ModelFilesError if the file cannot be read or is not JSON, and DimensionsError if it is
    not the configuration of a DiffusionGemma. Both name the file.
    """
    try:
        return Dimensions.of(read_json(file))
    except DimensionsError as error:
        raise DimensionsError(f"{file}: {error}") from error


class _Section:
    """An object in a configuration. Its values are checked when they are read.

    An object that is null or left out has no values.
    """

    def __init__(self, name: str, values: Any) -> None:
        """Raises DimensionsError if `values` is neither an object nor None."""
        if values is not None and not isinstance(values, Mapping):
            raise DimensionsError(f"{name} is {values!r}; it must be an object")
        self._prefix = f"{name}." if name else ""
        self._values: Mapping[str, Any] = values or {}

    def number(self, key: str, default: int | None, *, most: int | None = None) -> int:
        """Returns a whole number above 0, or the default if the file leaves it out.

        Raises DimensionsError if it is something else, above `most`, or left out without a default.
        """
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, "it must be a whole number above 0")
        if most is not None and value > most:
            raise self.error(key, f"it must be at most {most}")
        return value

    def object(self, key: str) -> Mapping[str, Any] | None:
        """Returns an object, or None if it is null or left out.

        Raises DimensionsError if it is something else.
        """
        value = self._values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.error(key, "it must be an object")
        return value

    def get(self, key: str) -> Any:
        """Returns a value, or None if it is left out. It is not checked."""
        return self._values.get(key)

    def within(self, key: str, name: str, values: Any) -> "_Section":
        """Returns an object of the object at `key`. Raises DimensionsError if it is none."""
        return _Section(f"{self._prefix}{key}.{name}", values)

    def error(self, key: str, allowed: str) -> DimensionsError:
        """Returns the error for a value that is not allowed."""
        return DimensionsError(f"{self._prefix}{key} is {self._values.get(key)!r}; {allowed}")


def _layers(text: _Section) -> tuple[LayerShape, ...]:
    count = text.number("num_hidden_layers", 30)
    kinds = text.get("layer_types")
    if kinds is None:
        kinds = _default_kinds(count)
    if (
        not isinstance(kinds, list)
        or len(kinds) != count
        or any(kind not in ("sliding_attention", "full_attention") for kind in kinds)
    ):
        raise text.error(
            "layer_types",
            f"it must have 'sliding_attention' or 'full_attention' for each of {count} layers",
        )
    kinds = [*kinds[:-1], "full_attention"]  # regardless of the file, as in Transformers
    query_heads = text.number("num_attention_heads", 8)
    kv_heads, head_size = text.number("num_key_value_heads", 4), text.number("head_dim", 256)
    window = text.number("sliding_window", 512)
    own = _overrides(text, kinds)
    layers = []
    for index, kind in enumerate(kinds):
        override = own.get(index, text.within("per_layer_config", str(index), None))
        shape = LayerShape(
            kv_heads=override.number("num_key_value_heads", kv_heads),
            head_size=override.number("head_dim", head_size),
            window=window if kind == "sliding_attention" else None,
        )
        if query_heads % shape.kv_heads or shape.head_size % 2:
            raise DimensionsError(
                f"text_config: layer {index} has {query_heads} query heads, {shape.kv_heads} "
                f"key-value heads and heads of size {shape.head_size}; the query heads must be a "
                "multiple of the key-value heads, and the size must be even"
            )
        layers.append(shape)
    return tuple(layers)


def _overrides(text: _Section, kinds: list[str]) -> dict[int, _Section]:
    """Returns the objects with the shapes of single layers, by the layers' indices."""
    key = "per_layer_config"
    overrides = text.object(key)
    if overrides is None:
        full: dict[str, Any] = {"head_dim": text.number("global_head_dim", 512)}
        if text.get("num_global_key_value_heads") is not None:
            full["num_key_value_heads"] = text.number("num_global_key_value_heads", None)
        overrides = {str(i): full for i, kind in enumerate(kinds) if kind == "full_attention"}
    unknown = [str(index) for index in overrides if not _is_index(str(index), len(kinds))]
    if unknown:
        raise DimensionsError(
            f"text_config.{key} has {', '.join(unknown)}; there are layers 0 to {len(kinds) - 1}"
        )
    return {int(index): text.within(key, str(index), values) for index, values in overrides.items()}


def _is_index(text: str, count: int) -> bool:
    return text.isdecimal() and int(text) < count


def _default_kinds(count: int) -> list[str]:
    """Returns the default layer types: five sliding layers, then a full one, and so on."""
    return ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(count)]


def _tower(vision: _Section) -> Tower:
    return Tower(
        hidden_size=vision.number("hidden_size", 768),
        mlp_size=vision.number("intermediate_size", 3072),
        layers=vision.number("num_hidden_layers", 16),
        query_heads=vision.number("num_attention_heads", 12),
        kv_heads=vision.number("num_key_value_heads", 12),
        head_size=vision.number("head_dim", 64),
        patch_size=vision.number("patch_size", 16),
        pooling=vision.number("pooling_kernel_size", 3),
        positions=vision.number("position_embedding_size", 10 * 1024),
        standardize=bool(vision.get("standardize")),
    )
