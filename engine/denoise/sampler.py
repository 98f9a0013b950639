"""The entropy-bound sampler: temperature schedule, acceptance, renoising and the stopping rule.

Knows nothing of the model: it works on one step's statistics. Each canvas has its own
`SamplerConfig`, since a request may have some of the checkpoint's numbers otherwise; where all are
the same, nothing is computed but what one would need. The reference is
`EntropyBoundSampler`, `LinearTemperatureScheduleLogitsProcessor` and
`StableAndConfidentStoppingCriteria` in transformers'
`models/diffusion_gemma/generation_diffusion_gemma.py`. Letters: N canvases, C positions of each.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.messages import Sampling
from engine.sizing.activations import RELEASED_STEPS

# Times the threshold of the stopping rule. On the demo model's answers of several blocks, bets were
# tried and won: at 1, 16 and 16; at 5, 22 and 21; at 20, 28 and 21; at 100, 32 and 21.
_NEARLY = 5.0


class UnsupportedSamplerError(ValueError):
    """The checkpoint's `generation_config.json` asks for a sampler that this engine lacks."""


@dataclass(frozen=True)
class SamplerConfig:
    """The checkpoint's sampler; the defaults are the released model's."""

    max_denoising_steps: int = RELEASED_STEPS
    entropy_bound: float = 0.1  # nats
    t_min: float = 0.4
    t_max: float = 0.8
    stability_threshold: int = 1  # steps
    confidence_threshold: float = 0.005  # nats a position
    end_tokens: frozenset[int] = frozenset()
    early_end: bool = False  # positions behind an end token do not hold a canvas open

    @classmethod
    def from_generation_config(cls, values: dict[str, Any]) -> "SamplerConfig":
        """From the parsed `generation_config.json`; what it leaves out or null has its default."""
        sampler = values.get("sampler_config") or {}
        name = sampler.get("_cls_name", "EntropyBoundSamplerConfig")
        if name != "EntropyBoundSamplerConfig":
            raise UnsupportedSamplerError(
                f"generation_config.json: sampler_config is {name!r}; "
                "supported: 'EntropyBoundSamplerConfig'"
            )
        ends = values.get("eos_token_id")
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        given = {
            "max_denoising_steps": values.get("max_denoising_steps"),
            "entropy_bound": sampler.get("entropy_bound"),
            "t_min": values.get("t_min"),
            "t_max": values.get("t_max"),
            "stability_threshold": values.get("stability_threshold"),
            "confidence_threshold": values.get("confidence_threshold"),
        }
        known = {key: value for key, value in given.items() if value is not None}
        return cls(**known, end_tokens=frozenset(ends))

    def of_request(self, sampling: Sampling) -> "SamplerConfig":
        """With the numbers that a request has of its own; itself, if it has none.

        As in Transformers, `max_denoising_steps` also sets over how many the temperature falls.
        """
        numbers: dict[str, Any] = {
            "max_denoising_steps": sampling.max_denoising_steps,
            "entropy_bound": sampling.entropy_bound,
            "confidence_threshold": sampling.confidence_threshold,
            "end_tokens": frozenset() if sampling.ignore_eos else None,
        }
        given = {name: number for name, number in numbers.items() if number is not None}
        return dataclasses.replace(self, **given) if given else self

    def temperature(self, step_index: int) -> float:
        """The schedule's temperature at a block's step 0, 1, …: from near t_max down to t_min."""
        steps_left = self.max_denoising_steps - step_index
        return self.t_min + (self.t_max - self.t_min) * (steps_left / self.max_denoising_steps)


def accept(entropy: Tensor, configs: Sequence[SamplerConfig]) -> Tensor:
    """Which positions of canvases [N, C] to accept: the least uncertain ones, up to the bound.

    In ascending order of entropy, a position is accepted while the sum of the entropies before
    it is at most the bound. That sum bounds the mutual information between the accepted tokens,
    so that they may be drawn independently (arXiv 2505.24857). Gives [N, C] bool.
    """
    ordered, order = entropy.sort(stable=True)
    bounds = _of_each([config.entropy_bound for config in configs], entropy.device)
    within = ordered.cumsum(-1) - ordered <= bounds
    return torch.zeros_like(within).scatter_(-1, order, within)


def counted_positions(argmax: Tensor, configs: Sequence[SamplerConfig]) -> Tensor | None:
    """Which positions of canvases [N, C] the stopping rule looks at, [N, C] bool; None: at all.

    With `early_end` those up to the first end token of the argmax canvas: the block is cut there.
    The end tokens are the checkpoint's, or none where a request ignores them.
    """
    cut = [config.early_end and bool(config.end_tokens) for config in configs]
    if not any(cut):
        return None
    # One by one: a tensor of them would be made on the host, which would wait for the device.
    end_tokens = configs[cut.index(True)].end_tokens
    ends = torch.stack([argmax == token for token in end_tokens]).any(0)
    counted = ends.cumsum(-1) - ends.long() == 0
    if all(cut):
        return counted
    each = zip(counted, cut, strict=True)
    return torch.stack([row if is_cut else torch.ones_like(row) for row, is_cut in each])


def stable_steps(
    argmax: Tensor, previous: Tensor, stable_so_far: Tensor, counted: Tensor | None = None
) -> Tensor:
    """For how many steps the argmax canvases [N, C] have stayed the same, as [N] int64."""
    same = argmax == previous
    if counted is not None:
        same = same | ~counted
    return torch.where(same.all(-1), stable_so_far + 1, 0)


def mean_entropy(entropy: Tensor, widths: list[int], counted: Tensor | None = None) -> Tensor:
    """Over each canvas' own positions [N]; entropy [N, C] is zero behind its width.

    Positions that do not count have no entropy, rather than no part in the average: so the rule
    fires no later than without them. (Averaging over the others alone it fired later, at 2.63
    steps a block of the demo model instead of 2.47.)
    """
    if counted is not None:
        entropy = entropy.where(counted, 0.0)
    sums = entropy.sum(-1)
    if len(set(widths)) == 1:
        return sums / widths[0]
    return torch.stack([total / width for total, width in zip(sums, widths, strict=True)])


def converged(stable: Tensor, mean: Tensor, configs: Sequence[SamplerConfig]) -> Tensor:
    """The stopping rule, [N] bool: stable [N] for long enough, of mean entropy [N] low enough."""
    steps = _of_each([config.stability_threshold for config in configs], mean.device)
    nats = _of_each([config.confidence_threshold for config in configs], mean.device)
    return ((stable[:, None] >= steps) & (mean[:, None] < nats)).squeeze(1)


def nearly_converged(mean: Tensor, configs: Sequence[SamplerConfig]) -> Tensor:
    """Whether canvases look as if the next step could finish them, [N] bool: a guess to bet on."""
    nats = _of_each([_NEARLY * config.confidence_threshold for config in configs], mean.device)
    return (mean[:, None] < nats).squeeze(1)


def _of_each(values: Sequence[float], device: torch.device) -> float | Tensor:
    """One number for all canvases, if it is the same; else one a canvas, [N, 1]."""
    if len(set(values)) == 1:
        return values[0]
    # Filled in on the device, for which the host would wait before it took a tensor of them.
    return torch.cat([torch.full((1, 1), value, device=device) for value in values])
