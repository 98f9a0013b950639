"""Times whole blocks of one model pass by pass, in passes as the worker's loop runs them."""

from dataclasses import dataclass
from time import perf_counter

import torch

from engine.denoise.denoiser import Denoiser
from engine.messages import GenerateRequest, Sampling
from engine.schedule.sequence import Sequence


@dataclass(frozen=True)
class Answers:
    """The timings of canvases that were denoised together."""

    prefill_tokens_s: float
    passes_s: list[float]  # of each pass; the first also encodes a canvas' worth of tokens


def timed_answers(denoiser: Denoiser, prompt: list[int], *, canvases: int, chunk: int) -> Answers:
    """Time a block behind this prompt for each of `canvases` requests, all in the same passes.

    The prompt is encoded in chunks, except for its last canvas' worth of tokens. The first pass of
    the block encodes those, as it would encode the previous block of an answer.
    """
    canvas = denoiser.model.dimensions.canvas_length
    ahead = len(prompt) - canvas
    sequences = []
    started = perf_counter()
    for seed in range(canvases):
        request = GenerateRequest("bench", prompt, max_tokens=canvas, sampling=Sampling(seed))
        sequence = Sequence.start(request)
        sequence.reuse(denoiser.start(sequence))
        while sequence.encoded < ahead:
            run_pass(denoiser, [sequence], min(chunk, ahead - sequence.encoded))
        sequences.append(sequence)
    device = denoiser.model.device
    if device.type == "cuda":  # so far nothing has waited for the prefill
        torch.cuda.synchronize(device)
    prefill_s = perf_counter() - started
    passes_s = []
    while any(sequence.finish_reason is None for sequence in sequences):
        started = perf_counter()
        run_pass(denoiser, sequences, canvas)
        passes_s.append(perf_counter() - started)
    for sequence in sequences:
        denoiser.release(sequence)
    return Answers(canvases * ahead / prefill_s, passes_s)


def run_pass(denoiser: Denoiser, sequences: list[Sequence], most_tokens: int) -> None:
    """Do the next work of each sequence in one pass, encoding at most `most_tokens` of each."""
    works = [work for each in sequences if (work := each.next_work(most_tokens)) is not None]
    for work, step in zip(works, denoiser.run(works), strict=True):
        work.sequence.record(work, step)
