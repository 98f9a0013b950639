"""The request in the form that all dialects share, and its conversion to the worker's form."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from jsonschema_rs import Validator

from app.answer.tool_schemas import strict_validator
from app.errors import BadRequest
from app.prompting.conversation import Tool
from app.prompting.prompt import Prompt, answer_room
from engine.messages import GenerateRequest, Ready, Sampling


@dataclass(frozen=True)
class ChatFormat:
    """The settings for reading a chat's answer.

    `tools` has a validator for each strict tool, and None for each other tool. Set `whole_calls` if
    the dialect can't send a call whose arguments are not JSON.
    """

    tools: Mapping[str, Validator | None] = field(default_factory=dict)
    parallel_calls: bool = True
    whole_calls: bool = False

    @classmethod
    def offering(
        cls, tools: Iterable[Tool], *, parallel_calls: bool, whole_calls: bool = False
    ) -> "ChatFormat":
        """Returns the settings for a chat with these tools.

        Raises BadRequest, naming the field, if a strict tool's schema can't be used for checks.
        """
        validators = {tool.name: strict_validator(tool) for tool in tools}
        return cls(validators, parallel_calls, whole_calls)


@dataclass(frozen=True)
class AnswerRequest:
    """A request of any dialect. It asks for `n` answers to each prompt.

    The answers to prompt p are the choices n * p, n * p + 1, and so on. `format` is None for raw
    completions, whose answers are plain text. An error about a too long prompt names the field
    `prompt_field`. If `timeout_s` is None, the server's setting applies.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling
    max_tokens: int | None
    prompt_field: str
    timeout_s: float | None = None
    n: int = 1
    stops: tuple[str, ...] = ()
    format: ChatFormat | None = None

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.n


def random_seed() -> int:
    """Returns a seed in 0 .. 2**64 - 1, for a request that has none."""
    return uuid.uuid4().int % 2**64


def prepare(request: AnswerRequest, limits: Ready) -> list[GenerateRequest]:
    """Returns the choices in the worker's form, in their order.

    Raises ContextLengthExceeded if a prompt leaves no room for an answer, and BadRequest if token
    ids are not in the vocabulary or a suffix does not fit.
    """
    largest = max(request.sampling.logit_bias, default=0)
    if largest >= limits.vocab_size:
        raise BadRequest(
            f"logit_bias: {largest} is not a token id; ids must be below {limits.vocab_size}.",
            param="logit_bias",
        )
    suffix = request.sampling.suffix
    prepared = []
    for prompt in request.prompts:
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
        for choice in range(request.n):
            prepared.append(
                GenerateRequest(
                    id=uuid.uuid4().hex,
                    prompt=prompt.tokens,
                    max_tokens=room,
                    sampling=msgspec.structs.replace(request.sampling, choice=choice),
                    images=list(prompt.images),
                )
            )
    return prepared
