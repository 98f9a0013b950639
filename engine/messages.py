"""The boundary between the front end and the worker: every message, the codec, the rules.

Data only: numbers, strings and lists of them, packed with msgpack. No pickle, no tensor, no
callable. The rules that both sides keep:

- The worker sends any number of `Loading`, then one `Ready`; nothing is sent to it before `Ready`.
- After `Ready` each `GenerateRequest` gets any number of `Block`, their indices rising by one from
  its `delivered_blocks`, then exactly one `Done` or `Failed`, whatever happens.
- `Cancel` is a wish: the front end still waits for the terminal message. An unknown id is ignored.
- Nobody waits for the other side: no high-water mark; the front end's admission bound is the limit.
- Every worker life has its own socket address, so nothing meant for a dead worker reaches the next.
"""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled"]
FailureCode = Literal["generation_failed", "out_of_memory"]


class Sampling(msgspec.Struct, frozen=True):
    """How one answer is drawn.

    `seed` is in 0 .. 2**64 - 1; the same seed and prompt give the same tokens. `choice` (0 ..
    2**31 - 1) tells the answers to one prompt apart: each has other random numbers. `temperature`
    multiplies the checkpoint's temperature schedule, one below 0.001 as that; 0 draws nothing but
    the starting noise.

    `top_p` (above 0, at most 1) and `top_k` (0: all tokens) cut what accepted positions draw from,
    first to the k best tokens and those as likely as the last of them, then to the least number of
    best tokens that have p of the rest's probability. A block is not what was drawn but the argmax
    canvas, so they steer the way there; entropy, acceptance, argmax and self-conditioning see every
    token.

    `logit_bias` is added to the logits before the temperature, and OpenAI's penalties are
    subtracted, which count the tokens of this answer's blocks so far. Everything sees them but
    log-probabilities. End tokens cannot come before `min_tokens` others. With `ignore_eos` they
    neither end an answer nor cut it.

    `max_denoising_steps` (1 or more; the temperature falls over as many), `entropy_bound` and
    `confidence_threshold` (0 or more) replace the checkpoint's. With `top_logprobs` (0 or more) a
    block comes with its tokens' log-probabilities and as many best others.

    `suffix` is what the answer leads up to: its only block has `max_tokens` free positions with the
    suffix fixed behind them, and together they fit a canvas and, with the prompt, the context.
    Of waiting requests the lowest `priority` runs first, then the earliest.
    """

    seed: int
    temperature: float = 1.0
    choice: int = 0
    top_p: float = 1.0
    top_k: int = 0
    logit_bias: dict[int, float] = {}
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    max_denoising_steps: int | None = None
    entropy_bound: float | None = None
    confidence_threshold: float | None = None
    top_logprobs: int | None = None
    suffix: list[int] = []
    priority: int = 0


class Image(msgspec.Struct, frozen=True):
    """A picture in a prompt, in place of its `tokens` placeholders from position `start` on.

    `pixels` are height * width * 3 bytes: RGB, row by row, already of the size that the
    checkpoint's image processor wants.
    """

    start: int
    tokens: int
    height: int
    width: int
    pixels: bytes

    @property
    def end(self) -> int:
        """The position behind its last token."""
        return self.start + self.tokens


class GenerateRequest(msgspec.Struct, frozen=True, tag=True):
    """One answer to make.

    `prompt` holds at least one token id and at most `Ready.context_length - 1` of them;
    `max_tokens` is at least 1 and `len(prompt) + max_tokens` at most `Ready.context_length`.
    `images` stand in the order of their tokens in the prompt.

    `delivered` are the tokens of the answer that were given before, in so many blocks, by a worker
    that has died or to a request that had to give way: the answer goes on behind them, with the
    same noise that it would have had.
    """

    id: str
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    images: list[Image] = []
    delivered: list[int] = []
    delivered_blocks: int = 0


class TokenLogprobs(msgspec.Struct, frozen=True):
    """A token's log-probability, and the best tokens in its place with theirs, best first.

    By the logits, softcapped but without bias, penalties or temperature, of the step that made the
    block final.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]] = []


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """End this request by the next pass; its terminal message is `Done("cancelled")`."""

    id: str


class Loading(msgspec.Struct, frozen=True, tag=True):
    """The checkpoint is being read: bytes of weights done and in all."""

    loaded_bytes: int
    total_bytes: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded. Lengths are in tokens; a context is prompt and answer together.

    `profile` is the device profile that was taken and what it set, for people.
    """

    device: str
    dtype: str
    context_length: int
    canvas_length: int
    vocab_size: int
    profile: str


class Block(msgspec.Struct, frozen=True, tag=True):
    """A finished block: the argmax canvas, cut after the first end token and at `max_tokens`.

    `tokens` may end in an end token, which counts as a token of the answer but has no text.
    `denoising_steps` made it, in `duration_s` seconds since the block before it (or since the
    request first ran), prefill and commit included. `cached_tokens` of the prompt did not have to
    be encoded, the same number in each block of an answer. `speculations` passes bet on it, and
    the last of them won if `speculation_won`: then the next block has had its first step.
    `logprobs` are there, one a token, if they were asked for. A first block that began with an end
    token has been made again with other random numbers if it is `rerolled`, once; the steps of both
    count.
    """

    id: str
    index: int
    tokens: list[int]
    denoising_steps: int
    duration_s: float
    cached_tokens: int = 0
    speculations: int = 0
    speculation_won: bool = False
    logprobs: list[TokenLogprobs] | None = None
    rerolled: bool = False


class Done(msgspec.Struct, frozen=True, tag=True):
    """The request's end: an end token ("stop"), `max_tokens` ("length"), or a `Cancel`."""

    id: str
    finish_reason: FinishReason


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The request's end by a fault. `message` and `code` may be shown to the client."""

    id: str
    message: str
    code: FailureCode = "generation_failed"


class Stats(msgspec.Struct, frozen=True, tag=True):
    """Sent when a number changes: requests waiting for the GPU, those on it, kept prefixes."""

    waiting: int
    running: int
    kept_prefix_bytes: int = 0


ToWorker = GenerateRequest | Cancel
FromWorker = Loading | Ready | Block | Done | Failed | Stats

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """A message as one msgpack frame."""
    return _encoder.encode(message)


def decode_to_worker(frame: bytes) -> ToWorker:
    """The worker's side. Raises `msgspec.ValidationError` or `DecodeError` on any other bytes."""
    return _to_worker.decode(frame)


def decode_from_worker(frame: bytes) -> FromWorker:
    """The front end's side. Raises `msgspec.ValidationError` or `DecodeError` otherwise."""
    return _from_worker.decode(frame)
