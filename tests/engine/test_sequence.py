import pytest

from engine.messages import GenerateRequest
from engine.sequence import Denoise, Encode, PassResult, Sequence

END = frozenset({99})


def start(max_tokens=100, prompt=(1, 2, 3, 4, 5)):
    return Sequence.start(GenerateRequest("r", list(prompt), max_tokens, seed=0))


def run(sequence, canvas=None):
    return sequence.record(sequence.next_pass(1000), PassResult(canvas), END)


def denoised(sequence, canvas):
    """Give the sequence its block after one step, its prompt or last block encoded before."""
    while isinstance(sequence.next_pass(1000), Encode):
        run(sequence)
    return run(sequence, canvas)


def test_the_prompt_is_encoded_in_chunks_and_then_denoised():
    sequence, seen = start(), []
    for _ in range(4):
        work = sequence.next_pass(prefill_chunk=2)
        seen.append(work.tokens if isinstance(work, Encode) else "denoise")
        sequence.record(work, PassResult(), END)
    assert seen == [[1, 2], [3, 4], [5], "denoise"]


def test_a_step_that_does_not_finish_the_canvas_gives_no_block():
    sequence = start()
    run(sequence)
    assert run(sequence) is None
    assert sequence.step_index == 1


def test_a_whole_block_goes_on_and_is_committed_before_the_next():
    sequence = start()
    block = denoised(sequence, [7, 8])
    assert (block.tokens, block.finish_reason) == ([7, 8], None)
    assert sequence.next_pass(1000) == Encode(sequence, [7, 8])
    run(sequence)
    assert sequence.next_pass(1000) == Denoise(sequence)


def test_a_block_counts_its_own_steps():
    sequence = start()
    run(sequence)
    run(sequence)
    assert run(sequence, [7, 8]).denoising_steps == 2
    assert denoised(sequence, [7, 8]).denoising_steps == 1


def test_a_block_is_cut_after_its_first_end_token():
    block = denoised(start(), [7, 99, 8, 99])
    assert (block.tokens, block.finish_reason) == ([7, 99], "stop")


@pytest.mark.parametrize(
    ("max_tokens", "tokens", "reason"),
    [
        (3, [7, 8, 9], "length"),  # before the end token
        (4, [7, 8, 9, 99], "stop"),  # the end token is the last one allowed
        (5, [7, 8, 9, 99], "stop"),
    ],
)
def test_max_tokens_cuts_exactly(max_tokens, tokens, reason):
    block = denoised(start(max_tokens), [7, 8, 9, 99, 5])
    assert (block.tokens, block.finish_reason) == (tokens, reason)


def test_max_tokens_counts_all_blocks():
    sequence = start(max_tokens=3)
    assert denoised(sequence, [7, 8]).finish_reason is None
    last = denoised(sequence, [7, 8])
    assert (last.tokens, last.finish_reason) == ([7], "length")


def test_a_block_that_fills_max_tokens_exactly_ends_the_answer():
    assert denoised(start(max_tokens=2), [7, 8]).finish_reason == "length"
