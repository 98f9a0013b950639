"""Everything that a client can be told went wrong, in the envelope of the dialect it speaks.

ApiError
├── BadRequest              400  the request names something wrong or unsupported
│   └── ContextLengthExceeded    the prompt leaves no room for an answer
├── Unauthorized            401  no API key, or none of the server's
├── NotFound                404
│   └── ModelNotFound            the model named is not the one served
├── MethodNotAllowed        405
├── BodyTooLarge            413
├── TooManyRequests         429  with Retry-After
├── GenerationFailed        500  the worker could not finish this answer
├── DeadlineExceeded        504  nor in the time that it had
└── NotReady                503  with Retry-After
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

UNSUPPORTED = "unsupported_parameter"  # the code of a field that Easel does not honour

Dialect = Literal["openai", "responses", "anthropic"]

_ANTHROPIC_TYPES = {  # by status
    400: "invalid_request_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An error with its status; `param` is the request's field, if one is to blame."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_s: float | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s or type(self).retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's SDKs read both."""
        if self.retry_after_s is None:
            return {}
        return {
            "Retry-After": str(math.ceil(self.retry_after_s)),
            "retry-after-ms": str(math.ceil(1000 * self.retry_after_s)),
        }


class BadRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(BadRequest):
    code = "context_length_exceeded"


class Unauthorized(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class TooManyRequests(ApiError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class GenerationFailed(ApiError):
    code = "generation_failed"


class DeadlineExceeded(ApiError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"

    @property
    def headers(self) -> dict[str, str]:
        """The same again would take as long."""
        return {"x-should-retry": "false"}


class NotReady(ApiError):
    status = 503
    code = "not_ready"
    retry_after_s = 2


def dialect(path: str, headers: Mapping[str, str]) -> Dialect:
    """Which one a request speaks: models are asked for in both, the rest has paths of its own."""
    if path.startswith("/v1/models"):
        return "anthropic" if "anthropic-version" in headers else "openai"
    if path.endswith("/responses"):
        return "responses"
    own = path == "/v1/messages" or path.startswith("/v1/messages/")
    return "anthropic" if own else "openai"


def error_body(
    error: ApiError, spoken: Dialect = "openai", request_id: str | None = None
) -> dict[str, Any]:
    """The envelope, the same before a stream and inside one."""
    if spoken == "anthropic":
        name = _ANTHROPIC_TYPES.get(error.status, "api_error")
        told: dict[str, Any] = {"type": name, "message": error.message}
        if error.code == UNSUPPORTED and error.param == "thread":
            # The SDK's tool runner asks for one first, and goes on without if it is told so.
            told["details"] = {
                "error_code": "thread_unsupported_request",
                "unsupported": ["thread"],
            }
        return {"type": "error", "error": told, "request_id": request_id}
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_event(error: ApiError) -> dict[str, Any]:
    """An event of the Responses API: the flat one that its reference describes, and OpenAI's
    envelope, which their server sends and their SDKs raise on.
    """
    body = error_body(error)
    flat = {key: body["error"][key] for key in ("message", "param", "code")}
    return {"type": "error", **flat, **body}


def stream_end(error: ApiError, spoken: Dialect, request_id: str | None) -> str:
    """The error as the last events of a stream that has begun."""
    match spoken:
        case "responses":
            return f"event: error\ndata: {json.dumps(error_event(error))}\n\n"
        case "anthropic":
            data = json.dumps(error_body(error, spoken, request_id))
            return f"event: error\ndata: {data}\n\n"
        case "openai":
            return f"data: {json.dumps(error_body(error))}\n\ndata: [DONE]\n\n"
