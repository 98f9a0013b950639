"""What the dialects' endpoints share: a request given to the worker, its answer as events."""

import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from app.errors import ApiError, BadRequest, GenerationFailed, ModelNotFound
from app.metrics import Metrics
from app.output import TextOutput
from app.prompt import PromptBuilder, answer_room
from app.schemas.common import UNSUPPORTED, ApiRequest
from app.settings import Settings
from app.worker import WorkerClient
from engine.messages import Block, Done, Failed, GenerateRequest, Ready

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Services:
    """What an endpoint works with; one an app."""

    settings: Settings
    metrics: Metrics
    worker: WorkerClient
    prompts: PromptBuilder


@dataclass(frozen=True)
class TextDelta:
    """Text that one block adds."""

    text: str


Outcome = Literal["stop", "length", "cancelled", "error"]


@dataclass
class Figures:
    """What is counted of one answer while it is made."""

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    blocks: int = 0
    denoising_steps: int = 0
    time_to_first_block_s: float = 0.0
    duration_s: float = 0.0
    outcome: Outcome = "cancelled"  # unless it ends otherwise

    @property
    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    @property
    def diffusion(self) -> dict[str, float]:
        """Speeds are the answer's tokens over wall time; SDKs ignore the whole object."""
        return {
            "blocks": self.blocks,
            "denoising_steps": self.denoising_steps,
            "tokens_per_step": round(self.completion_tokens / max(self.denoising_steps, 1), 3),
            "time_to_first_block_s": round(self.time_to_first_block_s, 6),
            "tokens_per_second": round(self.completion_tokens / self.duration_s, 3),
        }


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: Literal["stop", "length"]
    figures: Figures


def services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


async def parsed(request: Request, schema: type[T]) -> T:
    """The body as `schema`; raises BadRequest that names the field."""
    body = await request.body()
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise _bad_request(error) from error


def check_model(wanted: str | None, served: str) -> None:
    if wanted is not None and wanted != served:
        raise ModelNotFound(
            f"The model {wanted!r} is not served here; {served!r} is.", param="model"
        )


def worker_request(
    body: ApiRequest, prompt: list[int], token_limit: int | None, limits: Ready
) -> GenerateRequest:
    """The same request in the worker's terms; raises ContextLengthExceeded."""
    return GenerateRequest(
        id=uuid.uuid4().hex,
        prompt=prompt,
        max_tokens=answer_room(prompt, token_limit, limits.context_length, param=body.prompt_field),
        seed=(body.seed if body.seed is not None else uuid.uuid4().int) % 2**64,
        temperature=1.0 if body.temperature is None else body.temperature,
    )


async def answer_events(
    found: Services, request: GenerateRequest, stops: tuple[str, ...]
) -> AsyncGenerator[TextDelta | Finished, None]:
    """Run the request: a delta for each block that adds text, then `Finished`.

    Raises GenerationFailed. Leaving early, or a stop string, cancels it in the worker. However it
    ends, it is counted and logged once.
    """
    started = time.monotonic()
    output = TextOutput(found.prompts.tokenizer, stops)
    figures = Figures(len(request.prompt))
    reason: Literal["stop", "length"] = "length"
    try:
        async with aclosing(found.worker.generate(request)) as messages:
            async for message in messages:
                match message:
                    case Block(tokens=tokens, denoising_steps=steps, cached_tokens=cached):
                        if figures.blocks == 0:
                            figures.time_to_first_block_s = time.monotonic() - started
                            figures.cached_tokens = cached
                        figures.blocks += 1
                        figures.denoising_steps += steps
                        text = output.feed(tokens)
                        figures.completion_tokens = output.tokens
                        if text:
                            yield TextDelta(text)
                        if output.stopped:
                            break
                    case Done(finish_reason=ending):
                        reason = "stop" if ending == "stop" else "length"
                    case Failed(message=why):
                        figures.outcome = "error"
                        raise GenerationFailed(why)
        rest = output.finish()
        if rest:
            yield TextDelta(rest)
        figures.outcome = reason = "stop" if output.stopped else reason
        figures.duration_s = time.monotonic() - started
        yield Finished(reason, figures)
    finally:
        figures.duration_s = figures.duration_s or time.monotonic() - started
        _record(figures, found.metrics)


def _record(figures: Figures, metrics: Metrics) -> None:
    metrics.requests.labels(figures.outcome).inc()
    metrics.prompt_tokens.inc(figures.prompt_tokens)
    metrics.cached_tokens.inc(figures.cached_tokens)
    metrics.completion_tokens.inc(figures.completion_tokens)
    if figures.blocks:
        metrics.time_to_first_block.observe(figures.time_to_first_block_s)
    logger.info(
        "answer %s: %d + %d tokens, %d blocks, %d steps, first block %.3f s, %.3f s",
        figures.outcome,
        figures.prompt_tokens,
        figures.completion_tokens,
        figures.blocks,
        figures.denoising_steps,
        figures.time_to_first_block_s,
        figures.duration_s,
    )


def _bad_request(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    path = [*first["loc"], *([context["field"]] if "field" in context else [])]
    # "(list)" and the like tell which form a field has, and are no part of its name.
    field = ".".join(str(part) for part in path if not str(part).startswith("(")) or None
    if first["type"] == "json_invalid":
        return BadRequest(f"The body is not valid JSON: {first['msg']}")
    if first["type"] == "extra_forbidden":
        return BadRequest(f"Unknown field: {field}.", param=field, code="unknown_parameter")
    code = UNSUPPORTED if first["type"] == UNSUPPORTED else None
    return BadRequest(f"{field or 'The body'}: {first['msg']}.", param=field, code=code)
