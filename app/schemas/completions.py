"""`POST /v1/completions`: raw prompts, as text or as token ids."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from app.schemas.common import ONE, ONE_OR_SEVERAL, SEVERAL, ApiRequest


class CompletionRequest(ApiRequest):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "echo": (False,),
        "frequency_penalty": (0, 0.0),
        "logit_bias": ({},),
        "logprobs": (),
        "n": (1,),
        "presence_penalty": (0, 0.0),
        "suffix": ("",),
        "top_p": (1, 1.0),
    }

    prompt: Annotated[
        Annotated[str, Field(min_length=1), ONE]
        | Annotated[
            list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True), SEVERAL
        ],
        ONE_OR_SEVERAL,
    ]
    max_tokens: int | None = Field(default=None, ge=1)

    prompt_field: ClassVar[str] = "prompt"

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens
