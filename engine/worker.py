"""The loop: take what came, ask for the next pass, run it, send what came out.

`Worker` does one turn of it without a socket, which is how tests, benchmarks and the demo
model's evaluation run whole answers in their own process; `serve` puts it on the wire. One
thread: nothing else touches the device.
"""

import logging
from collections.abc import Iterator
from time import monotonic, perf_counter

import zmq

from engine.config import EngineConfig
from engine.denoise.denoiser import Denoiser
from engine.device import device_name, out_of_memory
from engine.loading import build_denoiser, with_profile
from engine.messages import (
    Block,
    Cancel,
    Done,
    Failed,
    FromWorker,
    GenerateRequest,
    Ready,
    Sampling,
    Stats,
    ToWorker,
    decode_to_worker,
    encode,
)
from engine.schedule.scheduler import Scheduler
from engine.schedule.sequence import Pass, Sequence, StepResult, Work

logger = logging.getLogger(__name__)

_MOST_STEPS = 1024  # a block's random numbers for all of its steps are made at once
_MOST_BIAS = 1e4  # nats: far from where float32 ends at the lowest temperature
_MOST_TEMPERATURE = 1e4  # at which what is banned is still impossible in float32


class Worker:
    """The engine's state between turns. Each request gets exactly one terminal message."""

    def __init__(self, denoiser: Denoiser, config: EngineConfig) -> None:
        self._denoiser = denoiser
        self._scheduler = Scheduler(
            prefill_chunk=config.prefill_chunk,
            max_active=config.max_active,
            speculate=config.speculate,
        )
        self._block_started: dict[str, float] = {}  # by request id, when running
        self._told = Stats(waiting=0, running=0)

    @property
    def idle(self) -> bool:
        return self._scheduler.waiting + self._scheduler.running == 0

    def handle(self, message: ToWorker) -> list[FromWorker]:
        """Take one message; gives what has to be sent because of it."""
        match message:
            case GenerateRequest():
                return self._accept(message)
            case Cancel(id=request_id):
                sequence = self._scheduler.find(request_id)
                return (
                    [] if sequence is None else [self._end(sequence, Done(request_id, "cancelled"))]
                )

    def step(self) -> list[FromWorker]:
        """Run one pass; gives what came out. Does nothing when idle."""
        now = monotonic()
        changes = self._scheduler.rearrange(now)
        for sequence in changes.parked:
            self._denoiser.park(sequence)
            sequence.park()
        for sequence in changes.started:
            sequence.reuse(self._denoiser.start(sequence))
        works = self._scheduler.next_pass(now)
        if not works:
            return []
        for work in works:
            self._block_started.setdefault(work.sequence.request.id, perf_counter())
        return self._run(works)

    def stats(self) -> list[FromWorker]:
        """A `Stats` if the numbers changed since the last one."""
        now = Stats(
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            kept_prefix_bytes=self._denoiser.kept_prefix_bytes,
        )
        if now == self._told:
            return []
        self._told = now
        return [now]

    def generate(self, request: GenerateRequest) -> Iterator[FromWorker]:
        """One whole answer in this process, message by message, until its terminal one."""
        yield from self.handle(request)
        while not self.idle:
            yield from self.step()

    def _run(self, works: Pass) -> list[FromWorker]:
        """One pass; where memory runs out, without kept prefixes, then for each request alone.

        A pass that ran out of memory has changed nothing. Who does not fit alone fails; if each
        does, fewer run together from then on.
        """
        try:
            steps = self._denoiser.run(works)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            logger.warning("out of memory in a pass for %d requests: %s", len(works), error)
        else:
            return [
                message
                for work, step in zip(works, steps, strict=True)
                for message in self._record(work, step)
            ]
        # Outside of the handler: the exception would keep the failed pass' tensors alive.
        if self._denoiser.forget_prefixes():
            logger.warning("kept prefixes are given up, the pass runs again")
            return self._run(works)
        if len(works) > 1:
            messages = [message for work in works for message in self._run([work])]
            if not any(isinstance(message, Failed) for message in messages):
                most = len(works) // 2
                logger.warning("out of memory: from now on at most %d requests run together", most)
                self._scheduler.shrink(most)
            return messages
        failed = Failed(
            works[0].sequence.request.id, "The device is out of memory.", "out_of_memory"
        )
        return [self._end(works[0].sequence, failed)]

    def _accept(self, request: GenerateRequest) -> list[FromWorker]:
        room = self._denoiser.context_length - len(request.prompt)
        # The front end checks this first and says it better; this is the safety net: on a GPU a
        # token that is none would end the process.
        if not request.prompt or not 1 <= request.max_tokens <= room:
            return [Failed(request.id, "The prompt and max_tokens do not fit the context.")]
        tokens = [*request.prompt, *request.delivered]
        if not 0 <= min(tokens) <= max(tokens) < self._denoiser.vocab_size:
            return [Failed(request.id, "The prompt has token ids that the model does not have.")]
        if len(request.delivered) >= request.max_tokens:
            return [Failed(request.id, "All of the answer was delivered before.")]
        if not self._takes_images(request):
            return [Failed(request.id, "The model can't take the prompt's images.")]
        obstacle = self._sampling_obstacle(request)
        if obstacle is not None:
            return [Failed(request.id, obstacle)]
        sequence = Sequence.start(request, self._denoiser.sampler.end_tokens)
        self._scheduler.add(sequence, monotonic())
        return []

    def _sampling_obstacle(self, request: GenerateRequest) -> str | None:
        """Why the request's sampling can't be done, if it can't; checked first in front too."""
        wanted, vocab_size = request.sampling, self._denoiser.vocab_size
        if wanted.suffix:
            length = request.max_tokens + len(wanted.suffix)
            room = self._denoiser.context_length - len(request.prompt)
            if length > min(self._denoiser.model.dimensions.canvas_length, room):
                return "suffix and max_tokens do not fit one canvas behind the prompt."
        if any(not 0 <= token < vocab_size for token in (*wanted.suffix, *wanted.logit_bias)):
            return "suffix or logit_bias has token ids that the model does not have."
        wrong = _out_of_range(wanted)
        return f"{wrong[0]} is out of range." if wrong else None

    def _takes_images(self, request: GenerateRequest) -> bool:
        """Whether there is a vision tower for them, and each stands whole behind the one before."""
        vision, end = self._denoiser.vision, 0
        for image in request.images:
            if vision is None or not vision.fits(image) or image.start < end:
                return False
            end = image.end
        return end <= len(request.prompt)

    def _record(self, work: Work, step: StepResult | None) -> Iterator[FromWorker]:
        """Take note of what a pass did for one sequence."""
        sequence, request_id = work.sequence, work.sequence.request.id
        index = sequence.block_index
        block = sequence.record(work, step, self._denoiser.sampler.end_tokens)
        if block is None:
            return
        started, now = self._block_started[request_id], perf_counter()
        self._block_started[request_id] = now
        yield Block(
            request_id,
            index,
            block.tokens,
            block.denoising_steps,
            duration_s=now - started,
            cached_tokens=sequence.reused or 0,
            speculations=block.speculations,
            speculation_won=step is not None and step.next_started,
            logprobs=block.logprobs,
            rerolled=block.rerolled,
        )
        if block.finish_reason is not None:
            yield self._end(sequence, Done(request_id, block.finish_reason))

    def _end(self, sequence: Sequence, last: Done | Failed) -> Done | Failed:
        self._scheduler.remove(sequence)
        self._denoiser.release(sequence)
        self._block_started.pop(last.id, None)
        return last


def serve(address: str, config: EngineConfig) -> None:
    """Connect to the front end at `address`, load the model, then work until the process ends."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.set_hwm(0)  # by default a sender blocks at 1,000 messages
    socket.connect(address)

    def send(message: FromWorker) -> None:
        socket.send(encode(message))

    config, profile = with_profile(config)
    denoiser = build_denoiser(config, send)
    worker = Worker(denoiser, config)
    send(
        Ready(
            device=device_name(denoiser.model.device),
            dtype=str(denoiser.model.dtype).removeprefix("torch."),
            context_length=denoiser.context_length,
            canvas_length=denoiser.model.dimensions.canvas_length,
            vocab_size=denoiser.model.dimensions.vocab_size,
            profile=profile,
        )
    )
    while True:
        for message in _inbox(socket, wait=worker.idle):
            for answer in worker.handle(message):
                send(answer)
        for answer in worker.step():
            send(answer)
        for answer in worker.stats():
            send(answer)


def _out_of_range(sampling: Sampling) -> list[str]:
    """The names of numbers that nothing can be computed with; a NaN is in no range."""
    biases, steps = sampling.logit_bias.values(), sampling.max_denoising_steps
    fine = {
        "seed": 0 <= sampling.seed < 2**64,
        "choice": 0 <= sampling.choice < 2**31,
        "temperature": 0 <= sampling.temperature <= _MOST_TEMPERATURE,
        "top_p": 0 < sampling.top_p <= 1,
        "top_k": sampling.top_k >= 0,
        "logit_bias": all(abs(bias) <= _MOST_BIAS for bias in biases),
        "presence_penalty": abs(sampling.presence_penalty) <= _MOST_BIAS,
        "frequency_penalty": abs(sampling.frequency_penalty) <= _MOST_BIAS,
        "max_denoising_steps": steps is None or 1 <= steps <= _MOST_STEPS,
        "top_logprobs": sampling.top_logprobs is None or sampling.top_logprobs >= 0,
    }
    return [name for name, is_fine in fine.items() if not is_fine]


def _inbox(socket: "zmq.Socket[bytes]", *, wait: bool) -> Iterator[ToWorker]:
    """What has come; if there is nothing to run, wait until something has."""
    if wait:
        yield decode_to_worker(socket.recv())
    while socket.poll(0):
        yield decode_to_worker(socket.recv())
