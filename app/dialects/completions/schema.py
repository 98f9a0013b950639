"""The body of `POST /v1/completions`: raw prompts, as text or as token ids."""

from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag, model_validator

from app.dialects.fields import MAX_MESSAGES, MAX_TOKEN_IDS, unsupported
from app.dialects.openai_fields import ApiRequest

MAX_LOGPROBS = 5  # OpenAI's limit

Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0)]],
    Field(min_length=1, fail_fast=True, max_length=MAX_TOKEN_IDS),
]


def _prompt_form(value: Any) -> str | None:
    """Returns the tag for a prompt's form. The first element of a list decides the list's form."""
    match value:
        case str():
            return "(string)"
        case [str(), *_]:
            return "(strings)"
        case [list(), *_]:
            return "(lists)"
        case list():
            return "(list)"
    return None


class CompletionRequest(ApiRequest):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"best_of": (1,)}

    prompt: Annotated[
        Annotated[Text, Tag("(string)")]
        | Annotated[TokenIds, Tag("(list)")]
        | Annotated[list[Text], Field(fail_fast=True, max_length=MAX_MESSAGES), Tag("(strings)")]
        | Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_MESSAGES), Tag("(lists)")],
        Discriminator(
            _prompt_form,
            custom_error_type="string_or_list",
            custom_error_message="Input should be a string, token ids, or a list of either",
        ),
    ]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    max_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _fields_agree(self) -> "CompletionRequest":
        if self.echo and self.logprobs is not None:
            raise unsupported("logprobs", "it is not supported together with echo")
        if self.suffix and self.max_tokens is None:
            raise unsupported(
                "max_tokens", "it is required with suffix, as the room between prompt and suffix"
            )
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt
