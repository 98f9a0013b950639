"""The protocol between the front end and the worker: the messages, their rules and the codec.

Messages hold data only: numbers, strings, bytes, and lists and maps of these, packed with msgpack.
They hold no pickle, no tensor and no callable. Both sides keep these rules:

- The worker sends any number of `Loading`, then one `Ready`. The front end sends nothing before it
  has received `Ready`.
- After `Ready` the worker answers each `GenerateRequest` with any number of `Block` and exactly one
  terminal message, whatever happens: the last `Block`, which has a `finish_reason`, or `Cancelled`
  or `Failed`. The indices of the blocks rise by one, starting at the request's `delivered_blocks`.
- If the request asks for drafts, any number of `Draft` come before the block that they became. A
  draft may be lost without harm: it says nothing that the next draft or the block does not say.
- An answer's last tokens and the reason for its end are one message, so that a worker that dies
  cannot have sent one without the other.
- Before a pass, and while it waits for messages, the worker's loop sends a `Heartbeat` at least
  every `HEARTBEAT_S`, so that the front end can tell a worker that hangs from one that works.
- `Cancel` is a request: the front end still waits for the terminal message. A `Cancel` or an
  `EndThought` with an unknown id is ignored.
- Sending never blocks: there is no high-water mark. Only the front end's admission limits how many
  messages are queued.
- Each worker process gets a new socket address, so no message for a dead worker reaches the next.
- A `Constraint` comes before the first `GenerateRequest` that names it. The worker keeps the
  MOST_CONSTRAINTS that were named or sent last. The front end keeps the same account, and sends a
  constraint again before a request names it that the worker no longer has. `Texts` come once,
  right after `Ready`, so that preparing them delays no answer.
"""

from collections.abc import Set
from typing import Literal

import msgspec

from engine.config import Quality

FinishReason = Literal["stop", "length"]
# Why a block is final: which stopping rule held, that it has had all of its steps, or that it is
# nothing but the closing mark of a thought.
StopReason = Literal["confident", "stable", "certain", "limit", "closed"]
FailureCode = Literal["generation_failed", "out_of_memory", "outputs_not_finite", "worker_died"]
ClosedBy = Literal["budget", "form", "client"]

HEARTBEAT_S = 1.0  # between two heartbeats, unless a pass takes longer

# The front end refuses numbers beyond these bounds, and the worker checks them again.
MOST_STEPS = 1024  # limits memory: a block's random numbers for all steps are made at once
MOST_CONSTRAINTS = 32  # kept by the worker: each is a megabyte for 262,144 tokens, and its table
MOST_SAMPLES = 64  # noises that a decision averages over
MOST_CANVAS_STEPS = 4096  # denoising steps of all canvases of a decision
MOST_NATS = 1e6  # more than all positions of a canvas have together, and far below float32's limit


class Sampling(msgspec.Struct, frozen=True):
    """The sampling options of one answer.

    `seed` (0 .. 2**64 - 1): the same seed and prompt give the same tokens.

    `choice` (0 .. 2**31 - 1) numbers the answers to one prompt. Each choice has its own random
    numbers.

    `temperature` (0 or more) multiplies the checkpoint's temperature schedule. A value between 0
    and 0.001 counts as 0.001. At 0 only the starting noise is random.

    `top_k` (0: all tokens) and `top_p` (above 0, at most 1) limit the tokens that an accepted
    position draws from. `top_k` keeps the k most likely tokens and all that are as likely as the
    last of them. Of these, `top_p` keeps the fewest most likely tokens that together have the share
    p of their probability. Of these, `min_p` (0 to 1; 0: all) keeps the tokens that are at least
    `min_p` times as likely as the most likely one. The final block is the argmax canvas and not the
    drawn tokens, so these options only influence how the canvas develops. Entropy, acceptance,
    argmax and self-conditioning are computed over all tokens.

    `logit_bias` maps token ids to numbers that are added to the logits before the temperature is
    applied. OpenAI's `presence_penalty` and `frequency_penalty` are subtracted from the logits.
    They count the tokens in this answer's finished blocks. Before all of that, the logits of the
    tokens in the prompt and in these blocks are divided by `repetition_penalty` (above 0) if they
    are positive, and multiplied by it if they are negative. `banned_tokens` are impossible. Bias,
    penalties and bans affect everything except log-probabilities.

    `end_tokens` are the chat format's end tokens, which the checkpoint's `generation_config.json`
    may lack. `stop_token_ids` are the request's own. All of them end the answer, like the
    checkpoint's.

    `min_tokens`: no token that ends the answer, and no padding, can come before so many other
    tokens. With `ignore_eos`, neither end tokens nor padding end or cut the answer: only
    `stop_token_ids` do.

    `max_denoising_steps` (1 to MOST_STEPS, also the number of steps over which the temperature
    falls), `entropy_bound` and `confidence_threshold` (0 to MOST_NATS) replace the checkpoint's
    values.

    `quality` is the stopping rule of the blocks. None means the worker's own. A
    `confidence_threshold` is a number of the rule "exact", which then holds in any case.

    `top_logprobs` (0 or more): each block comes with its tokens' log-probabilities and, at each
    position, those of so many most likely tokens.

    `drafts_every` (0 to MOST_STEPS): a `Draft` is sent after each so many denoising steps of a
    block, but not before `drafts_interval_s` (seconds, 0 or more) have passed since the answer's
    last one. At 0 there are no drafts.

    `suffix` holds the tokens that must follow the answer. The answer then has a single block, of
    `max_tokens` free positions with the suffix fixed behind them. Together they must fit a canvas
    and, with the prompt, the context.

    `priority`: of the waiting requests, the one with the lowest number runs first. Among equals the
    earliest runs first.
    """

    seed: int
    temperature: float = 1.0
    choice: int = 0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    logit_bias: dict[int, float] = {}
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    banned_tokens: list[int] = []
    end_tokens: list[int] = []
    stop_token_ids: list[int] = []
    min_tokens: int = 0
    ignore_eos: bool = False
    max_denoising_steps: int | None = None
    entropy_bound: float | None = None
    confidence_threshold: float | None = None
    quality: Quality | None = None
    top_logprobs: int | None = None
    drafts_every: int = 0
    drafts_interval_s: float = 0.0
    suffix: list[int] = []
    priority: int = 0

    def ends(self, checkpoint: Set[int]) -> frozenset[int]:
        """Returns the tokens that end this answer, given the checkpoint's end tokens."""
        ends = set[int]() if self.ignore_eos else {*checkpoint, *self.end_tokens}
        return frozenset(ends.union(self.stop_token_ids))


class Prediction(msgspec.Struct, frozen=True):
    """The tokens that an answer is expected to have. At least one, and no more than a context.

    If `behind` is set, something else comes first, such as a thought, which ends with this token.
    """

    tokens: list[int]
    behind: int | None = None


class Image(msgspec.Struct, frozen=True):
    """A picture in a prompt. It replaces `tokens` placeholder tokens from position `start` on.

    `pixels` are height * width * 3 bytes: RGB, row by row, already in the size that the
    checkpoint's image processor produces.
    """

    start: int
    tokens: int
    height: int
    width: int
    pixels: bytes

    @property
    def end(self) -> int:
        """Returns the position behind the image's last token."""
        return self.start + self.tokens


class Sibling(msgspec.Struct, frozen=True):
    """Another answer to the prompt of a `GenerateRequest`. The fields have the same meaning."""

    id: str
    choice: int
    delivered: list[int] = []
    delivered_blocks: int = 0


class LabelSlot(msgspec.Struct, frozen=True):
    """A position of a canvas at which a label is read, and the tokens that are its labels."""

    position: int
    labels: list[int]


class Read(msgspec.Struct, frozen=True):
    """The contents of one canvas of a decision.

    `prompt` holds the tokens between the request's prompt, which all reads share, and the canvas:
    at least one, and at most `Ready.read_tokens`. `canvas` holds the canvas' first tokens, behind
    which padding follows. The tokens at `slots` mean nothing: noise takes their place. All others
    are pinned.
    """

    prompt: list[int]
    canvas: list[int]
    slots: list[LabelSlot]


class Decision(msgspec.Struct, frozen=True):
    """The reads that are made instead of an answer: how likely each label is at each slot.

    Each read is made with `samples` different noises (1 to MOST_SAMPLES). Each of these canvases
    has so many denoising `steps` (1 to MOST_STEPS), of which the last one is read. All canvases
    together have at most MOST_CANVAS_STEPS.
    """

    reads: list[Read]
    samples: int = 1
    steps: int = 1

    @property
    def canvas_steps(self) -> int:
        """Returns how many denoising steps all canvases have together."""
        return len(self.reads) * self.samples * self.steps


class SlotResult(msgspec.Struct, frozen=True):
    """The result of a read at a slot.

    `probabilities` has one entry per label, and their sum is 1. `label_mass` is the share that all
    labels together have of the probability of the whole vocabulary. Both are at temperature 1.
    `argmax_is_label`: no other token is likelier than the likeliest label.
    """

    probabilities: list[float]
    label_mass: float
    argmax_is_label: bool


class Thought(msgspec.Struct, frozen=True):
    """The marks of thoughts in an answer, and how many tokens these may have.

    The token `open` opens a thought, and `close` closes it. The tokens `header` follow `open`. An
    answer that begins with them begins with a thought that lacks its opening mark. `begun`: the
    prompt ends in a thought.

    `budget` (0 or more) is the most tokens of all thoughts together, with their marks and headers.
    None is no limit. `reserve`: so many of `max_tokens` are kept for what follows the thoughts,
    because the shortest answer that a constraint allows has so many. When a thought has no tokens
    left, its block ends there, with `close` as its last token, and no further thought begins.
    """

    open: int
    close: int
    header: list[int] = []
    begun: bool = False
    budget: int | None = None
    reserve: int = 0


class GenerateRequest(msgspec.Struct, frozen=True, tag=True):
    """A request for one answer, or for several answers to one prompt.

    `prompt` holds at least one token id and at most `Ready.context_length - 1` of them.
    `max_tokens` is at least 1, and `len(prompt) + max_tokens` is at most `Ready.context_length`.
    `images` are in the order of their tokens in the prompt, and do not overlap.

    `delivered` and `delivered_blocks` continue an answer that was interrupted, for example because
    its worker died. They are the tokens that were already sent, fewer than `max_tokens`, and the
    number of their blocks. The answer continues behind them with the same noise as if it had never
    been interrupted.

    `siblings` are further answers, which differ only in their choice and in what was delivered. So
    a prompt and its images are sent, kept and encoded once. Each answer has its own messages.
    `salt`: a prefix is found only by requests with the salt of the request that left it.

    `constraint` is the hash of the answers' constraint, or empty. `lead` holds tokens that every
    answer begins with, fewer than `max_tokens`. They are encoded with the prompt, come with the
    answer's first block, and count as its tokens. The constraint reads them too. `thought` is None
    if the answer's format has no thoughts.

    With a `prediction`, a block's canvas starts from the predicted tokens that follow the answer so
    far, and from noise only where there are none.

    With a `decision`, nothing is generated: labels are read, and the only `Block` has them in
    `reads`. `max_tokens` is then the length of the longest read's prompt, and of `sampling` only
    the seed and the priority count.
    """

    id: str
    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    images: list[Image] = []
    delivered: list[int] = []
    delivered_blocks: int = 0
    siblings: list[Sibling] = []
    salt: str = ""
    constraint: str = ""
    lead: list[int] = []
    thought: Thought | None = None
    decision: Decision | None = None
    prediction: Prediction | None = None

    def choices(self) -> list["GenerateRequest"]:
        """Returns a request for each answer. They share the prompt and its images."""
        first = msgspec.structs.replace(self, siblings=[])
        return [first] + [
            msgspec.structs.replace(
                first,
                id=each.id,
                sampling=msgspec.structs.replace(self.sampling, choice=each.choice),
                delivered=each.delivered,
                delivered_blocks=each.delivered_blocks,
            )
            for each in self.siblings
        ]


class Texts(msgspec.Struct, frozen=True, tag=True):
    """The bytes of each token, none for those that no text has. Grammars need them.

    Any of the tokens `ends`, of which there is at least one, ends an answer by a grammar.
    """

    texts: list[bytes]
    ends: list[int]


class Constraint(msgspec.Struct, frozen=True, tag=True):
    """A constraint on answers, which requests name by its hash.

    It is the bytes of an `Automaton`, or a `grammar` in llguidance's form, which needs the `Texts`.
    `thought` are the control tokens of a thought before the text of the grammar: the one that
    closes it if the prompt ends in a thought, or the two that open and close it if the answer may
    begin with one. An automaton has all of this itself.
    """

    hash: str
    automaton: bytes = b""
    grammar: str = ""
    thought: list[int] = []


class TokenLogprobs(msgspec.Struct, frozen=True):
    """A token's log-probability, and in `top` the most likely tokens at its position, best first.

    They are computed from the logits of the step that made the block final, softcapped but without
    bias, penalties or temperature.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]] = []


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """The message that ends a request before the next pass.

    The request's terminal message is then `Cancelled`, unless it has already ended.
    """

    id: str


class EndThought(msgspec.Struct, frozen=True, tag=True):
    """The message that leaves no tokens to a request's thought, whether it is open or yet to begin.

    The canvas in the making is given up if it continues a thought. It has no reply.
    """

    id: str


class Loading(msgspec.Struct, frozen=True, tag=True):
    """The progress of loading the checkpoint: the bytes of weights read so far, and in total."""

    loaded_bytes: int
    total_bytes: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The limits of a worker that has loaded its model.

    Lengths are in tokens. A context is prompt and answer together. `read_tokens` is the most tokens
    of a read's own prompt. `device` is the device's name, and `profile` describes the device
    profile and the options that it set. `used_bytes` and `free_bytes` are of the device's memory,
    once the model is loaded. All of these are for people. `end_tokens` are those with which the
    checkpoint ends any answer. Workers with the same `fingerprint` give the same answers.
    """

    device: str
    dtype: str
    context_length: int
    canvas_length: int
    vocab_size: int
    profile: str
    end_tokens: list[int] = []
    read_tokens: int = 1
    fingerprint: str = ""
    used_bytes: int = 0
    free_bytes: int = 0


class Draft(msgspec.Struct, frozen=True, tag=True):
    """A block in the making, after `step` denoising steps.

    `tokens` are those of the argmax canvas, cut as a finished block is. `accepted` says for each of
    them whether the sampler accepted its position in this step. The others are renoised. `entropy`
    is the mean over the canvas, in nats a position.
    """

    id: str
    index: int
    step: int
    tokens: list[int]
    accepted: list[bool]
    entropy: float


class Block(msgspec.Struct, frozen=True, tag=True):
    """A finished block: the argmax canvas, cut after the first end token and at `max_tokens`.

    `tokens` may end with an end token, which counts as a token of the answer but has no text.
    Padding up to the canvas' end ends the answer too, and is cut off. If there is nothing else,
    `tokens` is empty.

    `denoising_steps` is the number of steps that made the block, and `stopped` says why it had no
    more. `stopped` is None for a decision. `duration_s` is the time in
    seconds since the previous block, or since the request first ran. It includes prefill and
    commit.

    `queue_s` is the time in seconds for which the answer waited before it first ran. The first
    block that a worker process sends of an answer has it. `step_times_s` are the times in seconds
    of the passes that made the block's denoising steps. Other requests may take part in them.

    `cached_tokens` is the number of prompt tokens that did not have to be encoded, because the keys
    and values of an earlier request were reused. It is the same in each block of an answer.

    `speculations` is the number of passes that speculated on this block. If `speculation_won`, the
    last of these was right, so the next block has already had its first step.

    `logprobs` has one entry per token, if the request asked for them.

    `rerolled`: the block ended the answer before the answer had anything but thoughts, and was made
    once more with other random numbers. `denoising_steps` then counts the steps of both attempts.

    `corrections` is the number of steps after which the request's constraint changed the canvas.

    `predicted_tokens` is the number of tokens of the request's prediction that the answer has so
    far, this block included.

    `thought_closed` is set if the block ends with a thought that had no tokens left. It says what
    left none: the request's budget, the form that it demands, or its client.

    `finish_reason` marks the answer's last block. It is "stop" if an end token or padding ended the
    answer, and "length" if `max_tokens` did.

    `entropy` and `settled` come only if the request asks for drafts. `entropy` is the mean over the
    canvas after the last step, in nats a position. `settled` has a number for each denoising step:
    how many of the tokens had become what they are by then.

    `reads` is what a decision's canvases read: for each read, its samples one after another, and
    for each of these canvases its slots. `tokens` is then empty, and `denoising_steps` counts the
    steps of all canvases.
    """

    id: str
    index: int
    tokens: list[int]
    denoising_steps: int
    duration_s: float
    stopped: StopReason | None = None
    queue_s: float | None = None
    step_times_s: list[float] = []
    cached_tokens: int = 0
    speculations: int = 0
    speculation_won: bool = False
    logprobs: list[TokenLogprobs] | None = None
    rerolled: bool = False
    corrections: int = 0
    predicted_tokens: int = 0
    thought_closed: ClosedBy | None = None
    finish_reason: FinishReason | None = None
    entropy: float | None = None
    settled: list[int] | None = None
    reads: list[list[SlotResult]] | None = None


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """The end of a request after a `Cancel`."""

    id: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The end of a request by an error. `message` and `code` may be shown to the client."""

    id: str
    message: str
    code: FailureCode = "generation_failed"


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """A sign of life of the worker's loop, which now begins a pass or waits for messages.

    `in_pass` has the ids of the pass' requests, and of those whose constraint is being made
    meanwhile. `accepted` is the number of answers that this worker process was asked for and has
    taken in or refused. If the worker dies, only the requests in `in_pass` and those that it had
    not yet taken in can be the cause.

    `longest_pass_s` is the longest time in seconds that a pass of this size has taken so far. It is
    None if there was no such pass, and 0 if the worker waits.

    The worker sends it before a pass if `in_pass` or `accepted` has changed, if the pass is the
    first of its size, or if the last one was sent HEARTBEAT_S ago.
    """

    in_pass: list[str]
    accepted: int
    longest_pass_s: float | None = None


class Stats(msgspec.Struct, frozen=True, tag=True):
    """The number of waiting and running requests, and what the worker's memory is used for.

    Of `kv_budget_bytes`, which the KV caches take, running requests fill `kv_used_bytes`. All kept
    prefixes take `kept_prefix_bytes` and may take `kept_prefix_budget_bytes`. Of the GPU's
    `gpu_bytes`, `gpu_used_bytes` are in use by all programs. Both are 0 on a CPU.

    `captured_graphs` is the number of CUDA graphs that have been made since the worker's start. The
    worker sends this message when a number has changed.
    """

    waiting: int
    running: int
    kv_used_bytes: int = 0
    kv_budget_bytes: int = 0
    kept_prefix_bytes: int = 0
    kept_prefix_budget_bytes: int = 0
    gpu_used_bytes: int = 0
    gpu_bytes: int = 0
    captured_graphs: int = 0


ToWorker = Texts | Constraint | GenerateRequest | EndThought | Cancel
FromWorker = Loading | Ready | Draft | Block | Cancelled | Failed | Heartbeat | Stats

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    """Returns the message as one msgpack frame."""
    return _encoder.encode(message)


def decode_to_worker(frame: bytes) -> ToWorker:
    """Returns the message in a frame that the worker received.

    Raises `msgspec.ValidationError` or `msgspec.DecodeError` if it is not such a message.
    """
    return _to_worker.decode(frame)


def decode_from_worker(frame: bytes) -> FromWorker:
    """Returns the message in a frame that the front end received.

    Raises `msgspec.ValidationError` or `msgspec.DecodeError` if it is not such a message.
    """
    return _from_worker.decode(frame)
