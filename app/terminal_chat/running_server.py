"""A running Easel, as the terminal chat uses it: a client of its HTTP API and nothing more."""

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from app.server_client import server_client
from app.terminal import command_line

_DRAFTS_INTERVAL_MS = 40  # faster than people see, slow enough for any terminal

Message = dict[str, str]


class ServerError(RuntimeError):
    """The server cannot be reached, or it has refused or failed a request. The text says why."""


@dataclass(frozen=True)
class Model:
    """The served model. The lengths are in tokens, and None while the model is loaded."""

    name: str
    context_length: int | None
    canvas_length: int | None


@dataclass(frozen=True)
class Frame:
    """A block after a denoising step. `settled` is set if the block is finished."""

    block: int
    step: int
    tokens: list[str]
    accepted: list[bool]
    settled: list[int] | None


@dataclass(frozen=True)
class Added:
    """Text that a finished block adds to the answer, or to its thought."""

    text: str
    is_thought: bool = False


@dataclass(frozen=True)
class Ended:
    """The end of an answer, with the server's figures of it."""

    reason: str
    diffusion: dict[str, float]
    prompt_tokens: int
    completion_tokens: int


Event = Frame | Added | Ended


class RunningServer:
    """A connection to the server at `url`. `key` is the API key, or empty."""

    def __init__(self, url: str, key: str) -> None:
        """Raises ServerError if `url` is no address of a server."""
        self.url = url
        try:
            self._http = server_client(url, key)
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerError(f"--url is {url!r}: {error}") from error

    def model(self) -> Model:
        """Returns the served model. Raises ServerError."""
        try:
            response = self._http.get("/v1/models")
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise self._unreachable(error) from error
        _check(response)
        try:
            model = response.json()["data"][0]
            return Model(model["id"], model.get("context_length"), model.get("canvas_length"))
        except (ValueError, LookupError, TypeError) as error:
            raise ServerError(f"{self.url} is not an Easel server") from error

    def answer(self, messages: list[Message], *, drafts: bool) -> Generator[Event, None, None]:
        """Yields the events of an answer to the conversation. Raises ServerError.

        Closing the iterator cancels the answer.
        """
        options: dict[str, Any] = {"include_usage": True}
        if drafts:
            options |= {"include_drafts": True, "drafts_interval": _DRAFTS_INTERVAL_MS}
        body = {"messages": messages, "stream": True, "stream_options": options}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                _check(response)
                yield from _events(response.iter_lines())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ServerError:
        return ServerError(
            f"{self.url} cannot be reached ({error}). `{command_line('serve')}` starts a server; "
            "--url names another one."
        )


def _events(lines: Iterator[str]) -> Iterator[Event]:
    reason, figures = "", dict[str, float]()
    for line in lines:
        if not line.startswith("data: {"):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            raise ServerError(chunk["error"]["message"])
        shown = chunk.get("diffusion", {})
        if "block" in shown:
            yield Frame(
                shown["block"],
                shown["step"],
                shown["tokens"],
                shown["accepted"],
                shown.get("settled"),
            )
            continue
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                yield Added(delta["reasoning_content"], is_thought=True)
            if delta.get("content"):
                yield Added(delta["content"])
            if choice["finish_reason"]:
                reason, figures = choice["finish_reason"], shown
        if chunk.get("usage"):
            usage = chunk["usage"]
            yield Ended(reason, figures, usage["prompt_tokens"], usage["completion_tokens"])


def _check(response: httpx.Response) -> None:
    """Raises ServerError if the response is an error."""
    if response.status_code == 401:
        raise ServerError("the server needs an API key; set EASEL_API_KEY to one of its keys")
    if not response.is_success:
        try:
            why = response.json()["error"]["message"]
        except (ValueError, LookupError, TypeError):
            why = response.text.strip()[:200] or response.reason_phrase
        raise ServerError(f"{why} (status {response.status_code})")
