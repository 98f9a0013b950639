"""The fields that say how an answer is drawn, which several dialects share."""

from typing import Annotated

from pydantic import Field

from app.dialects.fields import RequestFields, Whole, quoted
from app.errors import UNSUPPORTED, BadRequest
from app.prompting.vocabulary import Vocabulary
from engine.config import Quality
from engine.messages import MOST_NATS, MOST_STEPS, Sampling

MAX_STOPS = 64
MAX_STOP_TOKENS = 64
MAX_BAD_WORDS = 256
MAX_WORD = 128  # characters
MAX_STOP = 1_000  # characters

Stop = Annotated[str, Field(max_length=MAX_STOP)]


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
