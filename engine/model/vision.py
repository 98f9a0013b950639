"""Turns images into embeddings, by Transformers' vision tower and projector.

They have the checkpoint's weights, and exist only for a checkpoint with the configuration of an
image processor. The front end has already done the processor's steps that need the whole picture:
turning it upright, converting it to RGB and scaling it to its final size. The remaining steps are
done here: scaling the values and cutting the patches. This module knows neither prompts nor
positions.

Letters: D hidden size, K input features, N output features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.messages import Image
from engine.model.diffusion_gemma import UnsupportedModelError
from engine.model.products import linear
from engine.model.weight_map import WeightTarget
from engine.sizing.dimensions import PROCESSOR_FILES
from engine.sizing.model_files import read_json
from engine.weights.quantization import Weight

_PROCESSORS = ("Gemma4ImageProcessor", "Gemma4ImageProcessorFast", "Gemma4ImageProcessorPil")
_PATCHES = "patch_embedder.input_proj"
_TOWER, _PROJECTOR = "model.encoder.vision_tower.", "model.encoder.embed_vision."


@dataclass(frozen=True)
class VisionConfig:
    """Transformers' configurations of the model and of its image processor."""

    model: Any
    image_processor: dict[str, Any]

    @classmethod
    def find(cls, folder: Path, model: Any) -> "VisionConfig | None":
        """Returns the configurations, or None if the folder has no image processor.

        Raises UnsupportedModelError if the image processor is of another type, if it does not
        resize images and convert them to RGB, or if its numbers are impossible. Raises
        ModelFilesError if a file is damaged.
        """
        from transformers.image_processing_base import ImageProcessingMixin  # slow to import

        files = [folder / name for name in PROCESSOR_FILES if (folder / name).exists()]
        if not files:
            return None
        for file in files:
            read_json(file)  # Transformers treats a damaged file like a missing one
        try:
            processor, _ = ImageProcessingMixin.get_image_processor_dict(folder)
        except OSError:  # only the first file exists, and it configures no image processor
            return None
        if not isinstance(processor, dict):
            raise UnsupportedModelError(f"image_processor is {processor!r}; it must be an object")
        kind = processor.get("image_processor_type")
        if kind not in _PROCESSORS:
            allowed = " or ".join(map(repr, _PROCESSORS))
            raise UnsupportedModelError(f"image_processor_type is {kind!r}; supported: {allowed}")
        obstacles = [
            f"the image processor's {key} is False; supported: True"
            for key in ("do_resize", "do_convert_rgb")
            if not processor.get(key, True)
        ]
        obstacles += [
            f"the image processor's {key} is {processor[key]!r}; it must be a whole number above 0"
            for key in ("patch_size", "pooling_kernel_size", "max_soft_tokens")
            if key in processor and not _is_whole_number(processor[key])
        ]
        if obstacles:
            raise UnsupportedModelError("; ".join(obstacles))
        return cls(model, processor)


class Vision(nn.Module):
    """The vision tower, its projector and the image processor.

    They are built with empty weights, which `engine.model.checkpoint` fills.
    """

    def __init__(
        self,
        config: VisionConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        quantized: bool = False,
    ) -> None:
        """Allocate the weights, except for those that loading will quantise if `quantized` is set.

        Raises UnsupportedModelError if tower and image processor do not fit each other.
        """
        super().__init__()
        from transformers import AutoModel, Gemma4ImageProcessorPil
        from transformers.initialization import no_init_weights
        from transformers.models.diffusion_gemma.modeling_diffusion_gemma import (
            DiffusionGemmaMultimodalEmbedder,
        )

        model = config.model
        self.processor = Gemma4ImageProcessorPil.from_dict(config.image_processor)
        _check_fit(self.processor, model.vision_config)
        # Not on the meta device: building the tower also makes buffers that no file holds. These
        # are float32, whatever the dtype of the weights.
        with no_init_weights(), device:
            self.tower = AutoModel.from_config(  # type: ignore[no-untyped-call]  # is untyped
                model.vision_config, dtype=dtype
            )
            self.projector = DiffusionGemmaMultimodalEmbedder(
                model.vision_config, model.text_config
            ).to(dtype)
        self._projections: dict[str, Projection] = {}  # by their names in a checkpoint
        if quantized:
            for prefix, part in self._parts().items():
                self._replace_linears(prefix, part)
        self.requires_grad_(False).eval()

    @property
    def token_side(self) -> int:
        """Returns the side, in pixels, of the square that an image token stands for."""
        side: int = self.processor.patch_size * self.processor.pooling_kernel_size
        return side

    @property
    def most_tokens(self) -> int:
        """Returns the most tokens that an image may have."""
        most: int = self.processor.max_soft_tokens
        return most

    def fits(self, image: Image) -> bool:
        """Returns whether the image's size, tokens and pixels agree and are within the limits."""
        rows, surplus_height = divmod(image.height, self.token_side)
        columns, surplus_width = divmod(image.width, self.token_side)
        return (
            surplus_height == surplus_width == 0
            and min(rows, columns) >= 1
            and image.tokens == rows * columns <= self.most_tokens
            and len(image.pixels) == image.height * image.width * 3
        )

    def forward(self, image: Image) -> Tensor:
        """Returns an image's embeddings [image.tokens, D], which replace those of its tokens."""
        pixels = np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3)
        patches = self.processor(
            [pixels], do_resize=False, input_data_format="channels_last", return_tensors="pt"
        )
        device = self.projector.embedding_projection.weight.device
        hidden = self.tower(
            pixel_values=patches["pixel_values"].to(device),  # [1, patches, values of a patch]
            pixel_position_ids=patches["image_position_ids"].to(device),
        ).last_hidden_state  # [tokens, the tower's hidden size], without padding
        embeddings: Tensor = self.projector(hidden)
        assert embeddings.shape[0] == image.tokens
        return embeddings

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors that are not quantised, by their names in a checkpoint."""
        return {
            prefix + name: tensor
            for prefix, part in self._parts().items()
            for name, tensor in part.state_dict().items()
            if prefix + name not in self._projections
        }

    def weight_targets(self) -> list[WeightTarget]:
        """Returns the targets of the weights that loading quantises."""
        return [
            WeightTarget(projection, "weight", {name: projection.shape}, "rest")
            for name, projection in self._projections.items()
        ]

    def _parts(self) -> dict[str, nn.Module]:
        return {_TOWER: self.tower, _PROJECTOR: self.projector}

    def _replace_linears(self, prefix: str, part: nn.Module) -> None:
        """Replace torch's linears by projections that can be quantised.

        The patches' linear stays, because the tower reads the dtype of its weight.
        """
        for name, module in list(part.named_modules()):
            if isinstance(module, nn.Linear) and not name.endswith(_PATCHES):
                projection = Projection(module.weight.shape)
                part.set_submodule(name, projection)
                self._projections[f"{prefix}{name}.weight"] = projection


class Projection(nn.Module):
    """A linear without a bias, whose weight may be quantised. It is built without memory."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.weight: Weight = nn.Parameter(torch.empty(shape, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x @ weight.T: [.., K] -> [.., N]."""
        return linear(x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


def is_vision(name: str) -> bool:
    """Returns whether a checkpoint's tensor is a weight of the vision tower or of its projector."""
    return name.startswith((_TOWER, _PROJECTOR))


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_fit(processor: Any, tower: Any) -> None:
    obstacles = [
        f"the image processor's {key} is {getattr(processor, key)!r}, "
        f"vision_config's {getattr(tower, key)!r}"
        for key in ("patch_size", "pooling_kernel_size")
        if getattr(processor, key) != getattr(tower, key)
    ]
    # A strip of one token's height is the longest image.
    patches = processor.max_soft_tokens * processor.pooling_kernel_size
    if patches > tower.position_embedding_size:
        obstacles.append(
            f"max_soft_tokens {processor.max_soft_tokens} needs {patches} positions, "
            f"position_embedding_size is {tower.position_embedding_size}"
        )
    if obstacles:
        raise UnsupportedModelError("; ".join(obstacles))
