"""Everything that a client can be told went wrong, in OpenAI's envelope.

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
└── NotReady                503  with Retry-After
"""

import json
from typing import Any


class ApiError(Exception):
    """An error with its status; `param` is the request's field, if one is to blame."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or type(self).code

    @property
    def headers(self) -> dict[str, str]:
        """OpenAI's SDKs read both."""
        if self.retry_after_s is None:
            return {}
        return {
            "Retry-After": str(self.retry_after_s),
            "retry-after-ms": str(1000 * self.retry_after_s),
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
    retry_after_s = 1


class GenerationFailed(ApiError):
    code = "generation_failed"


class NotReady(ApiError):
    status = 503
    code = "not_ready"
    retry_after_s = 2


def error_body(error: ApiError) -> dict[str, Any]:
    """The envelope, the same before a stream and inside one."""
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


def stream_error(path: str, error: ApiError) -> str:
    """How the event stream of an endpoint ends when it is cut off, in its dialect."""
    if path.endswith("/responses"):
        return f"event: error\ndata: {json.dumps(error_event(error))}\n\n"
    return f"data: {json.dumps(error_body(error))}\n\ndata: [DONE]\n\n"
