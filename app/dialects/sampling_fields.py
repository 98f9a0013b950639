"""The fields that say how an answer is drawn, which several dialects share."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from pydantic import Field, field_validator

from app.dialects.demands import DemandFields
from app.dialects.fields import (
    MAX_PARTS,
    ONE,
    ONE_OR_SEVERAL,
    SEVERAL,
    Fields,
    RequestFields,
    Whole,
    quoted,
)
from app.errors import UNSUPPORTED, BadRequest, short
from app.prompting.prompt import PromptBuilder
from app.prompting.vocabulary import Vocabulary
from engine.config import Quality
from engine.messages import MOST_NATS, MOST_STEPS, Prediction, Ready, Sampling

MAX_STOPS = 64
MAX_CHOICES = 128
MAX_STOP_TOKENS = 64
MAX_BAD_WORDS = 256
MAX_WORD = 128  # characters
MAX_STOP = 1_000  # characters
MAX_LOGIT_BIAS = 1_024
MAX_DRAFTS_INTERVAL_MS = 60_000


class ScheduledFields(RequestFields):
    """Fields that say when an answer is made, in every dialect."""

    priority: Whole | None = Field(default=None, ge=-(2**31), lt=2**31)
    timeout: float | None = Field(default=None, gt=0, le=86400, description="in seconds")


class SamplingFields(ScheduledFields):
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
    max_denoising_steps: Whole | None = Field(default=None, ge=1, le=MOST_STEPS)
    entropy_bound: float | None = Field(default=None, ge=0, le=MOST_NATS)
    confidence_threshold: float | None = Field(default=None, ge=0, le=MOST_NATS)
    quality: Quality | None = Field(
        default=None, description="when a block is final; confidence_threshold overrides it"
    )

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
            quality=self.quality,
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
    include_drafts: bool | None = None
    drafts_every: Whole | None = Field(
        default=None, ge=1, le=MOST_STEPS, description="in denoising steps"
    )
    drafts_interval: float | None = Field(
        default=None, ge=0, le=MAX_DRAFTS_INTERVAL_MS, description="in milliseconds"
    )


Stop = Annotated[str, Field(max_length=MAX_STOP)]
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
