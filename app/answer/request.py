"""The request in the form that all dialects share, and its conversion to the worker's form."""

import secrets
import uuid
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from app.chat_format.gemma import CHANNEL, CHANNEL_END, THOUGHT_HEADER
from app.constraint.enforced import Enforced
from app.errors import BadRequest
from app.prompting.prompt import Prompt, answer_room
from app.prompting.vocabulary import Vocabulary
from engine.messages import GenerateRequest, Prediction, Ready, Sampling, Thought


@dataclass(frozen=True)
class ChatFormat:
    """The settings for reading a chat's answer.

    Set `calls` if tools were offered, and `whole_calls` if the dialect can't send a call whose
    arguments are not JSON.
    """

    calls: bool = False
    parallel_calls: bool = True
    whole_calls: bool = False


@dataclass(frozen=True)
class AnswerConstraint:
    """What the answers must be. `field` is the request's field that demands it."""

    enforced: Enforced
    field: str


@dataclass(frozen=True)
class AnswerRequest:
    """A request of any dialect. It asks for `n` answers to each prompt.

    The answers to prompt p are the choices n * p, n * p + 1, and so on. `format` is None for raw
    completions, whose answers are plain text. An error about a too long prompt names the field
    `prompt_field`, and one about too few allowed tokens the field `limit_field`. If `timeout_s` is
    None, the server's setting applies. All thoughts of an answer together have `thinking_budget`
    tokens at most, if that is set. `id` is the unique part of the answer's id.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling
    max_tokens: int | None
    prompt_field: str
    timeout_s: float | None = None
    n: int = 1
    stops: tuple[str, ...] = ()
    format: ChatFormat | None = None
    limit_field: str = "max_tokens"
    constraint: AnswerConstraint | None = None
    prediction: Prediction | None = None
    thinking_budget: int | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n


def unset_seed(temperature: float | None, prompts: Iterable[Prompt]) -> int:
    """Returns a seed in 0 .. 2**64 - 1 for a request that has none.

    It is random, but at temperature 0 it is made of the prompts, so that the same request gets the
    same answer each time.
    """
    if temperature != 0:
        return secrets.randbits(64)
    digest = blake2b(digest_size=8)
    for prompt in prompts:
        digest.update(array("q", [len(prompt.tokens), *prompt.tokens]))
    return int.from_bytes(digest.digest())


def prepare(
    request: AnswerRequest, limits: Ready, vocabulary: Vocabulary, salt: str = ""
) -> list[GenerateRequest]:
    """Returns the choices in the worker's form, in their order. `salt` is that of their prefixes.

    Their ids are the answer's with the number of the choice.

    Raises ContextLengthExceeded if a prompt leaves no room for an answer, and BadRequest if the
    model lacks a token, or if a suffix or the shortest answer that is demanded does not fit.
    """
    _check_token_ids("logit_bias", request.sampling.logit_bias, limits)
    _check_token_ids("bad_words", request.sampling.banned_tokens, limits)
    _check_token_ids("stop_token_ids", request.sampling.stop_token_ids, limits)
    suffix = request.sampling.suffix
    _check_tokens(suffix, limits, vocabulary, "suffix")
    prepared: list[GenerateRequest] = []
    for prompt in request.prompts:
        _check_tokens(prompt.tokens, limits, vocabulary, request.prompt_field)
        room = answer_room(
            prompt.tokens,
            request.max_tokens,
            limits.context_length,
            suffix_tokens=len(suffix),
            param=request.prompt_field,
        )
        if suffix and room + len(suffix) > limits.canvas_length:
            raise BadRequest(
                f"suffix: its {len(suffix)} tokens and max_tokens ({room}) do not fit one canvas "
                f"of {limits.canvas_length} tokens.",
                param="suffix",
            )
        constraint = request.constraint
        lead: list[int] = []
        ends = list(prompt.end_tokens)
        if constraint is not None:
            lead = _lead(constraint, room, request)
            ends += constraint.enforced.ends
        images = list(prompt.images)
        thought = _thought(request, prompt, limits, vocabulary)
        for choice in range(request.n):
            prepared.append(
                GenerateRequest(
                    id=f"{request.id}-{len(prepared)}",
                    prompt=prompt.tokens,
                    max_tokens=room,
                    sampling=msgspec.structs.replace(
                        request.sampling, choice=choice, end_tokens=ends
                    ),
                    images=images,
                    salt=salt,
                    constraint="" if constraint is None else constraint.enforced.message.hash,
                    lead=lead,
                    prediction=request.prediction,
                    thought=thought,
                )
            )
    return prepared


def _thought(
    request: AnswerRequest, prompt: Prompt, limits: Ready, vocabulary: Vocabulary
) -> Thought | None:
    """Returns what the worker must know of thoughts, or None if the format has none."""
    if request.format is None:
        return None
    marks = vocabulary.control_ids((CHANNEL, CHANNEL_END))
    header = vocabulary.encode_literally(THOUGHT_HEADER)
    if len(marks) < 2 or max(*marks, *header) >= limits.vocab_size:
        return None
    reserve = 0
    if request.constraint is not None:
        # An automaton counts the closing mark of a thought that the prompt has begun.
        reserve = max(1, request.constraint.enforced.least_tokens - prompt.thinking)
    return Thought(
        open=marks[0],
        close=marks[1],
        header=header,
        begun=prompt.thinking,
        budget=request.thinking_budget,
        reserve=reserve,
    )


def _lead(constraint: AnswerConstraint, room: int, request: AnswerRequest) -> list[int]:
    """Returns the tokens with which the worker begins an answer that may have `room` tokens.

    They have no log-probabilities, so there are none if the request asks for these. Raises
    BadRequest if no answer that is demanded has so few tokens.
    """
    forced, least = constraint.enforced.forced, constraint.enforced.least_tokens
    if room < least:
        raise BadRequest(
            f"{request.limit_field}: the answer may have {room} tokens, but the shortest one that "
            f"{constraint.field} allows has {least}.",
            param=request.limit_field,
        )
    # The tokenizer may write them in more tokens than the shortest answer does.
    fits = len(forced) + least <= room
    return list(forced) if fits and request.sampling.top_logprobs is None else []


def _check_token_ids(field: str, tokens: Iterable[int], limits: Ready) -> None:
    largest = max(tokens, default=0)
    if largest >= limits.vocab_size:
        raise BadRequest(
            f"{field}: {largest} is not a token id; ids must be below {limits.vocab_size}.",
            param=field,
        )


def _check_tokens(tokens: Sequence[int], limits: Ready, vocabulary: Vocabulary, param: str) -> None:
    """Raises BadRequest, which names the token, if the tokenizer has it but the model does not."""
    largest = max(tokens, default=0)
    if largest >= limits.vocab_size:
        name = vocabulary.tokenizer.id_to_token(largest)
        raise BadRequest(
            f"{param}: the model lacks the token {name!r} of its tokenizer, whose id is {largest}; "
            f"the model's ids are below {limits.vocab_size}.",
            param=param,
        )
