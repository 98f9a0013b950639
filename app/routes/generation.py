"""What the dialects' endpoints share: one internal request, one internal stream of events.

A dialect's module translates: its JSON to an `AnswerRequest`, `Delta` and `Finished` (or, of an
answer that is not streamed, `Choice`) to its JSON.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from fastapi import Depends, Request
from jsonschema_rs import ValidationError as InvalidArguments
from jsonschema_rs import Validator

from app.errors import (
    BadRequest,
    DeadlineExceeded,
    GenerationFailed,
    ModelNotFound,
)
from app.gemma_format import AnswerParser, Call, Event, TextDelta, ThinkingDelta, ToolCallDelta
from app.metrics import Metrics
from app.output import AnswerOutput, merged
from app.prompt import Prompt, PromptBuilder, answer_room
from app.response_store import ResponseStore
from app.routes.figures import Figures
from app.settings import Settings
from app.worker import Admit, WorkerClient
from engine.messages import Block, Done, Failed, GenerateRequest, Ready, Sampling, TokenLogprobs


@dataclass(frozen=True)
class Services:
    """What an endpoint works with; one an app."""

    settings: Settings
    metrics: Metrics
    worker: WorkerClient
    prompts: PromptBuilder
    responses: ResponseStore


@dataclass(frozen=True)
class ChatFormat:
    """How a chat's answer is read. A tool has a validator if its calls must satisfy it.

    `whole_calls`: the dialect can't carry a call whose arguments are no JSON.
    """

    tools: Mapping[str, Validator | None] = field(default_factory=dict)
    parallel_calls: bool = True
    whole_calls: bool = False


@dataclass(frozen=True)
class AnswerRequest:
    """What every dialect asks for: each prompt answered `n` times, in whatever order.

    Of an answer to prompt p the number n * p, n * p + 1, … is its choice. `format` is None for
    raw completions, whose answer is all text.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling
    max_tokens: int | None
    prompt_field: str  # the request's field that a prompt too long is blamed on
    timeout_s: float | None = None  # the server's own if None
    n: int = 1
    stops: tuple[str, ...] = ()
    format: ChatFormat | None = None

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n


Reason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Delta:
    """What one block adds to a choice: one event, and of text the tokens' log-probabilities.

    `figures` go on being counted; those of the prompt are there from the first block on.
    """

    choice: int
    event: Event
    logprobs: list[TokenLogprobs]
    figures: Figures


@dataclass(frozen=True)
class Finished:
    """The end of a choice. `stop_string` is what ended it, if one did."""

    choice: int
    reason: Reason
    figures: Figures
    stop_string: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of text that never came


@dataclass(frozen=True)
class Choice:
    """A whole answer: what it says, thinks and calls in order, neighbours of a kind as one."""

    events: list[Event]
    logprobs: list[TokenLogprobs]
    end: Finished

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def thinking(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, ThinkingDelta))

    @property
    def calls(self) -> list[ToolCallDelta]:
        """Each a whole call."""
        return [event for event in self.events if isinstance(event, ToolCallDelta)]


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


async def _admission(request: Request) -> AsyncIterator[Admit]:
    with services(request).worker.admission() as admit:
        yield admit


# A parameter of this type admits the endpoint's request until its response has been sent.
Admission = Annotated[Admit, Depends(_admission)]


def check_model(wanted: str | None, served: str) -> None:
    if wanted is not None and wanted != served:
        raise ModelNotFound(
            f"The model {wanted!r} is not served here; {served!r} is.", param="model"
        )


def random_seed() -> int:
    return uuid.uuid4().int % 2**64


def prepare(request: AnswerRequest, limits: Ready) -> list[GenerateRequest]:
    """The choices in the worker's terms, one after the other.

    Raises ContextLengthExceeded, and BadRequest for token ids that the model does not have.
    """
    if any(token >= limits.vocab_size for token in request.sampling.logit_bias):
        raise BadRequest(
            f"logit_bias: token ids must be below {limits.vocab_size}.", param="logit_bias"
        )
    suffix = request.sampling.suffix
    prepared = []
    for prompt in request.prompts:
        context = limits.context_length - len(suffix)
        room = answer_room(prompt.tokens, request.max_tokens, context, param=request.prompt_field)
        if suffix and room + len(suffix) > limits.canvas_length:
            raise BadRequest(
                f"suffix: its {len(suffix)} tokens and max_tokens ({room}) must fit one canvas "
                f"of {limits.canvas_length} tokens.",
                param="suffix",
            )
        for choice in range(request.n):
            prepared.append(
                GenerateRequest(
                    id=uuid.uuid4().hex,
                    prompt=prompt.tokens,
                    max_tokens=room,
                    sampling=msgspec.structs.replace(request.sampling, choice=choice),
                    images=list(prompt.images),
                )
            )
    return prepared


async def answer_events(
    found: Services, request: AnswerRequest, prepared: Sequence[GenerateRequest]
) -> AsyncGenerator[Delta | Finished, None]:
    """Run all choices together: deltas for each block that adds something, `Finished` for each.

    Raises GenerationFailed if one of them fails, which ends them all. Leaving early cancels them
    in the worker. However a choice ends, it is counted and logged once.
    """
    events: asyncio.Queue[Delta | Finished | BaseException] = asyncio.Queue()
    seconds = request.timeout_s or found.settings.request_timeout_s
    deadline = asyncio.get_running_loop().time() + seconds

    async def run(choice: int) -> None:
        try:
            prompt = request.prompts[choice // request.n]
            one = _choice_events(found, request, prompt, prepared[choice], choice, deadline)
            async with aclosing(one) as mine:
                async for event in mine:
                    events.put_nowait(event)
        except Exception as error:
            events.put_nowait(error)

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
    found: Services, request: AnswerRequest, prepared: Sequence[GenerateRequest]
) -> list[Choice]:
    """The same as whole answers, by choice."""
    events: list[list[Event]] = [[] for _ in prepared]
    logprobs: list[list[TokenLogprobs]] = [[] for _ in prepared]
    ends: dict[int, Finished] = {}
    async with aclosing(answer_events(found, request, prepared)) as answer:
        async for event in answer:
            logprobs[event.choice] += event.logprobs
            match event:
                case Delta():
                    events[event.choice].append(event.event)
                case Finished():
                    ends[event.choice] = event
    return [
        Choice(merged(events[choice]), logprobs[choice], ends[choice])
        for choice in range(len(prepared))
    ]


async def _choice_events(
    found: Services,
    request: AnswerRequest,
    prompt: Prompt,
    prepared: GenerateRequest,
    choice: int,
    deadline: float,
) -> AsyncGenerator[Delta | Finished, None]:
    started = time.monotonic()
    output = _output(found, request, prompt)
    figures = Figures(len(prompt.tokens))
    reason: Literal["stop", "length"] = "length"

    def deltas(events: list[Event]) -> Iterator[Delta]:
        for event in events:
            is_text = isinstance(event, TextDelta)
            yield Delta(choice, event, output.take_logprobs() if is_text else [], figures)

    try:
        async with aclosing(found.worker.generate(prepared, deadline)) as messages:
            async for message in messages:
                match message:
                    case Block():
                        if figures.blocks == 0:
                            figures.time_to_first_block_s = time.monotonic() - started
                            figures.cached_tokens = message.cached_tokens
                        figures.blocks += 1
                        figures.denoising_steps += message.denoising_steps
                        events = output.feed(message.tokens, message.logprobs or ())
                        figures.completion_tokens = output.tokens
                        figures.thinking_tokens = output.thinking_tokens
                        for delta in deltas(events):
                            yield delta
                        if output.ended:
                            break
                    case Done(finish_reason=ending):
                        reason = "stop" if ending == "stop" else "length"
                    case Failed(message=why, code=code):
                        figures.outcome = "error"
                        raise GenerationFailed(why, code=code)
        for delta in deltas(output.finish()):
            yield delta
        figures.outcome = "stop" if output.ended else reason
        figures.duration_s = time.monotonic() - started
        called = bool(output.calls) and figures.outcome == "stop" and output.stop_string is None
        if request.format is not None and request.format.whole_calls:
            _check_whole(output.calls, figures)
        if called:
            _check_calls(output.calls, request.format, figures)
        yield Finished(
            choice,
            "tool_calls" if called else "stop" if output.ended else reason,
            figures,
            output.stop_string,
            output.take_logprobs(),
        )
    except DeadlineExceeded:
        figures.outcome = "timeout"
        raise
    finally:
        figures.duration_s = figures.duration_s or time.monotonic() - started
        figures.record(found.metrics)


def _output(found: Services, request: AnswerRequest, prompt: Prompt) -> AnswerOutput:
    form = request.format
    return AnswerOutput(
        found.prompts.vocabulary,
        request.stops,
        AnswerParser(thinking=prompt.thinking, calls=bool(form.tools)) if form else None,
        most_calls=None if form is None or form.parallel_calls else 1,
    )


def _check_whole(calls: Sequence[Call], figures: Figures) -> None:
    """Raises GenerationFailed if a call is none, but for the last of an answer that was cut."""
    for call in calls[:-1] if figures.outcome == "length" else calls:
        if not call.complete:
            figures.outcome = "error"
            raise GenerationFailed(
                f"The model called {call.name} with arguments that are not in its format: "
                f"{call.arguments}",
                code="tool_call_invalid",
            )


def _check_calls(calls: Sequence[Call], form: ChatFormat | None, figures: Figures) -> None:
    """Raises GenerationFailed if a call breaks a schema that the client was promised."""
    for call in calls:
        validator = form.tools.get(call.name) if form is not None else None
        if validator is None:
            continue
        try:
            validator.validate(json.loads(call.arguments))
        except (ValueError, RecursionError) as error:
            figures.outcome = "error"
            why = error.message if isinstance(error, InvalidArguments) else error
            raise GenerationFailed(
                f"The model called {call.name} with arguments that its strict schema forbids: "
                f"{why}",
                code="tool_call_invalid",
            ) from error
