"""What the dialects' requests share: strictness, refusals, sampling fields."""

import json
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

MAX_STOPS = 4
UNSUPPORTED = "unsupported_parameter"  # the error's type here and its code in the answer


def _form(value: Any) -> str | None:
    return "(string)" if isinstance(value, str) else "(list)" if isinstance(value, list) else None


# A field that is one string or a list is checked as what it is, so that an error speaks of that.
ONE, SEVERAL = Tag("(string)"), Tag("(list)")
ONE_OR_SEVERAL = Discriminator(
    _form,
    custom_error_type="string_or_list",
    custom_error_message="Input should be a string or a list",
)


class Strict(BaseModel):
    """Takes no other field than its own, so that none is ignored unseen.

    `neutral` names the fields of OpenAI's schema that Easel does not honour, each with the values
    that ask for nothing; null always does. Any other value is refused.
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
            # By type too: 1 == True in Python.
            if value is None or any(value == a and type(value) is type(a) for a in allowed):
                continue
            raise PydanticCustomError(
                UNSUPPORTED,
                "not supported; allowed: {allowed}",
                {"field": field, "allowed": ", ".join(json.dumps(v) for v in (None, *allowed))},
            )
        return {field: value for field, value in data.items() if field not in cls.neutral}


class StreamOptions(Strict):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: bool = False


class ApiRequest(Strict):
    """Fields of every generation request."""

    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: (
        Annotated[
            Annotated[str, Field(min_length=1), ONE]
            | Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True), SEVERAL],
            ONE_OR_SEVERAL,
        ]
        | None
    ) = None
    prompt_field: ClassVar[str]  # the field that a prompt too long is blamed on
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and len(value) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings are allowed")
        return value

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "ApiRequest":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                UNSUPPORTED, "needs stream to be true", {"field": "stream_options"}
            )
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage
