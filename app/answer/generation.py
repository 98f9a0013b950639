"""Runs a request in the worker and yields its answers as events, for every dialect the same.

A dialect turns `Delta`, `Frame` and `Finished`, or the `Choice` of an answer that is not streamed,
into its JSON.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal

from app.answer.event_queue import EventQueue
from app.answer.figures import Figures
from app.answer.frames import Frame
from app.answer.output import AnswerOutput
from app.answer.request import AnswerRequest
from app.arrival import deadline
from app.chat_format.events import Event, TextDelta, ThinkingDelta, ToolCallEnd, merged
from app.chat_format.gemma import AnswerParser
from app.errors import DeadlineExceeded, GenerationFailed
from app.prompting.prompt import Prompt
from app.services import Services
from engine.messages import (
    Block,
    Draft,
    Failed,
    FinishReason,
    GenerateRequest,
    StopReason,
    TokenLogprobs,
)

Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Delta:
    """One event that a block adds to a choice. A text comes with its tokens' log-probabilities.

    The first event after a block's tokens have come has the ids of all of them. `figures` are those
    of the answer up to this block.
    """

    choice: int
    event: Event
    logprobs: list[TokenLogprobs]
    tokens: list[int]
    figures: Figures


@dataclass(frozen=True)
class MadeBlock:
    """A block as the worker made it, with tokens that may be no part of the text."""

    tokens: list[int]
    denoising_steps: int
    stopped: StopReason | None  # why it had no further step


@dataclass(frozen=True)
class Finished:
    """The end of a choice, and its blocks. `stop_string` is the one that ended it, if one did."""

    choice: int
    reason: Reason
    figures: Figures
    blocks: list[MadeBlock]
    stop_string: str | None = None
    # Those that no delta had.
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


AnswerEvent = Delta | Frame | Finished


@dataclass(frozen=True)
class Choice:
    """A whole answer: its events in order, merged."""

    events: list[Event]
    logprobs: list[TokenLogprobs]
    tokens: list[int]
    end: Finished

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def thinking(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, ThinkingDelta))

    @property
    def calls(self) -> list[ToolCallEnd]:
        return [event for event in self.events if isinstance(event, ToolCallEnd)]


async def answer_events(
    services: Services, request: AnswerRequest, prepared: Sequence[GenerateRequest]
) -> AsyncGenerator[AnswerEvent, None]:
    """Run all choices together. Yields their deltas as blocks come, and one `Finished` for each.

    If the request asks for drafts, it yields frames too: any number of drafts, and one frame behind
    the deltas of each block.

    Raises GenerationFailed if a choice fails, and DeadlineExceeded if the time is up; either ends
    all choices. Leaving early cancels them in the worker. However a choice ends, it is counted and
    logged once.
    """
    events = EventQueue[Delta | Frame | Finished | BaseException](
        services.metrics.drafts_dropped.inc
    )
    ends = deadline(request.timeout_s or services.settings.request_timeout_s)

    async def run(choice: int) -> None:
        try:
            prompt = request.prompts[choice // request.n]
            one = _choice_events(services, request, prompt, prepared[choice], choice, ends)
            async with aclosing(one) as mine:
                async for event in mine:
                    if isinstance(event, Frame) and event.settled is None:
                        events.put_draft(event)
                    else:
                        events.put(event, choice)
        except Exception as error:
            events.put(error, choice)

    running = [asyncio.create_task(run(choice)) for choice in range(len(prepared))]
    left = len(running)
    try:
        while left:
            match await events.get():
                case BaseException() as error:
                    raise error
                case event:
                    left -= isinstance(event, Finished)
                    yield event
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def whole_answers(
    services: Services, request: AnswerRequest, prepared: Sequence[GenerateRequest]
) -> list[Choice]:
    """Run all choices as `answer_events` does. Returns the whole answers in their order."""
    events: list[list[Event]] = [[] for _ in prepared]
    logprobs: list[list[TokenLogprobs]] = [[] for _ in prepared]
    tokens: list[list[int]] = [[] for _ in prepared]
    ends: dict[int, Finished] = {}
    async with aclosing(answer_events(services, request, prepared)) as answer:
        async for event in answer:
            match event:
                case Delta():
                    events[event.choice].append(event.event)
                case Finished():
                    ends[event.choice] = event
                case Frame():
                    continue
            logprobs[event.choice] += event.logprobs
            tokens[event.choice] += event.tokens
    return [
        Choice(merged(events[choice]), logprobs[choice], tokens[choice], ends[choice])
        for choice in range(len(prepared))
    ]


async def _choice_events(
    services: Services,
    request: AnswerRequest,
    prompt: Prompt,
    prepared: GenerateRequest,
    choice: int,
    ends: float,
) -> AsyncGenerator[AnswerEvent, None]:
    started = time.monotonic()
    output = _output(services, request, prompt)
    figures = Figures(len(prompt.tokens))
    if prepared.prediction is not None:
        figures.prediction_tokens = len(prepared.prediction.tokens)
    blocks: list[MadeBlock] = []
    reason: FinishReason | None = None

    def deltas(events: list[Event]) -> Iterator[Delta]:
        so_far = replace(figures)
        for event in events:
            logprobs = output.take_logprobs() if isinstance(event, TextDelta) else []
            yield Delta(choice, event, logprobs, output.take_tokens(), so_far)

    try:
        demanded = None if request.constraint is None else request.constraint.enforced.message
        async with aclosing(services.worker.generate(prepared, ends, demanded)) as messages:
            async for message in messages:
                match message:
                    case Draft():
                        begun = output.begun_character
                        yield Frame.of_draft(choice, replace(figures), begun, message)
                    case Block():
                        begun = output.begun_character
                        if figures.blocks == 0:
                            figures.time_to_first_block_s = time.monotonic() - started
                            figures.cached_tokens = message.cached_tokens
                        blocks.append(
                            MadeBlock(message.tokens, message.denoising_steps, message.stopped)
                        )
                        figures.blocks += 1
                        figures.denoising_steps += message.denoising_steps
                        figures.corrections += message.corrections
                        figures.accepted_prediction_tokens = message.predicted_tokens
                        events = output.feed(message.tokens, message.logprobs or ())
                        figures.completion_tokens = output.tokens
                        figures.thinking_tokens = output.thinking_tokens
                        for delta in deltas(events):
                            yield delta
                        if message.settled is not None:
                            yield Frame.of_block(choice, replace(figures), begun, message)
                        reason = "stop" if output.ended else message.finish_reason
                        if output.ended:
                            break
                    case Failed(message=why, code=code):
                        figures.outcome = "error"
                        raise GenerationFailed(why, code=code)
        assert reason is not None, "an answer that was not left has a last block"
        for delta in deltas(output.finish(cut_off=reason == "length")):
            yield delta
        figures.outcome = "stop" if output.ended else reason
        figures.duration_s = time.monotonic() - started
        called = bool(output.calls) and figures.outcome == "stop" and output.stop_string is None
        if request.format is not None and request.format.whole_calls:
            _check_calls(output.calls, figures)
        yield Finished(
            choice,
            "tool_calls" if called else "stop" if output.ended else reason,
            figures,
            blocks,
            output.stop_string,
            output.take_logprobs(),
            output.take_tokens(),
        )
    except DeadlineExceeded:
        figures.outcome = "timeout"
        raise
    finally:
        figures.duration_s = figures.duration_s or time.monotonic() - started
        figures.record(services.metrics)


def _output(services: Services, request: AnswerRequest, prompt: Prompt) -> AnswerOutput:
    chat = request.format
    return AnswerOutput(
        services.prompts.vocabulary,
        request.stops,
        AnswerParser(thinking=prompt.thinking, calls=chat.calls) if chat else None,
        most_calls=None if chat is None or chat.parallel_calls else 1,
        stop_tokens=set(request.sampling.stop_token_ids).difference(prompt.end_tokens),
    )


def _check_calls(calls: Sequence[ToolCallEnd], figures: Figures) -> None:
    """Raises GenerationFailed if a call is not whole.

    The last call of an answer that was cut off may be incomplete.
    """
    cut_off = calls[-1] if calls and figures.outcome == "length" else None
    for call in calls:
        if not call.complete and call is not cut_off:
            figures.outcome = "error"
            raise GenerationFailed(
                f"The model called {call.name} with arguments that are not in the call format: "
                f"{call.arguments}",
                code="tool_call_invalid",
            )
