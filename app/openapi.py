"""The OpenAPI document: FastAPI's list of the routes, with the bodies and errors added.

The endpoints parse their bodies themselves, so that errors come in their dialect's envelope.
Therefore FastAPI knows nothing of the bodies.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from app.dialects.anthropic.schema import CountTokensRequest, MessagesRequest
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.completions.schema import CompletionRequest
from app.dialects.responses.schema import ResponseRequest
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
    dialect,
)
from app.routes.tokens_schema import DetokenizeRequest, TokenizeRequest

BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponseRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
_ERRORS: tuple[type[ApiError], ...] = (
    BadRequest,
    Unauthorized,
    NotFound,
    BodyTooLarge,
    TooManyRequests,
    GenerationFailed,
    NotReady,
    DeadlineExceeded,
)
_TEXT = {"type": "string"}
_NULLABLE = {"type": ["string", "null"]}
_EVENT = {"type": "object", "properties": {"event": _TEXT, "data": _TEXT}, "required": ["data"]}
_REF = "#/components/schemas/{model}"


def _object(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields)}


_ENVELOPES: dict[str, dict[str, Any]] = {
    "Error": _object(error=_object(message=_TEXT, type=_TEXT, param=_NULLABLE, code=_NULLABLE)),
    "AnthropicError": _object(
        type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT), request_id=_NULLABLE
    ),
}


def document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document. It is made at the first call and then kept."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    whole = get_openapi(title=app.title, version=app.version, routes=app.routes)
    bodies, definitions = models_json_schema(
        [(schema, "validation") for schema in BODIES.values()],
        ref_template=_REF,
        schema_generator=_Generator,
    )
    whole["components"] = {"schemas": definitions["$defs"] | _ENVELOPES}
    for path, operations in whole["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI adds it, but Easel answers 400
            operation["responses"] |= _errors(path)
            operation["responses"]["200"]["content"] = _answers(path)
        if path in BODIES:
            schema = bodies[BODIES[path], "validation"]
            content = {"application/json": {"schema": schema}}
            operations["post"]["requestBody"] = {"required": True, "content": content}
    return whole


def _answers(path: str) -> dict[str, Any]:
    if path == "/metrics":
        return {"text/plain": {"schema": _TEXT}}
    answers = {"application/json": {"schema": {"type": "object"}}}
    streams = path in BODIES and "stream" in BODIES[path].model_fields
    return answers | ({"text/event-stream": {"schema": _EVENT}} if streams else {})


def _errors(path: str) -> dict[str, Any]:
    """Returns the error statuses that this path can answer with, in its dialect's envelope."""
    if path == "/health/ready":
        answer = {"application/json": {"schema": _object(status=_TEXT)}}
        return {"503": {"description": "No worker is ready", "content": answer}}
    spoken: list[Dialect] = [dialect(path, {})]
    if path.startswith("/v1/models"):
        spoken.append("anthropic")  # if the client's headers say so
    names = ["AnthropicError" if each == "anthropic" else "Error" for each in spoken]
    envelope = {"anyOf": [{"$ref": _REF.format(model=name)} for name in names]}
    content = {"application/json": {"schema": envelope}}
    return {
        str(error.status): {"description": error.__name__, "content": content} for error in _ERRORS
    }


class _Generator(GenerateJsonSchema):
    """Writes unions as `anyOf`: a value may fit several members, and code picks the right one."""

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        made = super().tagged_union_schema(schema)
        made["anyOf"] = made.pop("oneOf")
        return made
