"""The endpoint `POST /v1/completions`."""

import time

import msgspec
from fastapi import APIRouter, Request, Response

from app.answer.constraint import constrained
from app.answer.request import AnswerRequest, prepare, unset_seed
from app.dialects.completions.events import CompletionAnswer
from app.dialects.completions.schema import CompletionRequest
from app.dialects.incoming import incoming
from app.dialects.waiting import unless_gone
from app.errors import BadRequest
from app.prompting.prompt import Prompt
from app.services import Admission, Services, prefix_salt, services_of
from engine.messages import Ready

router = APIRouter()


@router.post("/completions", include_in_schema=False)
@router.post("/v1/completions")
async def completions(http: Request, admit: Admission) -> Response:
    services = services_of(http)
    async with incoming(http, CompletionRequest) as arriving:
        body = arriving.body
        model = services.model_name(body.model)
        n = body.n or 1
        limits = admit(
            len(body.prompts) * n,
            priority=body.priority or 0,
            param="prompt" if n == 1 else "n",
        )
        request = await arriving.run(answer_request, services, body, limits)
        request = await constrained(services, request, body.text_demand, limits)
        prepared = prepare(request, limits, services.prompts.vocabulary, prefix_salt(http))
    head = {
        "id": f"cmpl-{request.id}",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": services.fingerprint(limits),
    }
    answer = CompletionAnswer(services, request, prepared, head, body)
    if body.stream:
        return answer.stream(http)
    return await unless_gone(http, answer.whole())


def answer_request(services: Services, body: CompletionRequest, limits: Ready) -> AnswerRequest:
    """Returns the dialect-independent request. Raises BadRequest for an unknown token id."""
    prompts = [_prompt(services, prompt, limits) for prompt in body.prompts]
    return AnswerRequest(
        prompts,
        msgspec.structs.replace(
            body.sampling(unset_seed(body.temperature, prompts), services.prompts.vocabulary),
            top_logprobs=body.logprobs,
            suffix=services.prompts.raw_tokens(body.suffix or "", limits.context_length, "suffix"),
        ),
        body.token_limit,
        "prompt",
        timeout_s=body.timeout,
        n=body.n or 1,
        stops=body.stops,
        prediction=body.predicted(services.prompts, limits),
    )


def _prompt(services: Services, prompt: str | list[int], limits: Ready) -> Prompt:
    if isinstance(prompt, str):
        return services.prompts.raw(prompt, limits.context_length)
    largest = max(prompt)
    if largest >= limits.vocab_size:
        raise BadRequest(
            f"prompt: {largest} is not a token id; ids must be below {limits.vocab_size}.",
            param="prompt",
        )
    return Prompt(prompt)
