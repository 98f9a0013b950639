"""The base of the dialects' request schemas: strictness, refusals and the sampling fields."""

import json
from typing import Annotated, Any, ClassVar

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Tag,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from app.errors import UNSUPPORTED
from app.prompting.conversation import bounded_json
from engine.messages import Sampling

MAX_STOPS = 4
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_STOP_TOKENS = 64
_MAX_QUOTED = 60  # characters of a value that an error repeats


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
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"


JsonObject = Annotated[dict[str, Any], AfterValidator(bounded_json)]
JsonValue = Annotated[Any, AfterValidator(bounded_json)]


class Strict(BaseModel):
    """Refuses unknown fields, so that none is ignored silently.

    `neutral` lists fields of the dialect that Easel does not support, each with the values that
    have no effect. These values and null are accepted. Any other value is refused.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for field, allowed in cls.neutral.items():
            value = data.get(field)
            # Types are compared too, because 1 == True in Python.
            if value is None or any(value == a and type(value) is type(a) for a in allowed):
                continue
            values = ", ".join(json.dumps(v) for v in (None, *allowed))
            raise unsupported(field, f"{quoted(value)} is not supported; allowed: {values}")
        return {field: value for field, value in data.items() if field not in cls.neutral}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        made = handler(schema)
        properties = handler.resolve_ref_schema(made).setdefault("properties", {})
        for field, allowed in cls.neutral.items():
            properties[field] = {"enum": [None, *allowed]}
        return made


class StreamOptions(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool = False


def thinks(effort: str | None) -> bool:
    """Returns whether this effort switches thinking on. The model has no degrees of thinking."""
    return effort not in (None, "none", "minimal")


class SamplingFields(Strict):
    """Fields that control how an answer is drawn, in every dialect.

    `temperature`, `top_p` and `seed` are OpenAI's. The others are extensions, which have the same
    names as in other servers.
    """

    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31, description="0 and -1 mean all tokens")
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    stop_token_ids: (
        Annotated[
            list[Annotated[int, Field(ge=0)]],
            Field(fail_fast=True, max_length=MAX_STOP_TOKENS),
        ]
        | None
    ) = None
    priority: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    timeout: float | None = Field(default=None, gt=0, le=86400, description="in seconds")
    max_denoising_steps: int | None = Field(default=None, ge=1, le=1024)
    entropy_bound: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    confidence_threshold: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    def sampling(self, seed: int) -> Sampling:
        """Returns the fields in the worker's form. `seed` is used if the request has none."""
        return Sampling(
            seed=(seed if self.seed is None else self.seed) % 2**64,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=self.top_p or 1.0,
            top_k=max(self.top_k or 0, 0),
            ignore_eos=bool(self.ignore_eos),
            min_tokens=self.min_tokens or 0,
            stop_token_ids=self.stop_token_ids or [],
            priority=self.priority or 0,
            max_denoising_steps=self.max_denoising_steps,
            entropy_bound=self.entropy_bound,
            confidence_threshold=self.confidence_threshold,
        )


class ApiRequest(SamplingFields):
    """The fields that OpenAI's chat completions and raw completions share."""

    model: str | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    stop: (
        Annotated[
            Annotated[str, Field(min_length=1), ONE]
            | Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True), SEVERAL],
            ONE_OR_SEVERAL,
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

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
                raise ValueError(f"{token!r} is not a token id")
            if not -100 <= bias <= 100:
                raise ValueError(
                    f"the bias of token {token} is {bias:g}; it must be from -100 to 100"
                )
        return value

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "ApiRequest":
        if self.stream_options is not None and not self.stream:
            raise unsupported("stream_options", "it is only allowed if stream is true")
        return self

    def sampling(self, seed: int) -> Sampling:
        return msgspec.structs.replace(
            super().sampling(seed),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage
