"""The errors that clients get, each with its status, and the envelope of each dialect.

ApiError
├── WrongRequest                 the same request would be refused again
│   ├── BadRequest              400  a field of the request is wrong or not supported
│   │   └── ContextLengthExceeded    the prompt leaves no room for an answer
│   ├── Unauthorized            401  the API key is missing or unknown
│   ├── Forbidden               403  the host name or the web page may not use this server
│   ├── NotFound                404
│   │   └── ModelNotFound            the named model is not the served one
│   ├── MethodNotAllowed        405
│   ├── BodyTooLarge            413
│   ├── MalformedHttp           400  or 431, 501, 505: it is not HTTP as this server reads it
│   ├── UnsupportedEncoding     415  the body has a Content-Encoding that is not supported
│   └── WebSocketRefused        426  HTTP is the only protocol here
├── RequestTimeout          408  the request took too long to arrive
├── TooManyRequests         429  with Retry-After
├── GenerationFailed        500  the worker could not finish this answer
├── DeadlineExceeded        504  the answer took longer than allowed
└── NotReady                503  with Retry-After
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

# The error code for a field or value that Easel does not support.
UNSUPPORTED = "unsupported_parameter"

# Codes of failures that the same request would meet again: it does not fit the device's memory even
# alone, or it kills the worker.
_FINAL_FAILURES = frozenset({"out_of_memory", "worker_died"})

Dialect = Literal["openai", "responses", "anthropic"]

# An error repeats what a client sent only so far. The second bound holds for the whole message,
# whatever it is made of, and the third for the name of a field.
_MOST_SHOWN = 60  # characters
_MOST_MESSAGE = 1000
_MOST_PARAM = 200
# In a list of names, whose characters must be allowed in a header.
_NAME_LENGTH = 64
_NAMES_SHOWN = 20
_UNSAFE = re.compile(r"[^\w.\[\]-]", re.ASCII)

_ANTHROPIC_TYPES = {  # by status
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    426: "invalid_request_error",
    431: "invalid_request_error",
    501: "invalid_request_error",
    505: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def short(text: str, most: int = _MOST_SHOWN) -> str:
    """Returns the text, cut off behind `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"


def shown_names(names: Sequence[str]) -> str:
    """Returns names that a client chose as one line of bounded length."""
    shown = [_UNSAFE.sub("?", name[:_NAME_LENGTH]) for name in names[:_NAMES_SHOWN]]
    more = [f"{len(names) - _NAMES_SHOWN} more"] if len(names) > _NAMES_SHOWN else []
    return ", ".join([*shown, *more])


class ApiError(Exception):
    """An error that is sent to the client. `param` is the field of the request that caused it.

    `final` says that the same request would fail again, so that a client need not retry it.
    """

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after_s: float | None = None
    final = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = short(message, _MOST_MESSAGE)
        self.param = None if param is None else short(param, _MOST_PARAM)
        self.code = code or type(self).code
        self.retry_after_s = retry_after_s or type(self).retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Returns the headers that say whether and when to retry.

        The SDKs of OpenAI and Anthropic, and Claude Code, read all three.
        """
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(self.retry_after_s))
            headers["retry-after-ms"] = str(math.ceil(1000 * self.retry_after_s))
        if self.final:
            headers["x-should-retry"] = "false"
        return headers


class WrongRequest(ApiError):
    type = "invalid_request_error"
    final = True


class BadRequest(WrongRequest):
    status = 400


class ContextLengthExceeded(BadRequest):
    """The prompt has `tokens` tokens, or at least so many, which leave no room for an answer."""

    code = "context_length_exceeded"

    def __init__(self, message: str, *, param: str | None, tokens: int) -> None:
        super().__init__(message, param=param)
        self.tokens = tokens


class Unauthorized(WrongRequest):
    status = 401
    code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "www-authenticate": "Bearer"}


class Forbidden(WrongRequest):
    status = 403


class NotFound(WrongRequest):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(WrongRequest):
    status = 405
    code = "method_not_allowed"


class BodyTooLarge(WrongRequest):
    status = 413
    code = "body_too_large"


class MalformedHttp(WrongRequest):
    """Nothing that follows it on its connection can be understood."""

    code = "malformed_http"

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "connection": "close"}


class UnsupportedEncoding(WrongRequest):
    """The body has an encoding that is not in `allowed`."""

    status = 415
    code = "unsupported_encoding"

    def __init__(self, message: str, allowed: Iterable[str]) -> None:
        super().__init__(message)
        self._allowed = ", ".join(allowed)

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "accept-encoding": self._allowed}


class WebSocketRefused(WrongRequest):
    """Codex uses HTTP at once after this status. After another one it first retries for a while."""

    status = 426
    code = "websocket_unsupported"

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "upgrade": "HTTP/1.1", "connection": "upgrade"}


class RequestTimeout(ApiError):
    status = 408
    type = "timeout_error"
    code = "request_timeout"

    @property
    def headers(self) -> dict[str, str]:
        return {**super().headers, "connection": "close"}


class TooManyRequests(ApiError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class GenerationFailed(ApiError):
    """A retry helps, with other random numbers, unless `code` says that it can't."""

    code = "generation_failed"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.final = code in _FINAL_FAILURES


class DeadlineExceeded(ApiError):
    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"
    final = True  # a retry would take as long

    def __init__(self) -> None:
        super().__init__("The answer took longer than allowed (timeout).")


class NotReady(ApiError):
    status = 503
    code = "not_ready"
    retry_after_s = 2


def dialect(path: str, headers: Mapping[str, str]) -> Dialect:
    """Returns the dialect of a request.

    `/v1/models` exists in both OpenAI's and Anthropic's API, so there the headers decide. Every
    other path belongs to one dialect.
    """
    if path.startswith("/v1/models"):
        return "anthropic" if "anthropic-version" in headers else "openai"
    if path.endswith("/responses"):
        return "responses"
    own = path == "/v1/messages" or path.startswith("/v1/messages/")
    return "anthropic" if own else "openai"


def error_body(
    error: ApiError, spoken: Dialect = "openai", request_id: str | None = None
) -> dict[str, Any]:
    """Returns the error's JSON, which is the same as a response and as an event of a stream."""
    if spoken == "anthropic":
        name = _ANTHROPIC_TYPES.get(error.status, "api_error")
        described: dict[str, Any] = {"type": name, "message": error.message}
        if error.code == UNSUPPORTED and error.param == "thread":
            # The SDK's tool runner first asks for a thread. After this error it does without one.
            described["details"] = {
                "error_code": "thread_unsupported_request",
                "unsupported": ["thread"],
            }
        return {"type": "error", "error": described, "request_id": request_id}
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_event(error: ApiError) -> dict[str, Any]:
    """Returns the error as an event of the Responses API.

    It has the flat fields that OpenAI's reference describes, and also the envelope that OpenAI's
    server sends and OpenAI's SDKs raise on.
    """
    body = error_body(error)
    flat = {key: body["error"][key] for key in ("message", "param", "code")}
    return {"type": "error", **flat, **body}


def stream_end(error: ApiError, spoken: Dialect, request_id: str | None) -> str:
    """Returns the error as the last events of a stream that has begun."""
    match spoken:
        case "responses":
            return f"event: error\ndata: {json.dumps(error_event(error))}\n\n"
        case "anthropic":
            data = json.dumps(error_body(error, spoken, request_id))
            return f"event: error\ndata: {data}\n\n"
        case "openai":
            return f"data: {json.dumps(error_body(error))}\n\ndata: [DONE]\n\n"
