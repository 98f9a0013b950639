"""The base of the dialects' request schemas: strictness, refusals and the sampling fields."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    RootModel,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from app.errors import UNSUPPORTED, BadRequest, short
from app.prompting.conversation import bounded_json
from app.prompting.vocabulary import Vocabulary
from engine.messages import MOST_NATS, MOST_STEPS, Sampling

MAX_STOPS = 64
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKENS = 64
MAX_BAD_WORDS = 256
MAX_WORD = 128  # characters
MAX_STOP = 1_000  # characters
# These bound what a request is made of. No prompt that fits a context comes near to them.
MAX_MESSAGES = 10_000
MAX_PARTS = 10_000
MAX_TOOLS = 1_000
MAX_KEYS = 1_000  # of an object whose fields are known
MAX_LOGIT_BIAS = 1_024
MAX_TOKEN_IDS = 2**20
MAX_METADATA = 2**16  # characters as JSON
MAX_NAME = 1_024  # characters of what names a user or a cache


def _one_or_several(value: Any) -> str | None:
    return "(string)" if isinstance(value, str) else "(list)" if isinstance(value, list) else None


# A field that takes a string or a list is validated as the one that came, so that an error is
# about that form.
ONE, SEVERAL = Tag("(string)"), Tag("(list)")
ONE_OR_SEVERAL = Discriminator(
    _one_or_several,
    custom_error_type="string_or_list",
    custom_error_message="Input should be a string or a list",
)


def unsupported(field: str, message: str) -> PydanticCustomError:
    """Returns the error for a field or value that Easel does not support.

    `field` is the name of a field inside the value that is being validated, or empty for itself.
    """
    return PydanticCustomError(UNSUPPORTED, "{message}", {"field": field, "message": message})


def quoted(value: Any) -> str:
    """Returns a value as JSON for an error message, cut off where it is too long."""
    return short(json.dumps(value, ensure_ascii=False))


JsonObject = Annotated[dict[str, Any], AfterValidator(bounded_json)]
JsonValue = Annotated[Any, AfterValidator(bounded_json)]


class Fields(BaseModel):
    """The fields of an object in a request. The subclass declares those that Easel honours.

    Keys that are not declared are ignored, because clients carry them from other providers.
    `neutral` lists fields that would promise what does not happen, each with the values that ask
    for nothing. These values and null are accepted. Any other value is refused.
    """

    model_config = ConfigDict(extra="ignore", strict=True)
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    _ignored: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        if len(data) > MAX_KEYS:
            raise unsupported("", f"it has {len(data)} fields; at most {MAX_KEYS} are allowed")
        kept, ignored = {}, []
        for field, value in data.items():
            if field in cls.model_fields:
                kept[field] = value
            elif value is None:
                continue
            elif field in cls.neutral:
                _check_neutral(field, value, cls.neutral[field])
            elif cls._ignores(field):
                ignored.append(field)
            else:
                kept[field] = value  # pydantic refuses it
        made = handler(kept)
        made._ignored = tuple(ignored)
        return made

    @classmethod
    def _ignores(cls, _field: str) -> bool:
        return True

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        made = handler(schema)
        described = handler.resolve_ref_schema(made)
        properties = described.setdefault("properties", {})
        for field, allowed in cls.neutral.items():
            properties[field] = {"enum": [None, *allowed]}
        return made


class RequestFields(Fields):
    """The fields of a whole request. A key that is not known is refused, as OpenAI does.

    `hints` are the names of fields that are ignored whatever their value is: they say how to do
    something, or concern a provider, and promise nothing about the answer.
    """

    model_config = ConfigDict(extra="forbid")
    hints: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def _ignores(cls, field: str) -> bool:
        return field in cls.hints

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        made = super().__get_pydantic_json_schema__(schema, handler)
        described = handler.resolve_ref_schema(made)
        for field in sorted(cls.hints):
            described["properties"][field] = {"description": "Accepted without effect"}
        described["additionalProperties"] = {"type": "null"}
        return made


def ignored_fields(value: BaseModel) -> list[str]:
    """Returns the names of the ignored fields, such as "messages.cache_control", each once."""
    names = dict.fromkeys(_ignored_below(value, ""))
    return list(names)


def _ignored_below(value: Any, path: str) -> Iterator[str]:
    match value:
        case RootModel(root=root):
            yield from _ignored_below(root, path)
        case Fields():
            yield from (path + name for name in value._ignored)
            for name in value.model_fields_set:
                yield from _ignored_below(getattr(value, name), f"{path}{name}.")
        case [Fields(), *_]:
            for each in value:
                yield from _ignored_below(each, path)


def _check_neutral(field: str, value: Any, allowed: tuple[Any, ...]) -> None:
    # True is not meant by 1, although both are equal in Python.
    if not any(value == each and (value is True) == (each is True) for each in allowed):
        values = ", ".join(json.dumps(each) for each in (None, *allowed))
        raise unsupported(field, f"{quoted(value)} is not supported; allowed: {values}")


def _whole(value: Any) -> Any:
    """Returns 2 for 2.0, which clients send whose language has one type of numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unlimited(value: Any) -> Any:
    """Returns None for -1, which other servers take for no limit."""
    return None if value == -1 and value is not True else value


Whole = Annotated[int, BeforeValidator(_whole)]
TokenLimit = Annotated[
    Annotated[Whole, Field(ge=1)] | None,
    BeforeValidator(_unlimited),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"enum": [None, -1]}]}),
]


class SamplingFields(RequestFields):
    """Fields that control how an answer is drawn, in every dialect.

    `temperature`, `top_p` and `seed` are OpenAI's. The others are extensions, which have the same
    names as in other servers.
    """

    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: Whole | None = Field(
        default=None, ge=-1, lt=2**31, description="0 and -1 mean all tokens"
    )
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=1e-4, le=1e4)
    bad_words: (
        Annotated[
            list[Annotated[str, Field(max_length=MAX_WORD)]],
            Field(fail_fast=True, max_length=MAX_BAD_WORDS),
        ]
        | None
    ) = None
    seed: Whole | None = Field(default=None, ge=-(2**63), lt=2**63)
    ignore_eos: bool | None = None
    min_tokens: Whole | None = Field(default=None, ge=0, lt=2**31)
    stop_token_ids: (
        Annotated[
            list[Annotated[Whole, Field(ge=0)]],
            Field(fail_fast=True, max_length=MAX_STOP_TOKENS),
        ]
        | None
    ) = None
    priority: Whole | None = Field(default=None, ge=-(2**31), lt=2**31)
    timeout: float | None = Field(default=None, gt=0, le=86400, description="in seconds")
    max_denoising_steps: Whole | None = Field(default=None, ge=1, le=MOST_STEPS)
    entropy_bound: float | None = Field(default=None, ge=0, le=MOST_NATS)
    confidence_threshold: float | None = Field(default=None, ge=0, le=MOST_NATS)

    def sampling(self, seed: int, vocabulary: Vocabulary) -> Sampling:
        """Returns the fields in the worker's form. `seed` is used if the request has none.

        Raises BadRequest if one of the `bad_words` cannot be banned.
        """
        return Sampling(
            seed=(seed if self.seed is None else self.seed) % 2**64,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            banned_tokens=_banned_tokens(self.bad_words or [], vocabulary),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            stop_token_ids=self.stop_token_ids or [],
            priority=self.priority or 0,
            max_denoising_steps=self.max_denoising_steps,
            entropy_bound=self.entropy_bound,
            confidence_threshold=self.confidence_threshold,
        )


def _banned_tokens(words: list[str], vocabulary: Vocabulary) -> list[int]:
    banned = set[int]()
    for index, word in enumerate(words):
        if not word:
            continue  # it asks for nothing
        tokens = vocabulary.word_tokens(word)
        if tokens is None:
            field = f"bad_words.{index}"
            raise BadRequest(
                f"{field}: {quoted(word)} cannot be banned; only words can that are one token, "
                f"with and without a space before them.",
                param=field,
                code=UNSUPPORTED,
            )
        banned |= tokens
    return sorted(banned)


class StreamOptions(Fields):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


Stop = Annotated[str, Field(max_length=MAX_STOP)]
Stops = Annotated[
    Annotated[Stop, ONE] | Annotated[list[Stop], Field(fail_fast=True), SEVERAL], ONE_OR_SEVERAL
]


class ApiRequest(SamplingFields):
    """The fields that OpenAI's chat completions and raw completions share.

    `hints` and `neutral` have OpenAI's fields and those of vLLM, SGLang, llama.cpp and OpenRouter
    that clients set by default.
    """

    hints: ClassVar[frozenset[str]] = frozenset(
        {
            "cache_prompt",
            "cache_salt",
            "id_slot",
            "keep_alive",
            "metadata",
            "prediction",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "provider",
            "request_id",
            "safety_identifier",
            "service_tier",
            "session_id",
            "timings_per_token",
            "usage",
            "user",
            "verbosity",
        }
    )
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_token_ids": ([],),
        "best_of": (1,),
        "early_stopping": (False,),
        "grammar": ("",),
        "guided_choice": (),
        "guided_grammar": (),
        "guided_json": (),
        "guided_regex": (),
        "include_stop_str_in_output": (False,),
        "length_penalty": (1.0,),
        "prompt_logprobs": (),
        "repeat_penalty": (1.0,),
        "response_format": ({"type": "text"},),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True, False),
        "structured_outputs": (),
        "truncate_prompt_tokens": (),
        "typical_p": (1.0,),
        "use_beam_search": (False,),
    }

    model: str | None = None
    n: Whole | None = Field(default=None, ge=1, le=MAX_CHOICES)
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_LOGIT_BIAS)] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > MAX_STOPS:
            raise ValueError(
                f"{len(value)} stop strings are too many; at most {MAX_STOPS} are allowed"
            )
        return value

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ValueError(f"{short(token)!r} is not a token id")
            if not -100 <= bias <= 100:
                raise ValueError(
                    f"the bias of token {token} is {bias:g}; it must be from -100 to 100"
                )
        return value

    def sampling(self, seed: int, vocabulary: Vocabulary) -> Sampling:
        return msgspec.structs.replace(
            super().sampling(seed, vocabulary),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        several = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(each for each in several if each)  # an empty string would stop nothing

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Returns whether each chunk has the usage so far. As in vLLM, the last one has it too."""
        options = self.stream_options
        return self.include_usage and options is not None and bool(options.continuous_usage_stats)
