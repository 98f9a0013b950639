"""Runs a decision in the worker, and turns what its canvases read into answers."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from app.answer.figures import Figures
from app.arrival import deadline
from app.decision.order import Order
from app.decision.questions import Question
from app.decision.request import DecisionRequest, Prepared
from app.errors import DeadlineExceeded, GenerationFailed
from app.services import Services
from engine.messages import Block, Failed, SlotResult


@dataclass(frozen=True)
class Answer:
    """The answer to a question: a probability for each of its options, in their order.

    `label_mass` is the share that the labels have of all probability. `argmax_is_label`: no other
    token was likelier on any canvas.
    """

    question: Question
    probabilities: list[float]
    label_mass: float
    argmax_is_label: bool

    @property
    def best(self) -> int:
        """Returns the index of the likeliest option."""
        return max(range(len(self.probabilities)), key=self.probabilities.__getitem__)

    @property
    def score(self) -> float:
        """Returns the mean index of the options."""
        return sum(index * share for index, share in enumerate(self.probabilities))

    @property
    def confidence(self) -> float:
        """Returns how far the best option is above an even chance, from 0 to 1 (certain)."""
        count = len(self.probabilities)
        return max(0.0, (count * self.probabilities[self.best] - 1) / (count - 1))


@dataclass(frozen=True)
class Answers:
    """The answers in the order of their questions, and the figures of the decision."""

    answers: list[Answer]
    canvases: int
    slots: int
    prompt_tokens: int
    cached_tokens: int

    @property
    def written_tokens(self) -> int:
        """Returns how many tokens of the prompts had to be encoded."""
        return self.prompt_tokens - self.cached_tokens


async def answers(
    services: Services, request: DecisionRequest, prepared: Sequence[Prepared]
) -> Answers:
    """Returns the answers. Leaving early cancels the decision in the worker.

    Raises GenerationFailed if the worker fails, and DeadlineExceeded if the time is up. However a
    decision ends, each of its messages is counted and logged once.
    """
    ends = deadline(request.timeout_s or services.settings.request_timeout_s)
    tasks = [asyncio.create_task(_block(services, each, ends)) for each in prepared]
    try:
        blocks = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    read: list[list[tuple[Order, SlotResult]]] = [[] for _ in request.questions]
    canvases = slots = 0
    for each, block in zip(prepared, blocks, strict=True):
        assert block.reads is not None, "a decision's block has what was read"
        for number, results in enumerate(block.reads):
            canvases, slots = canvases + 1, slots + len(results)
            asked = each.canvases[number // request.samples].asked
            for question, result in zip(asked, results, strict=True):
                read[question.index].append((question.order, result))
    return Answers(
        [
            combined(question, results)
            for question, results in zip(request.questions, read, strict=True)
        ],
        canvases,
        slots,
        sum(each.prompt_tokens for each in prepared),
        sum(block.cached_tokens for block in blocks),
    )


def combined(question: Question, results: Sequence[tuple[Order, SlotResult]]) -> Answer:
    """Returns a question's answer: the mean over the orders of the options, each of its reads'."""
    by_order: dict[Order, list[SlotResult]] = {}
    for order, result in results:
        by_order.setdefault(order, []).append(result)
    probabilities = [0.0] * len(question.options)
    for order, several in by_order.items():
        for result in several:
            for index, share in zip(order, result.probabilities, strict=True):
                probabilities[index] += share / len(several) / len(by_order)
    return Answer(
        question,
        probabilities,
        sum(result.label_mass for _, result in results) / len(results),
        all(result.argmax_is_label for _, result in results),
    )


async def _block(services: Services, prepared: Prepared, ends: float) -> Block:
    """Returns the worker's block with the reads of one message."""
    started = time.monotonic()
    figures = Figures(prepared.prompt_tokens)
    try:
        async with aclosing(services.worker.generate(prepared.request, ends)) as messages:
            async for message in messages:
                match message:
                    case Block():
                        figures.time_to_first_block_s = time.monotonic() - started
                        figures.cached_tokens = message.cached_tokens
                        figures.blocks, figures.denoising_steps = 1, message.denoising_steps
                        figures.outcome = "stop"
                        return message
                    case Failed(message=why, code=code):
                        figures.outcome = "error"
                        raise GenerationFailed(why, code=code)
        raise GenerationFailed("The decision was cancelled.")
    except DeadlineExceeded:
        figures.outcome = "timeout"
        raise
    finally:
        figures.duration_s = time.monotonic() - started
        figures.record(services.metrics)
