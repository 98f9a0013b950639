"""The entropy-bound sampler: temperature schedule, acceptance, renoising and the stopping rule.

The sampler knows nothing of the model: it works on the statistics of one step. Each canvas has its
own `SamplerConfig`, because a request may replace some of the checkpoint's numbers. Where all
canvases have the same numbers, a plain scalar is used. The reference is `EntropyBoundSampler`,
`LinearTemperatureScheduleLogitsProcessor` and `StableAndConfidentStoppingCriteria` in transformers'
`models/diffusion_gemma/generation_diffusion_gemma.py`.

Letters: N canvases of a pass, C positions of the widest canvas.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from engine.messages import MOST_NATS, MOST_STEPS, Sampling
from engine.sizing.activations import RELEASED_STEPS

# Factor on the stopping rule's confidence threshold. Speculations made and won on the demo model's
# answers of several blocks: 16 and 16 with a factor of 1, 22 and 21 with 5, 28 and 21 with 20, 32
# and 21 with 100.
_NEARLY = 5.0
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
        """Returns this sampler with the numbers that the request sets, and with its end tokens.

        As in Transformers, the temperature falls over the request's `max_denoising_steps` too.
        """
        numbers: dict[str, Any] = {
            "max_denoising_steps": sampling.max_denoising_steps,
            "entropy_bound": sampling.entropy_bound,
            "confidence_threshold": sampling.confidence_threshold,
        }
        given = {name: number for name, number in numbers.items() if number is not None}
        return dataclasses.replace(self, **given, end_tokens=sampling.ends(self.end_tokens))

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


def counted_positions(argmax: Tensor, configs: Sequence[SamplerConfig]) -> Tensor | None:
    """Returns which positions the stopping rule looks at, [N, C] bool, or None for all.

    With `early_end`, these are the positions up to the first end token of the argmax canvas [N, C],
    where the block will be cut. Each request has its own end tokens. One that ignores end tokens
    may have none.
    """
    ends = [config.end_tokens if config.early_end else frozenset() for config in configs]
    if not any(ends):
        return None
    is_end = torch.stack(
        [_is_one_of(tokens, row) for row, tokens in zip(argmax, ends, strict=True)]
    )
    return is_end.cumsum(-1) - is_end.long() == 0


def _is_one_of(tokens: Iterable[int], row: Tensor) -> Tensor:
    """Returns where `row` [C] has one of the tokens, [C] bool."""
    result = torch.zeros_like(row, dtype=torch.bool)
    # One by one: the host would wait for the device before it copied a tensor of them there.
    for token in tokens:
        result |= row == token
    return result


def stable_steps(
    argmax: Tensor, previous: Tensor, stable_so_far: Tensor, counted: Tensor | None = None
) -> Tensor:
    """Returns for how many steps each argmax canvas has stayed the same, [N] int64.

    `argmax` and `previous` are [N, C], `stable_so_far` is [N]. Positions that are not `counted`
    [N, C] may change.
    """
    same = argmax == previous
    if counted is not None:
        same = same | ~counted
    return torch.where(same.all(-1), stable_so_far + 1, 0)


def mean_entropy(entropy: Tensor, widths: list[int], counted: Tensor | None = None) -> Tensor:
    """Returns the mean entropy [N] over each canvas' width.

    `entropy` [N, C] is zero behind a canvas' width. Positions that are not `counted` [N, C] stay in
    the average, with an entropy of zero, so that the stopping rule fires no later than if all
    positions counted. (When they were left out of the average it fired later: after 2.63 steps a
    block of the demo model instead of 2.47.)
    """
    if counted is not None:
        entropy = entropy.where(counted, 0.0)
    sums = entropy.sum(-1)
    if len(set(widths)) == 1:
        return sums / widths[0]
    return torch.stack([total / width for total, width in zip(sums, widths, strict=True)])


def converged(stable: Tensor, mean: Tensor, configs: Sequence[SamplerConfig]) -> Tensor:
    """Returns which canvases the stopping rule ends, [N] bool.

    They are `stable` [N] for enough steps, and their mean entropy [N] is low enough.
    """
    steps = _per_canvas([config.stability_threshold for config in configs], mean.device)
    nats = _per_canvas([config.confidence_threshold for config in configs], mean.device)
    return ((stable[:, None] >= steps) & (mean[:, None] < nats)).squeeze(1)


def nearly_converged(mean: Tensor, configs: Sequence[SamplerConfig]) -> Tensor:
    """Returns which canvases the next step may well finish, [N] bool, given their mean entropy [N].

    The scheduler speculates on these.
    """
    nats = _per_canvas([_NEARLY * config.confidence_threshold for config in configs], mean.device)
    return (mean[:, None] < nats).squeeze(1)


def _per_canvas(values: Sequence[float], device: torch.device) -> float | Tensor:
    """Returns the canvases' common value as a number, or their values as a tensor [N, 1]."""
    if len(set(values)) == 1:
        return values[0]
    # Filled on the device: the host would wait for the device before it copied a tensor there.
    return torch.cat([torch.full((1, 1), value, device=device) for value in values])
