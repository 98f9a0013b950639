"""The OpenAPI document: FastAPI's list of the routes, with the bodies, answers and errors added.

The endpoints parse their bodies themselves, so that errors come in their dialect's envelope, and
write their answers themselves. Therefore FastAPI knows nothing of either.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from app.dialects.anthropic.answer_schema import Message, MessageEvent, TokenCount
from app.dialects.anthropic.schema import CountTokensRequest, MessagesRequest
from app.dialects.chat.answer_schema import ChatCompletion, ChatCompletionChunk, Controlled
from app.dialects.chat.control import ControlRequest
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.completions.answer_schema import Completion, CompletionChunk
from app.dialects.completions.schema import CompletionRequest
from app.dialects.decisions.answer_schema import Decision
from app.dialects.decisions.schema import DecisionsRequest
from app.dialects.responses.answer_schema import (
    DeletedResponse,
    InputItemList,
    InputTokens,
    Response,
    ResponseEvent,
)
from app.dialects.responses.schema import InputTokensRequest, ResponseRequest
from app.dialects.systemone.answer_schema import SystemOne
from app.dialects.systemone.schema import SystemOneRequest
from app.errors import (
    ApiError,
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    Dialect,
    GenerationFailed,
    NotFound,
    NotReady,
    TooManyRequests,
    Unauthorized,
    UnsupportedEncoding,
    dialect,
)
from app.routes.answer_schema import (
    DetokenizedText,
    Health,
    Model,
    ModelInfo,
    ModelList,
    ModelPage,
    Name,
    Tokens,
    Version,
)
from app.routes.tokens_schema import DetokenizeRequest, TokenizeRequest

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/chat/completions/control": ControlRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/responses/input_tokens": InputTokensRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/v1/decisions": DecisionsRequest,
    "/v1/systemone": SystemOneRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
ANSWERS: dict[str, Any] = {
    "POST /v1/chat/completions": ChatCompletion,
    "POST /v1/chat/completions/control": Controlled,
    "POST /v1/completions": Completion,
    "POST /v1/responses": Response,
    "POST /v1/responses/input_tokens": InputTokens,
    "GET /v1/responses/{id}": Response,
    "DELETE /v1/responses/{id}": DeletedResponse,
    "GET /v1/responses/{id}/input_items": InputItemList,
    "POST /v1/messages": Message,
    "POST /v1/messages/count_tokens": TokenCount,
    "POST /v1/decisions": Decision,
    "POST /v1/systemone": SystemOne,
    "POST /tokenize": Tokens,
    "POST /detokenize": DetokenizedText,
    "GET /v1/models": ModelList | ModelPage,
    "GET /v1/models/{name}": Model | ModelInfo,
    "GET /": Name,
    "GET /version": Version,
    "GET /health": Health,
    "GET /health/live": Health,
    "GET /health/ready": Health,
}
EVENTS: dict[str, Any] = {  # the JSON in the data of a stream's events
    "POST /v1/chat/completions": ChatCompletionChunk,
    "POST /v1/completions": CompletionChunk,
    "POST /v1/responses": ResponseEvent,
    "POST /v1/messages": MessageEvent,
}
_ERRORS: tuple[type[ApiError], ...] = (
    BadRequest,
    Unauthorized,
    NotFound,
    BodyTooLarge,
    UnsupportedEncoding,
    TooManyRequests,
    GenerationFailed,
    NotReady,
    DeadlineExceeded,
)
_TEXT = {"type": "string"}
_NULLABLE = {"type": ["string", "null"]}
_REF = "#/components/schemas/{model}"


def _object(**fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


_ENVELOPES: dict[str, dict[str, Any]] = {
    "Error": _object(error=_object(message=_TEXT, type=_TEXT, param=_NULLABLE, code=_NULLABLE)),
    "AnthropicError": _object(
        type={"const": "error"},
        error={
            "type": "object",
            "properties": {"type": _TEXT, "message": _TEXT, "details": {"type": "object"}},
            "required": ["type", "message"],
            "additionalProperties": False,
        },
        request_id=_NULLABLE,
    ),
}


def document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document. It is made at the first call and then kept."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    whole = get_openapi(title=app.title, version=app.version, routes=app.routes)
    kinds = {"body": BODIES, "answer": ANSWERS, "event": EVENTS}
    schemas, definitions = TypeAdapter.json_schemas(
        [
            ((kind, name), "validation", TypeAdapter(schema))
            for kind, named in kinds.items()
            for name, schema in named.items()
        ],
        ref_template=_REF,
        schema_generator=_Generator,
    )
    made = {name: schema for (name, _), schema in schemas.items()}
    whole["components"] = {"schemas": definitions["$defs"] | _ENVELOPES}
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            name = f"{method.upper()} {path}"
            operation["responses"].pop("422", None)  # FastAPI adds it, but Easel answers 400
            operation["responses"] |= _errors(path)
            content = _json(made["answer", name]) if name in ANSWERS else _PLAIN_TEXT
            if name in EVENTS:
                error = _envelopes(path)["anyOf"]
                data = {"anyOf": [made["event", name], *error]}
                content |= {
                    "text/event-stream": {
                        "schema": _event(data, ends=path.endswith("/completions"))
                    }
                }
            operation["responses"]["200"]["content"] = content
        if path in BODIES:
            body = _json(made["body", path])
            operations["post"]["requestBody"] = {"required": True, "content": body}
    return whole


_PLAIN_TEXT = {"text/plain": {"schema": _TEXT}}  # of /metrics


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _event(data: dict[str, Any], *, ends: bool) -> dict[str, Any]:
    """Returns the schema of an event with this JSON, in a stream that `ends` with [DONE] or not."""
    json_text = {**_TEXT, "contentMediaType": "application/json", "contentSchema": data}
    text = {"anyOf": [{"const": "[DONE]"}, json_text]} if ends else json_text
    return {
        "type": "object",
        "properties": {"event": _TEXT, "data": text},
        "required": ["data"],
    }


def _envelopes(path: str) -> dict[str, Any]:
    """Returns the schema of an error in the dialect of this path, or in one of its dialects."""
    spoken: list[Dialect] = [dialect(path, {})]
    if path.startswith("/v1/models"):
        spoken.append("anthropic")  # if the client's headers say so
    names = ["AnthropicError" if each == "anthropic" else "Error" for each in spoken]
    return {"anyOf": [{"$ref": _REF.format(model=name)} for name in names]}


def _errors(path: str) -> dict[str, Any]:
    """Returns the error statuses that this path can answer with."""
    if path in ("/health", "/health/ready"):
        answer = _json({"$ref": _REF.format(model=Health.__name__)})
        return {"503": {"description": "No worker is ready", "content": answer}}
    content = _json(_envelopes(path))
    return {
        str(error.status): {"description": error.__name__, "content": content} for error in _ERRORS
    }


class _Generator(GenerateJsonSchema):
    """Writes unions as `anyOf`: a value may fit several members, and code picks the right one."""

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        made = super().tagged_union_schema(schema)
        made["anyOf"] = made.pop("oneOf")
        return made
