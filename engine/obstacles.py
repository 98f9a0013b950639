"""Why a request cannot be carried out: the worker's checks, before the request reaches the device.

The front end has checked all of this with better messages. These checks are a safety net: on a GPU
an invalid token id would end the process.
"""

from engine.denoise.canvas import Rules
from engine.denoise.denoiser import Denoiser
from engine.messages import (
    MOST_CANVAS_STEPS,
    MOST_NATS,
    MOST_SAMPLES,
    MOST_STEPS,
    Decision,
    GenerateRequest,
    Sampling,
)

_MOST_BIAS = 1e4  # nats: stays far below the limit of float32 even at the lowest temperature
_MOST_REPETITION_PENALTY = 1e4  # biased logits stay as far below that limit
_MOST_COUNT = 2**31 - 1  # fits the integers of every tensor
_MOST_TEMPERATURE = 1e4  # up to here a banned token's probability is still zero in float32


def request_obstacle(request: GenerateRequest, denoiser: Denoiser) -> str | None:
    """Returns why none of the request's choices can be made, or None if they can."""
    room = denoiser.context_length - len(request.prompt)
    if not request.prompt or not 1 <= request.max_tokens <= room:
        return "The prompt and max_tokens do not fit the context."
    if not _has_tokens(request.prompt, denoiser):
        return "The prompt has token ids that the model does not have."
    if not _takes_images(request, denoiser):
        return "The model cannot take the prompt's images."
    predicted = [] if request.prediction is None else request.prediction.tokens
    if request.prediction is not None and not 1 <= len(predicted) <= denoiser.context_length:
        return "The prediction is empty or longer than the context."
    if predicted and not _has_tokens(predicted, denoiser):
        return "The prediction has token ids that the model does not have."
    thought = request.thought
    if thought is not None:
        if not _has_tokens([thought.open, thought.close, *thought.header], denoiser):
            return "The marks of thoughts are token ids that the model does not have."
        if min(thought.budget or 0, thought.reserve) < 0:
            return "budget or reserve is out of range."
    obstacle = None
    if request.decision is not None:
        obstacle = _decision_obstacle(request.decision, request.max_tokens, denoiser)
    return obstacle or _sampling_obstacle(request, denoiser)


def constraint_obstacle(
    request: GenerateRequest, rules: Rules | str | None, denoiser: Denoiser
) -> str | None:
    """Returns why the request's constraint cannot be held, or None if it can.

    `rules` are what the worker keeps of it: the constraint, or why it cannot be held.
    """
    if not request.constraint:
        return None
    if rules is None:
        return "The constraint is not known."
    if isinstance(rules, str):
        return rules
    sampling = request.sampling
    if rules.vocab_size != denoiser.vocab_size:
        return "The constraint is for another vocabulary."
    ends = sampling.ends(denoiser.sampler.end_tokens)
    if sampling.suffix or not ends.issuperset(rules.end_tokens):
        return "A constraint excludes a suffix, and ends with tokens that end the answer."
    return None


def choice_obstacle(choice: GenerateRequest, rules: Rules | None, denoiser: Denoiser) -> str | None:
    """Returns why this choice of a request cannot be made, or None if it can."""
    if not 0 <= choice.sampling.choice <= _MOST_COUNT:
        return "choice is out of range."
    if not 0 <= choice.delivered_blocks <= _MOST_COUNT:
        return "delivered_blocks is out of range."
    answer = choice.delivered or choice.lead
    if answer and not _has_tokens(answer, denoiser):
        return "The answer has token ids that the model does not have."
    if len(answer) >= choice.max_tokens:
        return "The whole answer was delivered before."
    if rules is not None:
        try:
            needed = rules.needed_tokens(answer)
        except ValueError as error:
            return f"The constraint cannot be held: {error}"
        if needed is None:
            return "The answer's beginning breaks its constraint."
        if needed > choice.max_tokens - len(answer):
            return "max_tokens is too small for the constraint."
    return None


def _decision_obstacle(decision: Decision, most_tokens: int, denoiser: Denoiser) -> str | None:
    """Returns why a decision cannot be made, or None if it can.

    Its reads' prompts have at most `most_tokens` tokens each.
    """
    most_tokens = min(most_tokens, denoiser.read_tokens)
    canvas_length = denoiser.model.dimensions.canvas_length
    if not (1 <= decision.samples <= MOST_SAMPLES and 1 <= decision.steps <= MOST_STEPS):
        return "samples or steps is out of range."
    if not 1 <= decision.canvas_steps <= MOST_CANVAS_STEPS:
        return "The decision has no canvas, or too many with all of their steps."
    for read in decision.reads:
        positions = [slot.position for slot in read.slots]
        tokens = [*read.prompt, *read.canvas, *(t for slot in read.slots for t in slot.labels)]
        if not 1 <= len(read.prompt) <= most_tokens:
            return "A read's prompt is empty or too long."
        if not (positions and 0 <= min(positions) <= max(positions) < len(read.canvas)):
            return "A read has no slots, or slots that are not in its canvas."
        if len(set(positions)) < len(positions) or len(read.canvas) > canvas_length:
            return "A read's canvas is too long, or has two slots at one position."
        if not all(slot.labels for slot in read.slots):
            return "A slot has no labels."
        if not _has_tokens(tokens, denoiser):
            return "A read has token ids that the model does not have."
    return None


def _sampling_obstacle(request: GenerateRequest, denoiser: Denoiser) -> str | None:
    """Returns why the request's sampling options cannot be used, or None if they can."""
    sampling, vocab_size = request.sampling, denoiser.vocab_size
    if sampling.suffix:
        length = request.max_tokens + len(sampling.suffix)
        room = denoiser.context_length - len(request.prompt)
        if length > min(denoiser.model.dimensions.canvas_length, room):
            return "suffix and max_tokens together do not fit one canvas behind the prompt."
    for name in ("suffix", "logit_bias", "banned_tokens", "stop_token_ids"):
        if any(not 0 <= token < vocab_size for token in getattr(sampling, name)):
            return f"{name} has token ids that the model does not have."
    invalid = out_of_range(sampling)
    return f"{invalid[0]} is out of range." if invalid else None


def _takes_images(request: GenerateRequest, denoiser: Denoiser) -> bool:
    """Returns whether the model can take the request's images.

    It can if it has a vision tower that each image fits, and if the images lie within the prompt,
    in order and without overlapping.
    """
    vision, end = denoiser.vision, 0
    for image in request.images:
        if vision is None or not vision.fits(image) or image.start < end:
            return False
        end = image.end
    return end <= len(request.prompt)


def _has_tokens(tokens: list[int], denoiser: Denoiser) -> bool:
    """Returns whether the model has all of these tokens, of which there is at least one."""
    return 0 <= min(tokens) <= max(tokens) < denoiser.vocab_size


def out_of_range(sampling: Sampling) -> list[str]:
    """Returns the names of all options that are outside of their range. NaN is in no range."""
    biases, steps = sampling.logit_bias.values(), sampling.max_denoising_steps
    bound, threshold = sampling.entropy_bound, sampling.confidence_threshold
    checks = {
        "seed": 0 <= sampling.seed < 2**64,
        "temperature": 0 <= sampling.temperature <= _MOST_TEMPERATURE,
        "top_p": 0 < sampling.top_p <= 1,
        "top_k": 0 <= sampling.top_k <= _MOST_COUNT,
        "min_p": 0 <= sampling.min_p <= 1,
        "logit_bias": all(abs(bias) <= _MOST_BIAS for bias in biases),
        "presence_penalty": abs(sampling.presence_penalty) <= _MOST_BIAS,
        "frequency_penalty": abs(sampling.frequency_penalty) <= _MOST_BIAS,
        "repetition_penalty": (
            1 / _MOST_REPETITION_PENALTY <= sampling.repetition_penalty <= _MOST_REPETITION_PENALTY
        ),
        # The checkpoint may name end tokens beyond its vocabulary.
        "end_tokens": all(0 <= token <= _MOST_COUNT for token in sampling.end_tokens),
        "min_tokens": 0 <= sampling.min_tokens <= _MOST_COUNT,
        "max_denoising_steps": steps is None or 1 <= steps <= MOST_STEPS,
        "entropy_bound": bound is None or 0 <= bound <= MOST_NATS,
        "confidence_threshold": threshold is None or 0 <= threshold <= MOST_NATS,
        "top_logprobs": (
            sampling.top_logprobs is None or 0 <= sampling.top_logprobs <= _MOST_COUNT
        ),
        "drafts_every": 0 <= sampling.drafts_every <= MOST_STEPS,
        "drafts_interval_s": 0 <= sampling.drafts_interval_s <= _MOST_COUNT,
    }
    return [name for name, is_valid in checks.items() if not is_valid]
