"""The fields that chat completions and raw completions share."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import Field, field_validator

from app.dialects.demands import DemandFields
from app.dialects.fields import MAX_PARTS, ONE, ONE_OR_SEVERAL, SEVERAL, Fields, Whole
from app.dialects.sampling_fields import MAX_STOPS, SamplingFields, Stop
from app.errors import BadRequest, short
from app.prompting.prompt import PromptBuilder
from app.prompting.vocabulary import Vocabulary
from engine.messages import MOST_STEPS, Prediction, Ready, Sampling

MAX_CHOICES = 128
MAX_LOGIT_BIAS = 1_024
MAX_DRAFTS_INTERVAL_MS = 60_000


class StreamOptions(Fields):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_drafts: bool | None = None
    drafts_every: Whole | None = Field(
        default=None, ge=1, le=MOST_STEPS, description="in denoising steps"
    )
    drafts_interval: float | None = Field(
        default=None, ge=0, le=MAX_DRAFTS_INTERVAL_MS, description="in milliseconds"
    )


Stops = Annotated[
    Annotated[Stop, ONE] | Annotated[list[Stop], Field(fail_fast=True), SEVERAL], ONE_OR_SEVERAL
]


class PredictedText(Fields):
    type: Literal["text"]
    text: str


class PredictedContent(Fields):
    """OpenAI's prediction: the text that the answer is expected to have."""

    type: Literal["content"]
    content: Annotated[
        Annotated[str, ONE]
        | Annotated[list[PredictedText], Field(fail_fast=True, max_length=MAX_PARTS), SEVERAL],
        ONE_OR_SEVERAL,
    ]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class DiffusionOptions(Fields):
    """Easel's own options. `record`: the answer says what is needed to make it again."""

    record: bool | None = None


class ApiRequest(DemandFields, SamplingFields):
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
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "provider",
            "reasoning_control",
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
        "include_stop_str_in_output": (False,),
        "length_penalty": (1.0,),
        "prompt_logprobs": (),
        "repeat_penalty": (1.0,),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True, False),
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
    prediction: PredictedContent | None = None
    diffusion: DiffusionOptions | None = None

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
        drafts = self._drafts
        return msgspec.structs.replace(
            super().sampling(seed, vocabulary),
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            drafts_every=0 if drafts is None else drafts.drafts_every or 1,
            drafts_interval_s=0.0 if drafts is None else (drafts.drafts_interval or 0.0) / 1000,
        )

    def predicted(
        self, prompts: PromptBuilder, limits: Ready, behind: int | None = None
    ) -> Prediction | None:
        """Returns the prediction in the worker's form, or None if nothing is predicted.

        `behind` is the token that ends the thought before the answer, if the model thinks. Raises
        BadRequest if the prediction is longer than the context.
        """
        if self.prediction is None:
            return None
        context = limits.context_length
        tokens = prompts.raw_tokens(self.prediction.text, context, "prediction")
        if len(tokens) > context:
            raise BadRequest(
                f"prediction: it has {len(tokens)} tokens; the context has {context}.",
                param="prediction",
            )
        return Prediction(tokens, behind) if tokens else None

    @property
    def recorded(self) -> bool:
        """Returns whether the answer shall have a record with which it can be made again."""
        return self.diffusion is not None and bool(self.diffusion.record)

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

    @property
    def _drafts(self) -> StreamOptions | None:
        """Returns the options of the drafts, or None if none are sent."""
        options = self.stream_options if self.stream else None
        return options if options is not None and options.include_drafts else None
