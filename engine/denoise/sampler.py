"""The entropy-bound sampler: its numbers, the temperature schedule and acceptance.

The sampler knows nothing of the model: it works on the statistics of one step. Each canvas has its
own `SamplerConfig`, because a request may replace some of the checkpoint's numbers. Where all
canvases have the same numbers, a plain scalar is used. The reference is `EntropyBoundSampler` and
`LinearTemperatureScheduleLogitsProcessor` in transformers'
`models/diffusion_gemma/generation_diffusion_gemma.py`. `stopping` has the rules by which a block
is final.

Letters: N canvases of a pass, C positions of the widest canvas.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from engine.config import Quality
from engine.denoise.stopping import Rule, stopping_rule
from engine.messages import MOST_NATS, MOST_STEPS, Sampling
from engine.sizing.activations import RELEASED_STEPS

_SAMPLER = "EntropyBoundSamplerConfig"  # Transformers' class of the released sampler's numbers


class UnsupportedSamplerError(ValueError):
    """The checkpoint's `generation_config.json` asks for a sampler that this engine lacks."""


_Number = Annotated[float, Field(ge=0, le=MOST_NATS, allow_inf_nan=False)]


class _EntropyBoundConfig(BaseModel):
    """The numbers of the only sampler that is supported."""

    model_config = ConfigDict(strict=True, extra="forbid")

    entropy_bound: _Number | None = None


class _GenerationConfig(BaseModel):
    """The values of `generation_config.json` that are used. All others are left unread."""

    model_config = ConfigDict(strict=True)

    max_denoising_steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    t_min: _Number | None = None
    t_max: _Number | None = Field(default=None, gt=0)
    stability_threshold: int | None = Field(default=None, ge=0)
    confidence_threshold: _Number | None = None
    eos_token_id: list[Annotated[int, Field(ge=0, lt=2**31)]] = []
    pad_token_id: int | None = None
    sampler_config: _EntropyBoundConfig

    @field_validator("eos_token_id", mode="before")
    @classmethod
    def _as_list(cls, ends: Any) -> Any:
        return [] if ends is None else ends if isinstance(ends, list) else [ends]


@dataclass(frozen=True)
class SamplerConfig:
    """The numbers of the checkpoint's sampler. The defaults are those of the released model."""

    max_denoising_steps: int = RELEASED_STEPS
    entropy_bound: float = 0.1  # nats
    t_min: float = 0.4
    t_max: float = 0.8
    stability_threshold: int = 1  # steps
    confidence_threshold: float = 0.005  # nats a position
    end_tokens: frozenset[int] = frozenset()
    padding: int | None = None  # the token that fills a canvas behind the answer's end
    quality: Quality = "exact"
    early_end: bool = False  # the stopping rule ignores positions behind an end token

    @classmethod
    def from_generation_config(cls, values: dict[str, Any]) -> "SamplerConfig":
        """Returns the sampler of a parsed `generation_config.json`.

        A number that is missing or null has its default. Raises UnsupportedSamplerError if the file
        names another sampler, or a value that no sampler can have. The error names every such key.
        """
        sampler = values.get("sampler_config") or {}
        name = sampler.get("_cls_name", _SAMPLER) if isinstance(sampler, dict) else sampler
        if name != _SAMPLER:
            raise UnsupportedSamplerError(
                f"generation_config.json: sampler_config is {name!r}; supported: {_SAMPLER!r}"
            )
        numbers = {key: value for key, value in sampler.items() if key != "_cls_name"}
        try:
            read = _GenerationConfig.model_validate({**values, "sampler_config": numbers})
        except ValidationError as error:
            faults = [
                f"{'.'.join(key for key in each['loc'] if isinstance(key, str))} is "
                f"{each['input']!r}: {each['msg']}"
                for each in error.errors()
            ]
            raise UnsupportedSamplerError(f"generation_config.json: {'; '.join(faults)}") from error
        given = {
            **read.model_dump(exclude={"eos_token_id", "pad_token_id", "sampler_config"}),
            **read.sampler_config.model_dump(),
        }
        known = {key: value for key, value in given.items() if value is not None}
        config = cls(**known, end_tokens=frozenset(read.eos_token_id), padding=read.pad_token_id)
        if config.t_max < config.t_min:
            raise UnsupportedSamplerError(
                f"generation_config.json: t_max is {config.t_max!r}, which is below t_min, "
                f"{config.t_min!r}"
            )
        return config

    def for_request(self, sampling: Sampling) -> "SamplerConfig":
        """Returns this sampler with what the request sets, and with its end tokens.

        As in Transformers, the temperature falls over the request's `max_denoising_steps` too. A
        confidence threshold means that blocks are final by it, and not by a laxer rule.
        """
        numbers: dict[str, Any] = {
            "max_denoising_steps": sampling.max_denoising_steps,
            "entropy_bound": sampling.entropy_bound,
            "confidence_threshold": sampling.confidence_threshold,
            "quality": sampling.quality if sampling.confidence_threshold is None else "exact",
        }
        given = {name: number for name, number in numbers.items() if number is not None}
        return dataclasses.replace(self, **given, end_tokens=sampling.ends(self.end_tokens))

    @cached_property
    def stopping_rule(self) -> Rule:
        """Returns the rule that says when a block is final, before its last step."""
        return stopping_rule(
            self.quality,
            stability_steps=self.stability_threshold,
            confidence_nats=self.confidence_threshold,
        )

    def temperature(self, step_index: int) -> float:
        """Returns the schedule's temperature at step 0, 1, … of a block.

        It falls linearly, from t_max at step 0 towards t_min.
        """
        steps_left = self.max_denoising_steps - step_index
        return self.t_min + (self.t_max - self.t_min) * (steps_left / self.max_denoising_steps)


def accept(entropy: Tensor, configs: Sequence[SamplerConfig]) -> Tensor:
    """Returns which positions of the canvases to accept, [N, C] bool, given their entropy [N, C].

    In ascending order of entropy, a position is accepted while the sum of the entropies before
    it is at most the canvas' entropy bound. That sum bounds the mutual information between the
    accepted tokens, so that they may be drawn independently (arXiv 2505.24857).
    """
    ordered, order = entropy.sort(stable=True)
    bounds = _per_canvas([config.entropy_bound for config in configs], entropy.device)
    within = ordered.cumsum(-1) - ordered <= bounds
    return torch.zeros_like(within).scatter_(-1, order, within)


def _per_canvas(values: Sequence[float], device: torch.device) -> float | Tensor:
    """Returns the canvases' common value as a number, or their values as a tensor [N, 1]."""
    if len(set(values)) == 1:
        return values[0]
    # Filled on the device: the host would wait for the device before it copied a tensor there.
    return torch.cat([torch.full((1, 1), value, device=device) for value in values])
