"""What a demanded form does to answers: how many are right, and the denoising steps that it costs.

The demo model answers the held-out prompts of its task of writing JSON. It answers each of them
without a demand, by the schema of the object that the prompt describes, and by that schema with the
keys in the opposite order, which the model has never learned. An answer is right if it is an object
equal to the expected one.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jsonschema_rs import is_valid
from transformers import AutoTokenizer

from app.chat_format.gemma import ANSWER_ENDS
from app.constraint.compiling import compiled
from app.constraint.kinds import Constraint, JsonSchema, Thought
from app.constraint.tokens import token_trie
from app.prompting.vocabulary import Vocabulary
from bench.compare import Row, Show, silent
from demo.evaluate import without_thought
from demo.tasks import held_out
from demo.tokenizer import encode_example
from engine import messages
from engine.config import DEMO_MODEL_PATH, EngineConfig
from engine.loading import build_denoiser
from engine.messages import Block, Failed, GenerateRequest, Sampling
from engine.worker import Worker

COLUMNS = ["prompts", "valid", "right", "unchanged", "steps_a_block", "corrections"]
CASES = ("no demand", "by a schema", "by a schema, keys in the opposite order")
TASK = "json"
_ROOM = 64  # tokens beyond twice the expected answer


@dataclass
class _Tally:
    """The answers of one case so far."""

    prompts: int = 0
    valid: int = 0
    right: int = 0
    unchanged: int = 0  # as without a demand, token by token
    blocks: int = 0
    steps: int = 0
    corrections: int = 0
    answers: list[list[int]] = field(default_factory=list)


def rows(prompts: int, show: Show = silent) -> Iterator[Row]:
    """Yield one row for each case, from the answers to `prompts` prompts."""
    show("loading the demo model")
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL_PATH, trust_remote_code=False)
    config = EngineConfig(device="cpu", dtype="float32", threads=1)
    denoiser = build_denoiser(config)
    worker = Worker(denoiser, config)
    vocabulary = Vocabulary(DEMO_MODEL_PATH / "tokenizer.json")
    trie = token_trie(vocabulary, denoiser.vocab_size)
    ends = sorted({*denoiser.sampler.end_tokens, *vocabulary.control_ids(ANSWER_ENDS)})
    tallies = {case: _Tally() for case in CASES}
    for index, example in enumerate(held_out(TASK, prompts)):
        show(f"prompt {index + 1} of {prompts}")
        prompt, expected = encode_example(tokenizer, example)
        wanted = json.loads(without_thought(str(tokenizer.decode(expected[:-1]))))
        for case, tally in tallies.items():
            schema = _schema(wanted, opposite=case == CASES[2])
            name = ""
            if case != CASES[0]:
                kind, thought = JsonSchema(json.dumps(schema)), _thought(example.thinking)
                automaton = compiled(Constraint(kind, thought), trie, ends).automaton
                assert automaton is not None
                name = automaton.hash
                worker.handle(messages.Constraint(name, automaton.to_bytes()))
            request = GenerateRequest(
                f"{index} {case}",
                prompt,
                2 * len(expected) + _ROOM,
                Sampling(seed=index, end_tokens=ends),
                constraint=name,
            )
            _add(tally, request, worker)
            answer = tally.answers[-1]
            text = without_thought(str(tokenizer.decode(answer[:-1])))
            try:
                value = json.loads(text)
            except ValueError:
                value = None
            tally.valid += is_valid(schema, value)
            tally.right += value == wanted
            tally.unchanged += answer == tallies[CASES[0]].answers[-1]
    for case, tally in tallies.items():
        yield {
            "case": case,
            "prompts": tally.prompts,
            "valid": tally.valid,
            "right": tally.right,
            "unchanged": tally.unchanged,
            "steps_a_block": tally.steps / tally.blocks,
            "corrections": tally.corrections,
        }


def _thought(thinking: bool) -> Thought:
    """Returns where an answer may have a thought. The prompts end before it."""
    return "allowed" if thinking else "none"


def _schema(value: dict[str, Any], *, opposite: bool) -> dict[str, Any]:
    """Returns the schema of objects with the keys of this one, and values of the same types."""
    names = [*value][::-1] if opposite else [*value]
    types = {name: "integer" if isinstance(value[name], int) else "string" for name in names}
    return {
        "type": "object",
        "properties": {name: {"type": types[name]} for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _add(tally: _Tally, request: GenerateRequest, worker: Worker) -> None:
    """Answer a request. Raises RuntimeError if the engine fails."""
    answer: list[int] = []
    for message in worker.generate(request):
        if isinstance(message, Failed):
            raise RuntimeError(f"{request.id}: {message.message}")
        if isinstance(message, Block):
            answer += message.tokens
            tally.blocks += 1
            tally.steps += message.denoising_steps
            tally.corrections += message.corrections
    tally.prompts += 1
    tally.answers.append(answer)
