"""What the dialects' endpoints share: a request given to the worker, its answer as events."""

import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, TypeVar

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


@dataclass(frozen=True)
class Finished:
    """The end of an answer and its figures, in OpenAI's words where they have some."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    blocks: int
    denoising_steps: int
    time_to_first_block_s: float
    duration_s: float

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
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
        max_tokens=answer_room(prompt, token_limit, limits.context_length),
        seed=(body.seed if body.seed is not None else uuid.uuid4().int) % 2**64,
        temperature=1.0 if body.temperature is None else body.temperature,
    )


async def answer_events(
    found: Services, request: GenerateRequest, stops: tuple[str, ...]
) -> AsyncIterator[TextDelta | Finished]:
    """Run the request: a delta for each block that adds text, then `Finished`.

    Raises GenerationFailed. Leaving early, or a stop string, cancels it in the worker.
    """
    started = time.monotonic()
    output = TextOutput(found.prompts.tokenizer, stops)
    blocks = steps = 0
    first_block_s = 0.0
    reason: Literal["stop", "length"] | None = None
    async with aclosing(found.worker.generate(request)) as messages:
        async for message in messages:
            match message:
                case Block(tokens=tokens, denoising_steps=block_steps):
                    if blocks == 0:
                        first_block_s = time.monotonic() - started
                        found.metrics.time_to_first_block.observe(first_block_s)
                    blocks, steps = blocks + 1, steps + block_steps
                    text = output.feed(tokens)
                    if text:
                        yield TextDelta(text)
                    if output.stopped:
                        reason = "stop"
                        break
                case Done(finish_reason=ending):
                    reason = "stop" if ending == "stop" else "length"
                case Failed(message=why):
                    raise GenerationFailed(why)
    rest = output.finish()
    if rest:
        yield TextDelta(rest)
    assert reason is not None, "the worker ended a request without a terminal message"
    if output.stopped:
        reason = "stop"
    duration_s = time.monotonic() - started
    found.metrics.prompt_tokens.inc(len(request.prompt))
    found.metrics.completion_tokens.inc(output.tokens)
    logger.info(
        "answer %s: %d + %d tokens, %d blocks, %d steps, first block %.3f s, %.3f s",
        reason,
        len(request.prompt),
        output.tokens,
        blocks,
        steps,
        first_block_s,
        duration_s,
    )
    yield Finished(
        reason, len(request.prompt), output.tokens, blocks, steps, first_block_s, duration_s
    )


def _bad_request(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    path = [*first["loc"], *([context["field"]] if "field" in context else [])]
    field = ".".join(str(part) for part in path) or None
    if first["type"] == "json_invalid":
        return BadRequest(f"The body is not valid JSON: {first['msg']}")
    if first["type"] == "extra_forbidden":
        return BadRequest(f"Unknown field: {field}.", param=field, code="unknown_parameter")
    code = UNSUPPORTED if first["type"] == UNSUPPORTED else None
    return BadRequest(f"{field or 'The body'}: {first['msg']}.", param=field, code=code)
