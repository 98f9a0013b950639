"""The events of an answer, whose blocks come from a stand-in for the worker."""

from types import SimpleNamespace

from app.answer.generation import Delta, Finished, answer_events
from app.answer.request import AnswerRequest, prepare
from app.metrics import Metrics
from app.prompting.prompt import Prompt
from app.prompting.vocabulary import Vocabulary
from app.settings import Settings
from demo.tokenizer import build_tokenizer, save_tokenizer
from engine.messages import Block, Ready, Sampling

LIMITS = Ready("cpu", "float32", 100, 8, 4000, "")


async def test_the_figures_and_tokens_of_a_delta_are_those_of_its_block(tmp_path):
    """All blocks are there before the first event is taken, as when a client reads slowly."""
    save_tokenizer(build_tokenizer(0, examples=4000), tmp_path)
    vocabulary = Vocabulary(tmp_path / "tokenizer.json")
    blocks = [vocabulary.encode_literally(text) for text in ("one two", " three", " four five")]

    async def generate(request, _deadline, _needs):
        for index, tokens in enumerate(blocks):
            reason = "stop" if index == len(blocks) - 1 else None
            yield Block(request.id, index, tokens, 3, duration_s=0.1, finish_reason=reason)

    services = SimpleNamespace(
        settings=Settings(),
        metrics=Metrics(),
        worker=SimpleNamespace(generate=generate),
        prompts=SimpleNamespace(vocabulary=vocabulary),
    )
    request = AnswerRequest([Prompt([5, 6])], Sampling(seed=0), None, "prompt")
    prepared = prepare(request, LIMITS, vocabulary)
    *deltas, end = [each async for each in answer_events(services, request, prepared)]
    assert all(isinstance(each, Delta) for each in deltas)
    assert [each.tokens for each in deltas] == blocks
    counts = [sum(map(len, blocks[:number])) for number in (1, 2, 3)]
    assert [each.figures.completion_tokens for each in deltas] == counts
    assert [each.figures.blocks for each in deltas] == [1, 2, 3]
    assert isinstance(end, Finished)
    assert (end.figures.completion_tokens, end.tokens) == (counts[-1], [])
