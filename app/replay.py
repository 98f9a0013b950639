"""`easel replay`: makes a recorded answer again and says where it differs.

The record has the request with its seed, so any server with the same model can make the answer
again: one that runs, or one that is started for this and ends afterwards.
"""

import sys
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from app.server_client import server_client

_STDIN = "-"


class ReplayError(RuntimeError):
    """The record cannot be read, or its request cannot be made again."""


class _Part(BaseModel):
    """An object of a record. Another version of Easel may have written more than this into it."""

    model_config = ConfigDict(frozen=True, strict=True)


class Block(_Part):
    token_ids: list[int]
    denoising_steps: int


class RecordedChoice(_Part):
    index: int = Field(ge=0)
    prompt_token_ids: list[int]
    blocks: list[Block]
    finish_reason: str

    @property
    def tokens(self) -> list[int]:
        return [token for block in self.blocks for token in block.token_ids]


class Record(_Part):
    """The field `diffusion.record` of an answer."""

    version: str
    fingerprint: str
    endpoint: str = Field(pattern="^/v1/(chat/)?completions$")
    request: dict[str, JsonValue]
    choices: list[RecordedChoice] = Field(min_length=1)


class _Diffusion(_Part):
    record: Record


class _Answer(_Part):
    diffusion: _Diffusion


def read_record(file: str) -> Record:
    """Returns the record of the answer in `file`, or in stdin if it is `-`.

    The file has the JSON of an answer that was not streamed, or of a choice's last chunk. Raises
    ReplayError if it has no record.
    """
    name = "stdin" if file == _STDIN else file
    try:
        text = sys.stdin.read() if file == _STDIN else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReplayError(f"{name} can't be read: {error}") from error
    try:
        return _Answer.model_validate_json(text).diffusion.record
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise ReplayError(
            f"{name} is no answer with a record: {where}{': ' * bool(where)}{fault['msg']}. A "
            'request with "diffusion": {"record": true} gets one.'
        ) from error


def made_again(record: Record, url: str, api_key: str = "") -> Record:
    """Returns the record of the same request's answer by the server at `url`.

    Raises ReplayError if the server cannot be reached or gives no such answer.
    """
    body = {**record.request, "diffusion": {"record": True}}
    try:
        with server_client(url, api_key) as server:
            response = server.post(record.endpoint, json=body)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ReplayError(f"{url} can't be reached: {error}") from error
    if response.status_code != 200:
        raise ReplayError(f"{url} answers {response.status_code}: {response.text}")
    try:
        return _Answer.model_validate_json(response.content).diffusion.record
    except ValidationError as error:
        raise ReplayError(f"{url} gives answers without a record: is it an Easel?") from error


def differences(recorded: Record, made: Record) -> list[str]:
    """Returns where the answers differ, a line for each choice, or no line if they are equal.

    Only the choices that were recorded are compared.
    """
    lines = []
    again = {choice.index: choice for choice in made.choices}
    for choice in recorded.choices:
        other = again.get(choice.index)
        difference = "it was not made again" if other is None else _difference(choice, other)
        if difference:
            lines.append(f"choice {choice.index}: {difference}")
    return lines


def _difference(recorded: RecordedChoice, made: RecordedChoice) -> str:
    """Returns the first difference between two choices, or an empty text."""
    at = _first_difference(recorded.prompt_token_ids, made.prompt_token_ids)
    if at is not None:
        return (
            f"the prompt's token {at} {_was(recorded.prompt_token_ids, made.prompt_token_ids, at)}"
        )
    at = _first_difference(recorded.tokens, made.tokens)
    begun = 0
    for index, (old, new) in enumerate(zip(recorded.blocks, made.blocks, strict=False)):
        if at is not None and at < begun + len(old.token_ids):
            break
        if old.denoising_steps != new.denoising_steps:
            steps = f"{old.denoising_steps}, and is {new.denoising_steps} now"
            return f"block {index} has the same tokens, but its number of steps was {steps}"
        begun += len(old.token_ids)
    else:
        index = min(len(recorded.blocks), len(made.blocks))
    if at is not None:
        return f"token {at}, in block {index}, {_was(recorded.tokens, made.tokens, at)}"
    if recorded.finish_reason != made.finish_reason:
        reasons = f"{recorded.finish_reason}, and is {made.finish_reason} now"
        return f"its tokens are the same, but its finish reason was {reasons}"
    return ""


def _first_difference(old: list[int], new: list[int]) -> int | None:
    """Returns the index of the first token that is not the same in both, or None."""
    if old == new:
        return None
    pairs = zip(old, new, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))


def _was(old: list[int], new: list[int], at: int) -> str:
    """Returns what a token was and what it is, by their ids."""
    was, now = (str(tokens[at]) if at < len(tokens) else "missing" for tokens in (old, new))
    return f"was {was} and is {now} now"
