"""A second, plain implementation of a whole answer in float64, with every option of `Sampling`.

The worker's tokens are compared with its result. It stores all logits, and uses no chunks, batches
or kernels, and no cache beyond one block. It shares only the network and the random numbers with
the worker.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.passes import decode, encode
from engine.denoise.canvas import PREDICTION_NOISE
from engine.denoise.denoiser import Denoiser
from engine.denoise.noise import block_noise
from engine.denoise.prediction import PredictedAnswer
from engine.messages import GenerateRequest
from engine.model.kv_cache import KVCache


@dataclass
class PlainBlock:
    tokens: list[int]
    steps: int
    logprobs: Tensor  # [tokens, V] float64
    rerolled: bool = False


@torch.inference_mode()
def plain_answer(denoiser: Denoiser, request: GenerateRequest) -> tuple[list[PlainBlock], str]:
    """Returns the blocks, and the reason why the answer ended."""
    sampling, blocks, answer = request.sampling, list[PlainBlock](), list[int]()
    ends, padding = set(sampling.stop_token_ids), None
    if not sampling.ignore_eos:
        ends |= {*denoiser.sampler.end_tokens, *sampling.end_tokens}
        padding = denoiser.sampler.padding
    while True:
        room = request.max_tokens - len(answer)
        canvas, steps, logprobs = plain_block(denoiser, request, len(blocks), answer)
        block = PlainBlock(canvas, steps, logprobs)
        is_empty = canvas[0] in ends or set(canvas) == {padding}
        if not blocks and not sampling.suffix and is_empty:
            canvas, more, logprobs = plain_block(denoiser, request, 0, answer, stream=1)
            block = PlainBlock(canvas, steps + more, logprobs, rerolled=True)
        if sampling.suffix:
            canvas = canvas[: -len(sampling.suffix)]
        reason = "length" if len(canvas) >= room else ""
        block.tokens = canvas[:room]
        for index, token in enumerate(canvas):
            if token in ends or set(canvas[index:]) == {padding}:
                length = index + (token in ends)
                if length <= room:
                    block.tokens, reason = canvas[:length], "stop"
                break
        block.logprobs = block.logprobs[: len(block.tokens)]
        blocks.append(block)
        answer += block.tokens
        if reason:
            return blocks, reason


def plain_block(
    denoiser: Denoiser, request: GenerateRequest, index: int, answer: list[int], stream: int = 0
) -> tuple[list[int], int, Tensor]:
    """Returns the last argmax canvas, its number of steps, and its log-probabilities [C, V]."""
    model, sampler, sampling = denoiser.model, denoiser.sampler, request.sampling
    suffix = torch.tensor(sampling.suffix, dtype=torch.int64)
    free = request.max_tokens if sampling.suffix else model.dimensions.canvas_length
    width = free + len(suffix)
    steps = sampling.max_denoising_steps or sampler.max_denoising_steps
    bound = sampler.entropy_bound if sampling.entropy_bound is None else sampling.entropy_bound
    confidence = sampling.confidence_threshold
    confidence = sampler.confidence_threshold if confidence is None else confidence
    noise = block_noise(
        sampling.seed,
        index,
        steps=steps,
        canvas_length=width,
        vocab_size=model.dimensions.vocab_size,
        device=torch.device("cpu"),
        stream=2 * sampling.choice + stream,
    )
    cache = filled_cache(denoiser, [*request.prompt, *answer])
    embedding = model.embedding.double()  # type: ignore[union-attr]  # it is not quantised
    canvas = torch.cat([noise.canvases[0][:free], suffix])
    previous, stable, soft = None, 0, None
    if request.prediction is not None and not stream:
        known = PredictedAnswer(request.prediction.tokens).following(answer)[:free]
        for position, token in enumerate(known):
            if noise.canvases[-1][position] >= int(PREDICTION_NOISE * model.dimensions.vocab_size):
                canvas[position] = token
        if len(known) == free:
            previous = torch.cat([torch.tensor(known), suffix])
    for step in range(steps):
        hidden = decode(model, canvas, soft, cache).double()
        raw = model.config.softcap * (hidden @ embedding.T / model.config.softcap).tanh()
        ends = {*denoiser.sampler.end_tokens, *sampling.end_tokens, *sampling.stop_token_ids}
        if denoiser.sampler.padding is not None:
            ends.add(denoiser.sampler.padding)
        logits = biased(raw, request, answer, ends)
        argmax = torch.cat([logits.argmax(-1)[:free], suffix])
        temperature = sampler.t_min + (sampler.t_max - sampler.t_min) * (steps - step) / steps
        probs = (logits / (temperature * (sampling.temperature or 1.0))).softmax(-1)
        probs[free:] = torch.nn.functional.one_hot(suffix, probs.shape[1])
        entropy = torch.special.entr(probs).sum(-1)
        stable = stable + 1 if previous is not None and torch.equal(argmax, previous) else 0
        previous = argmax
        done = stable >= sampler.stability_threshold and float(entropy.mean()) < confidence
        if sampling.confidence_threshold is None and sampling.quality is not None:
            done = done or plain_early_stop(
                sampling.quality, entropy, argmax, stable, step, ends - {denoiser.sampler.padding}
            )
        if done or step == steps - 1:
            return argmax.tolist(), step + 1, raw.log_softmax(-1)
        canvas = noise.canvases[0 if sampling.temperature == 0 else step + 1].clone()
        canvas[free:] = suffix
        spent = 0.0
        for position in sorted(range(width), key=lambda p: float(entropy[p])):
            if spent <= bound and position < free:
                canvas[position] = (
                    argmax[position]
                    if sampling.temperature == 0
                    else drawn(probs[position], float(noise.uniforms[step, position]), request)
                )
            spent += float(entropy[position])
        soft = ((probs @ embedding) * model.embedding_scale).float()
    raise AssertionError("no steps")


def plain_early_stop(
    quality: str, entropy: Tensor, argmax: Tensor, stable: int, step: int, ends: set[int]
) -> bool:
    """Returns whether the quality stops here, where "exact" need not."""
    if quality == "exact":
        return False
    highest = 0.0
    for token, nats in zip(argmax.tolist(), entropy.tolist(), strict=True):
        highest = max(highest, nats)
        if token in ends:
            break
    mean = float(entropy.mean())
    if quality == "balanced":
        return highest < 0.1 or (stable >= 4 and mean < 0.1)
    return highest < 0.3 or stable >= 2 or (step >= 7 and mean < 0.01)


def filled_cache(denoiser: Denoiser, tokens: list[int]) -> KVCache:
    canvas, config = denoiser.model.dimensions.canvas_length, denoiser.model.config
    cache = KVCache(
        config.dimensions.layers,
        capacity=denoiser.context_length,
        pass_tokens=len(tokens) + canvas,
        dtype=denoiser.model.dtype,
        device=torch.device("cpu"),
        slack=0,
    )
    encode(denoiser.model, torch.tensor(tokens), cache)
    return cache


def biased(raw: Tensor, request: GenerateRequest, answer: list[int], ends: set[int]) -> Tensor:
    """Returns the logits [C, V] with the request's bias, penalties, bans and min_tokens applied."""
    sampling, logits = request.sampling, raw.clone()
    for token in {*request.prompt, *answer}:
        column, penalty = logits[:, token], sampling.repetition_penalty
        logits[:, token] = torch.where(column > 0, column / penalty, column * penalty)
    for token, bias in sampling.logit_bias.items():
        logits[:, token] += bias
    for token, count in Counter(answer).items():
        logits[:, token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    logits[:, sampling.banned_tokens] = -math.inf
    for position in range(len(logits)):
        if len(answer) + position < sampling.min_tokens:
            logits[position, list(ends)] = -math.inf
    return logits


def drawn(probs: Tensor, uniform: float, request: GenerateRequest) -> int:
    """Draw a token from one position's distribution [V], after top-k, top-p and min-p."""
    sampling = request.sampling
    order = probs.argsort(descending=True).tolist()
    order = order[: sampling.top_k or len(order)]
    mass, kept, spent = float(probs[order].sum()), set(), 0.0
    for token in order:
        if spent < sampling.top_p * mass:
            kept.add(token)
        spent += float(probs[token])
    kept = {token for token in kept if probs[token] >= sampling.min_p * probs.max()}
    target, running = uniform * float(probs[sorted(kept)].sum()), 0.0
    for token in sorted(kept):
        running += float(probs[token])
        if running > target:
            return token
    return token
