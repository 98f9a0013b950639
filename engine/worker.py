"""The worker's loop: receive messages, decide on the next pass, run it and send the results.

`Worker` does single turns of the loop without a socket. Tests, benchmarks and the demo model's
evaluation use it to make whole answers in their own process. `serve` connects it to a socket. All
work on the device is done in one thread. A second thread makes the tables of constraints.
"""

import logging
from collections.abc import Iterator
from collections.abc import Sequence as Several
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic, perf_counter
from typing import NoReturn

import zmq

from engine.config import EngineConfig
from engine.constraint.automaton import Automaton
from engine.constraint.grammar import GrammarVocabulary
from engine.constraint.kept import Kept
from engine.constraint.projection import Projector
from engine.constraint.rules import GrammarRules
from engine.denoise.canvas import Rules
from engine.denoise.denoiser import Denoiser
from engine.denoise.sampler import UnsupportedSamplerError
from engine.device import (
    DeviceError,
    device_name,
    free_memory,
    gpu_memory,
    out_of_memory,
    used_memory,
)
from engine.fingerprint import fingerprint
from engine.loading import build_denoiser, with_profile
from engine.messages import (
    HEARTBEAT_S,
    Block,
    Cancel,
    Cancelled,
    Constraint,
    Draft,
    EndThought,
    Failed,
    FromWorker,
    GenerateRequest,
    Heartbeat,
    Ready,
    Stats,
    Texts,
    ToWorker,
    decode_to_worker,
    encode,
)
from engine.model.checkpoint import CheckpointError
from engine.model.diffusion_gemma import UnsupportedModelError
from engine.obstacles import choice_obstacle, constraint_obstacle, request_obstacle
from engine.schedule.pass_times import PassTimes
from engine.schedule.reading import CanvasResult, exact_form
from engine.schedule.scheduler import Scheduler
from engine.schedule.sequence import Pass, Sequence, StepResult, Work, WorkResult
from engine.sizing.plan import DoesNotFitError

logger = logging.getLogger(__name__)

# The errors because of which a model is not served. They are no faults of the engine.
REFUSALS = (
    CheckpointError,
    DeviceError,
    DoesNotFitError,
    UnsupportedModelError,
    UnsupportedSamplerError,
)

_NOT_FINITE = (
    "The model's outputs are not finite (NaN or infinite). Its weights may be damaged, or the "
    "dtype may not suit them."
)


class Worker:
    """The engine's state between two turns. Each request gets exactly one terminal message."""

    def __init__(self, denoiser: Denoiser, config: EngineConfig) -> None:
        self._denoiser = denoiser
        self._scheduler = Scheduler(
            prefill_chunk=config.prefill_chunk,
            max_active=config.max_active,
            speculate=config.speculate,
        )
        self._block_started: dict[str, float] = {}  # by request id, when running
        self._draft_sent: dict[str, float] = {}  # by request id, if it asks for drafts
        self._queued_at: dict[str, float] = {}  # by request id, until it first runs
        self._queue_s: dict[str, float] = {}  # by request id, until its first block is sent
        self._step_times_s: dict[str, list[float]] = {}  # by request id, of the current block
        self._gpu_bytes, self._gpu_at = (0, 0), -HEARTBEAT_S  # used and all, and when it was read
        self._last_stats = Stats(waiting=0, running=0)
        self._last_beat = Heartbeat([], 0, 0.0)
        self._beat_at = -HEARTBEAT_S
        self._accepted = 0
        self._times = PassTimes()
        self._constraints: Kept[Future[Rules | str]] = Kept()  # or why one cannot be held
        # Or why there is none.
        self._vocabulary: GrammarVocabulary | str = "the texts of the tokens are not known"
        self._tables = ThreadPoolExecutor(1, "constraints")
        # Requests whose constraint is not made yet, in the order in which they came.
        self._unready: list[tuple[GenerateRequest, Future[Rules | str]]] = []

    @property
    def idle(self) -> bool:
        return not self._unready and self._passes_are_empty

    @property
    def _passes_are_empty(self) -> bool:
        return self._scheduler.waiting + self._scheduler.running == 0

    @property
    def _unready_ids(self) -> list[str]:
        return [choice.id for request, _ in self._unready for choice in request.choices()]

    def handle(self, message: ToWorker) -> list[FromWorker]:
        """Handle one message. Returns the messages to send in reply."""
        match message:
            case GenerateRequest():
                self._accepted += 1 + len(message.siblings)
                rules = self._constraints.get(message.constraint)  # the front end counts it as used
                if rules is None:
                    return self._accept(message, None)
                self._unready.append((message, rules))
                return self.admit()
            case Texts(texts=texts, ends=ends):
                try:
                    self._vocabulary = GrammarVocabulary(texts, ends)
                except ValueError as error:
                    self._vocabulary = f"its vocabulary cannot be read: {error}"
                return []
            case Constraint():
                self._constraints.add(message.hash, self._tables.submit(self._rules, message))
                return []
            case EndThought(id=request_id):
                replies = self.admit(wait=request_id in self._unready_ids)
                sequence = self._scheduler.find(request_id)
                if sequence is not None:
                    sequence.end_thought()
                return replies
            case Cancel(id=request_id):
                replies = self.admit(wait=request_id in self._unready_ids)
                sequence = self._scheduler.find(request_id)
                if sequence is None:
                    return replies
                self._end(sequence)
                return [*replies, Cancelled(request_id)]

    def admit(self, *, wait: bool = False) -> list[FromWorker]:
        """Take in the requests whose constraints are made. Returns the messages to send in reply.

        The others stay for the next call, unless no other request would have a pass meanwhile, or
        with `wait`. Then they are waited for.
        """
        replies: list[FromWorker] = []
        wait = wait or self._passes_are_empty
        unready, self._unready = self._unready, []
        for request, rules in unready:
            if wait or rules.done():
                replies += self._accept(request, rules.result())
            else:
                self._unready.append((request, rules))
        return replies

    def step(self) -> list[FromWorker]:
        """Run one pass. Returns the messages that result from it. Does nothing when idle."""
        return [*self.admit(), *self.run(self.next_pass())]

    def next_pass(self) -> Pass:
        """Returns the next pass, whose sequences are on the device. It is empty when idle."""
        now = monotonic()
        while True:
            changes = self._scheduler.rearrange(now)
            for sequence in changes.parked:
                self._denoiser.park(sequence)
                sequence.park()
            for sequence in changes.started:
                sequence.reuse(self._denoiser.start(sequence))
                queued_at = self._queued_at.pop(sequence.request.id, None)
                if queued_at is not None:  # else it ran before, and was parked
                    self._queue_s[sequence.request.id] = monotonic() - queued_at
            # If one has started whose prompt was kept, the prompt's other choices can start too.
            if not any(sequence.prompt_encoded for sequence in changes.started):
                return self._scheduler.next_pass(now)

    def heartbeat(self, works: Pass) -> list[FromWorker]:
        """Returns the `Heartbeat` that announces the pass `works`, or none if none is due."""
        now = monotonic()
        beat = Heartbeat(
            [*(work.sequence.request.id for work in works), *self._unready_ids],
            self._accepted,
            self._times.longest_s(works) if works else 0.0,
        )
        last = self._last_beat
        unchanged = (beat.in_pass, beat.accepted) == (last.in_pass, last.accepted)
        if unchanged and beat.longest_pass_s is not None and now - self._beat_at < HEARTBEAT_S:
            return []
        self._last_beat, self._beat_at = beat, now
        return [beat]

    def run(self, works: Pass) -> list[FromWorker]:
        """Run a pass. Returns the messages that result from it. An empty pass has none."""
        if not works:
            return []
        started = perf_counter()
        for work in works:
            self._block_started.setdefault(work.sequence.request.id, started)
        messages = self._run(works)
        self._times.record(works, perf_counter() - started)
        return messages

    def stats(self) -> list[FromWorker]:
        """Returns one `Stats` message if a number has changed since the last call, or none."""
        if monotonic() - self._gpu_at >= HEARTBEAT_S:  # not for every pass: the driver is asked
            self._gpu_bytes, self._gpu_at = gpu_memory(self._denoiser.model.device), monotonic()
        gpu_used_bytes, gpu_bytes = self._gpu_bytes
        now = Stats(
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            kv_used_bytes=self._denoiser.kv_used_bytes,
            kv_budget_bytes=self._denoiser.kv_budget_bytes,
            kept_prefix_bytes=self._denoiser.kept_prefix_bytes,
            kept_prefix_budget_bytes=self._denoiser.kept_prefix_budget_bytes,
            gpu_used_bytes=gpu_used_bytes,
            gpu_bytes=gpu_bytes,
            captured_graphs=self._denoiser.captured_graphs,
        )
        if now == self._last_stats:
            return []
        self._last_stats = now
        return [now]

    def generate(self, request: GenerateRequest) -> Iterator[FromWorker]:
        """Yields the messages of a whole answer, made in this process, up to the terminal one."""
        yield from self.handle(request)
        while not self.idle:
            yield from self.step()

    def _run(self, works: Pass) -> list[FromWorker]:
        """Run one pass. Returns the messages that result from it.

        If the device runs out of memory, run the pass again without kept prefixes, and then each
        request's part alone. This is possible because a pass that runs out of memory changes
        nothing. A request that does not fit alone fails. If every request fits alone, fewer run
        together from then on.
        """
        started = perf_counter()
        try:
            steps = self._denoiser.run(works)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            logger.warning("out of memory in a pass for %d requests: %s", len(works), error)
        else:
            took_s = perf_counter() - started
            for work, step in zip(works, steps, strict=True):
                if step is not None:
                    self._step_times_s.setdefault(work.sequence.request.id, []).append(took_s)
            return [
                message
                for work, step in zip(works, steps, strict=True)
                for message in self._record(work, step)
            ]
        # Not in the handler, where the exception would keep the failed pass' tensors alive.
        if self._denoiser.forget_prefixes():
            logger.warning("all kept prefixes are given up and the pass runs again")
            return self._run(works)
        if len(works) > 1:
            messages = [message for work in works for message in self._run([work])]
            if not any(isinstance(message, Failed) for message in messages):
                most = len(works) // 2
                logger.warning("out of memory: from now on at most %d requests run together", most)
                self._scheduler.shrink(most)
            return messages
        (alone,) = works
        self._end(alone.sequence, keep=False)
        return [Failed(alone.sequence.request.id, "The device is out of memory.", "out_of_memory")]

    def _accept(self, request: GenerateRequest, kept: Rules | str | None) -> list[FromWorker]:
        rules = None if isinstance(kept, str) else kept
        obstacle = request_obstacle(request, self._denoiser)
        obstacle = obstacle or constraint_obstacle(request, kept, self._denoiser)
        if obstacle is not None:
            return [Failed(choice.id, obstacle) for choice in request.choices()]
        replies: list[FromWorker] = []
        boundaries, piece = None, self._denoiser.exact_piece
        if request.decision is not None and piece is not None:
            request, boundaries = exact_form(request, piece)
        sampler = self._denoiser.sampler
        first = Sequence.start(request, sampler.end_tokens, sampler.padding, boundaries)
        for choice in request.choices():
            obstacle = choice_obstacle(choice, rules, self._denoiser)
            if obstacle is None:
                sequence = first.sibling(choice)
                if rules is not None:
                    self._denoiser.constrain(sequence, rules)
                if choice.prediction is not None:
                    self._denoiser.predict(sequence, choice.prediction)
                self._scheduler.add(sequence, monotonic())
                self._queued_at[choice.id] = monotonic()
            else:
                replies.append(Failed(choice.id, obstacle))
        return replies

    def _rules(self, constraint: Constraint) -> Rules | str:
        """Returns the constraint in the form in which it is applied, or why it has none.

        It runs in a thread, because it takes long for a large automaton, and for the first one.
        """
        try:
            if not constraint.grammar:
                rules = Projector(Automaton.from_bytes(constraint.automaton))
                self._denoiser.prepare_corrections(rules)
                return rules
            if isinstance(self._vocabulary, str):
                return f"The constraint cannot be held: {self._vocabulary}"
            return GrammarRules(self._vocabulary, constraint.grammar, constraint.thought)
        except ValueError as error:
            return f"The constraint cannot be held: {error}"

    def _record(self, work: Work, step: WorkResult) -> Iterator[FromWorker]:
        """Record the result of a pass for one sequence. Yields the messages that result from it."""
        sequence, request_id = work.sequence, work.sequence.request.id
        if not all(each.finite for each in _steps(step)):
            self._end(sequence, keep=False)  # its cache may be why it failed
            yield Failed(request_id, _NOT_FINITE, "outputs_not_finite")
            return
        if isinstance(step, StepResult) and step.fault is not None:
            self._end(sequence)
            yield Failed(request_id, f"The constraint can be held no longer: {step.fault}")
            return
        index = sequence.block_index
        block = sequence.record(work, step)
        if block is None:
            yield from self._draft(sequence, step)
            return
        started, now = self._block_started[request_id], perf_counter()
        self._block_started[request_id] = now
        queue_s = self._queue_s.pop(request_id, None)
        step_times_s = self._step_times_s.pop(request_id, [])
        predicted_tokens = self._denoiser.predicted_tokens(sequence)
        if block.finish_reason is not None:
            self._end(sequence)
        yield Block(
            request_id,
            index,
            block.tokens,
            block.denoising_steps,
            duration_s=now - started,
            stopped=block.stopped,
            queue_s=queue_s,
            step_times_s=step_times_s,
            cached_tokens=sequence.reused or 0,
            speculations=block.speculations,
            speculation_won=isinstance(step, StepResult) and step.next_step is not None,
            logprobs=block.logprobs,
            rerolled=block.rerolled,
            corrections=block.corrections,
            predicted_tokens=predicted_tokens,
            thought_closed=block.thought_closed,
            finish_reason=block.finish_reason,
            entropy=step.entropy if isinstance(step, StepResult) and block.settled else None,
            settled=block.settled,
            reads=block.reads,
        )
        if isinstance(step, StepResult):
            yield from self._draft(sequence, step.next_step)

    def _draft(self, sequence: Sequence, step: WorkResult) -> Iterator[Draft]:
        """Yields the draft of the sequence's last step if the request asks for it and it is due."""
        if not isinstance(step, StepResult) or step.accepted is None:
            return
        sampling, request_id, now = sequence.request.sampling, sequence.request.id, perf_counter()
        last = self._draft_sent.get(request_id)
        early = last is not None and now - last < sampling.drafts_interval_s
        if early or sequence.step_index % sampling.drafts_every:
            return
        self._draft_sent[request_id] = now
        lead, (tokens, _) = sequence.lead, sequence.cut(step.draft)
        yield Draft(
            request_id,
            sequence.block_index,
            sequence.step_index,
            [*lead, *tokens],
            [True] * len(lead) + step.accepted[: len(tokens)],
            step.entropy,
        )

    def _end(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Remove a sequence that has ended. With `keep`, its cache is kept as a prefix."""
        self._scheduler.remove(sequence)
        self._denoiser.release(sequence, keep=keep)
        for times in (
            self._block_started,
            self._draft_sent,
            self._queued_at,
            self._queue_s,
            self._step_times_s,
        ):
            times.pop(sequence.request.id, None)


def serve(address: str, config: EngineConfig) -> NoReturn:
    """Connect to the front end at `address`, load the model, and work until the process ends.

    Raises one of REFUSALS if the model cannot be served.
    """
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.set_hwm(0)  # by default a sender blocks after 1,000 queued messages
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
            end_tokens=sorted(denoiser.sampler.end_tokens),
            read_tokens=denoiser.read_tokens,
            used_bytes=used_memory(denoiser.model.device),
            free_bytes=free_memory(denoiser.model.device),
            fingerprint=fingerprint(denoiser, config),
        )
    )
    while True:
        for message in _inbox(socket, wait=worker.idle):
            for answer in worker.handle(message):
                send(answer)
        for answer in worker.admit():
            send(answer)
        works = worker.next_pass()
        for beat in worker.heartbeat(works):
            send(beat)
        for answer in worker.run(works):
            send(answer)
        for answer in worker.stats():
            send(answer)


def _steps(result: WorkResult) -> Several[StepResult | CanvasResult]:
    """Returns the denoising steps that a pass made for one sequence."""
    match result:
        case None:
            return ()
        case StepResult():
            return (result,)
        case _:
            return result


def _inbox(socket: "zmq.Socket[bytes]", *, wait: bool) -> Iterator[ToWorker]:
    """Yields the messages that have arrived. With `wait`, wait HEARTBEAT_S for the first one."""
    if wait:
        socket.poll(int(1000 * HEARTBEAT_S))
    while socket.poll(0):
        yield decode_to_worker(socket.recv())
