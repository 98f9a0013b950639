"""Images to embeddings: Transformers' own vision tower and projector, on the checkpoint's weights.

Built only for a checkpoint that has an image processor's configuration. Of that processor the
front end has done what reads the whole picture (turning it upright, to RGB, to its final size);
here it scales the values and cuts the patches. Knows neither prompts nor positions.
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
        """None if the folder has no image processor. Raises UnsupportedModelError."""
        from transformers.image_processing_base import ImageProcessingMixin  # slow to import

        if not any((folder / name).exists() for name in PROCESSOR_FILES):
            return None
        try:
            found, _ = ImageProcessingMixin.get_image_processor_dict(folder)
        except OSError:  # the first file alone, and for other things than images
            return None
        kind = found.get("image_processor_type")
        if kind not in _PROCESSORS:
            allowed = " or ".join(map(repr, _PROCESSORS))
            raise UnsupportedModelError(f"image_processor_type is {kind!r}; supported: {allowed}")
        obstacles = [
            f"the image processor's {key} is False; supported: True"
            for key in ("do_resize", "do_convert_rgb")
            if not found.get(key, True)
        ]
        if obstacles:
            raise UnsupportedModelError("; ".join(obstacles))
        return cls(model, found)


class Vision(nn.Module):
    """Built empty; `engine.model.checkpoint` fills it through `tensors`."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        quantized: bool = False,
    ) -> None:
        """With room for its weights in full, but where they are to be `quantized` without any.

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
        # Not on the meta device: the tower has buffers that no file holds, made as it is built,
        # and in float32 whatever the weights are.
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
                self._make_room(prefix, part)
        self.requires_grad_(False).eval()

    @property
    def token_side(self) -> int:
        """An image token stands for a square of pixels: its side."""
        side: int = self.processor.patch_size * self.processor.pooling_kernel_size
        return side

    @property
    def most_tokens(self) -> int:
        """Of one image."""
        most: int = self.processor.max_soft_tokens
        return most

    def fits(self, image: Image) -> bool:
        """Whether the image's numbers agree, and are such as the front end makes them."""
        rows, row_rest = divmod(image.height, self.token_side)
        columns, column_rest = divmod(image.width, self.token_side)
        return (
            row_rest == column_rest == 0
            and 1 <= image.tokens == rows * columns <= self.most_tokens
            and len(image.pixels) == image.height * image.width * 3
        )

    def forward(self, image: Image) -> Tensor:
        """An image's embeddings [its tokens, D], as they stand in for those of its tokens."""
        pixels = np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3)
        patches = self.processor(
            [pixels], do_resize=False, input_data_format="channels_last", return_tensors="pt"
        )
        device = self.projector.embedding_projection.weight.device
        hidden = self.tower(
            pixel_values=patches["pixel_values"].to(device),  # [1, patches, values of one]
            pixel_position_ids=patches["image_position_ids"].to(device),
        ).last_hidden_state  # [tokens, the tower's hidden size]: padding is gone
        embeddings: Tensor = self.projector(hidden)
        assert embeddings.shape[0] == image.tokens
        return embeddings

    def tensors(self) -> dict[str, Tensor]:
        """Where each tensor of a checkpoint belongs that is held in full, by its name there."""
        return {
            prefix + name: tensor
            for prefix, part in self._parts().items()
            for name, tensor in part.state_dict().items()
            if prefix + name not in self._projections
        }

    def weight_targets(self) -> list[WeightTarget]:
        """Those of the others."""
        return [
            WeightTarget(projection, "weight", {name: projection.shape}, "rest")
            for name, projection in self._projections.items()
        ]

    def _parts(self) -> dict[str, nn.Module]:
        return {_TOWER: self.tower, _PROJECTOR: self.projector}

    def _make_room(self, prefix: str, part: nn.Module) -> None:
        """Projections in place of torch's, but for the patches', whose type the tower asks for."""
        for name, module in list(part.named_modules()):
            if isinstance(module, nn.Linear) and not name.endswith(_PATCHES):
                projection = Projection(module.weight.shape)
                part.set_submodule(name, projection)
                self._projections[f"{prefix}{name}.weight"] = projection


class Projection(nn.Module):
    """A matrix in whatever it is held; without one until it is filled."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.weight: Weight = nn.Parameter(torch.empty(shape, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """[.., K] -> [.., N]."""
        return linear(x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


def is_vision(name: str) -> bool:
    """Whether a checkpoint's tensor is a weight of the vision tower or of its projector."""
    return name.startswith((_TOWER, _PROJECTOR))


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
