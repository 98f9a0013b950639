import pytest

from engine.messages import GenerateRequest, Image, Sampling, TokenLogprobs
from engine.schedule.sequence import WORTH_KEEPING_TOKENS, Sequence, StepResult, Work

END = frozenset({99})


def start(max_tokens=100, prompt=(1, 2, 3, 4, 5), **sampling):
    return Sequence.start(
        GenerateRequest("r", list(prompt), max_tokens, Sampling(seed=0, **sampling))
    )


def run(sequence, canvas=None, **step):
    """One pass; it finishes the block if it is given a canvas."""
    made = StepResult(canvas or [0, 0], done=canvas is not None, **step)
    return sequence.record(sequence.next_work(1000), made, END)


def test_the_prompt_is_encoded_in_chunks_the_last_of_them_with_the_first_step():
    sequence, seen = start(), []
    for _ in range(4):
        work = sequence.next_work(most_tokens=2)
        seen.append((work.tokens, work.denoise))
        sequence.record(work, StepResult([0], done=False) if work.denoise else None, END)
    assert seen == [([1, 2], False), ([3, 4], False), ([5], True), ([], True)]


def test_encoding_pauses_behind_a_long_first_turn_for_other_conversations_to_reuse():
    system = [*([8, 9] * WORTH_KEEPING_TOKENS), 99]
    request = GenerateRequest("r", [*system, 10, 99, 11], 100, Sampling(seed=0))
    sequence = Sequence.start(request, END)
    first = sequence.next_work(10_000)
    assert (first.tokens, first.denoise) == (system, False)
    sequence.record(first, None, END)
    assert sequence.next_work(10_000) == Work(sequence, [10, 99, 11], denoise=True)


def test_encoding_does_not_pause_behind_a_short_first_turn():
    sequence = Sequence.start(GenerateRequest("r", [8, 99, 10], 100, Sampling(seed=0)), END)
    assert sequence.next_work(10_000).tokens == [8, 99, 10]


def test_what_is_reused_is_not_encoded():
    sequence = start()
    sequence.reuse(3)
    assert sequence.next_work(1000) == Work(sequence, [4, 5], denoise=True)
    assert sequence.reused == 3


def test_a_sequence_that_may_encode_nothing_waits_while_it_has_to_and_steps_when_not():
    sequence = start()
    assert sequence.next_work(most_tokens=0) is None
    run(sequence)
    assert sequence.next_work(most_tokens=0) == Work(sequence, [], denoise=True)


def test_a_step_that_does_not_finish_the_canvas_gives_no_block():
    sequence = start()
    assert run(sequence) is None
    assert run(sequence) is None
    assert sequence.step_index == 2


def test_a_whole_block_goes_on_and_is_committed_with_the_next_one_s_first_step():
    sequence = start()
    block = run(sequence, [7, 8])
    assert (block.tokens, block.finish_reason) == ([7, 8], None)
    assert sequence.next_work(1000) == Work(sequence, [7, 8], denoise=True)
    run(sequence)
    assert sequence.next_work(1000) == Work(sequence, [], denoise=True)


def test_a_block_counts_its_own_steps():
    sequence = start()
    run(sequence)
    run(sequence)
    assert run(sequence, [7, 8]).denoising_steps == 3
    assert run(sequence, [7, 8]).denoising_steps == 1


def test_a_block_is_cut_after_its_first_end_token():
    block = run(start(), [7, 99, 8, 99])
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
    block = run(start(max_tokens), [7, 8, 9, 99, 5])
    assert (block.tokens, block.finish_reason) == (tokens, reason)


def test_max_tokens_counts_all_blocks():
    sequence = start(max_tokens=3)
    assert run(sequence, [7, 8]).finish_reason is None
    last = run(sequence, [7, 8])
    assert (last.tokens, last.finish_reason) == ([7], "length")


def test_a_block_that_fills_max_tokens_exactly_ends_the_answer():
    assert run(start(max_tokens=2), [7, 8]).finish_reason == "length"


def bet(sequence, draft, *, nearly=True):
    """What the next work bets on after a step with this draft."""
    sequence.record(sequence.next_work(1000), StepResult(draft, done=False, nearly=nearly), END)
    return sequence.next_work(1000, speculate=True).speculation


def test_a_canvas_that_is_nearly_done_is_bet_on_if_that_is_switched_on():
    sequence = start()
    assert bet(sequence, [7, 8]) == [7, 8]
    assert sequence.next_work(1000).speculation is None
    assert bet(start(), [7, 8], nearly=False) is None


def test_a_canvas_that_would_end_the_answer_is_not_bet_on():
    assert bet(start(), [7, 99]) is None
    assert bet(start(max_tokens=2), [7, 8]) is None
    assert bet(start(max_tokens=3), [7, 8]) == [7, 8]


def test_a_won_bet_leaves_nothing_to_commit_and_the_next_block_with_its_first_step_done():
    sequence = start()
    bet(sequence, [7, 8])
    work = sequence.next_work(1000, speculate=True)
    block = sequence.record(work, StepResult([7, 8], done=True, next_started=True), END)
    assert (block.tokens, block.denoising_steps, block.speculations) == ([7, 8], 2, 1)
    assert sequence.next_work(1000) == Work(sequence, [], denoise=True)
    assert run(sequence, [9, 9]).denoising_steps == 2


def test_a_lost_bet_changes_nothing():
    sequence = start()
    bet(sequence, [7, 8])
    work = sequence.next_work(1000, speculate=True)
    block = sequence.record(work, StepResult([7, 9], done=True), END)
    assert (block.tokens, block.speculations) == ([7, 9], 1)
    assert sequence.next_work(1000) == Work(sequence, [7, 9], denoise=True)


def test_a_first_block_that_begins_with_an_end_token_is_begun_again_once_with_other_noise():
    sequence = start(choice=3)
    assert sequence.stream(0) == 6
    assert run(sequence, [99, 8]) is None
    assert (sequence.stream(0), sequence.stream(1)) == (7, 6)
    assert sequence.next_work(1000) == Work(sequence, [], denoise=True)
    block = run(sequence, [99, 8])
    assert (block.tokens, block.finish_reason, block.rerolled) == ([99], "stop", True)
    assert block.denoising_steps == 2


def test_a_block_that_is_not_empty_the_second_time_is_like_any_other():
    sequence = start()
    run(sequence, [99, 8])
    block = run(sequence, [7, 8])
    assert (block.tokens, block.finish_reason, block.rerolled) == ([7, 8], None, True)
    assert not run(sequence, [7, 8]).rerolled


def test_a_later_block_may_be_empty():
    sequence = start()
    run(sequence, [7, 8])
    assert run(sequence, [99, 8]).tokens == [99]


def test_ignored_end_tokens_neither_end_nor_cut_nor_begin_again():
    sequence = start(max_tokens=3, ignore_eos=True)
    block = run(sequence, [99, 8])
    assert (block.tokens, block.finish_reason, block.rerolled) == ([99, 8], None, False)
    last = run(sequence, [99, 99])
    assert (last.tokens, last.finish_reason) == ([99], "length")


@pytest.mark.parametrize(
    ("canvas", "tokens", "reason"),
    [
        ([7, 8, 40, 99], [7, 8], "length"),  # the suffix' own end token is no end
        ([7, 99, 40, 99], [7, 99], "stop"),
        ([99, 8, 40, 99], [99], "stop"),  # and is not begun again
    ],
)
def test_a_suffix_is_no_part_of_the_answer_and_its_block_is_the_last(canvas, tokens, reason):
    block = run(start(max_tokens=2, suffix=[40, 99]), canvas)
    assert (block.tokens, block.finish_reason, block.rerolled) == (tokens, reason, False)


def test_log_probabilities_are_cut_like_their_tokens():
    logprobs = [TokenLogprobs(token, -0.5) for token in (7, 99, 8)]
    block = run(start(), [7, 99, 8], logprobs=logprobs)
    assert block.logprobs == logprobs[:2]


def image(start, tokens, pixels=b"a", height=1, width=1):
    return Image(start, tokens, height, width, pixels)


def with_images(*images, length=12):
    prompt = list(range(1, length + 1))
    return Sequence.start(GenerateRequest("r", prompt, 100, Sampling(0), images=list(images)))


def chunks(sequence, most_tokens):
    """What each pass encodes of the prompt: its tokens, and at which of them images begin."""
    seen = []
    while sequence.unencoded:
        work = sequence.next_work(most_tokens)
        seen.append((work.tokens, [each.start for each in work.images]))
        sequence.record(work, StepResult([0], done=False) if work.denoise else None, END)
    return seen


@pytest.mark.parametrize(
    ("most_tokens", "expected"),
    [
        (1, [([1], []), ([2], []), ([3, 4, 5], [2]), ([6], []), ([7, 8, 9, 10], [6])]),
        (3, [([1, 2], []), ([3, 4, 5], [2]), ([6], []), ([7, 8, 9, 10], [6])]),
        (5, [([1, 2, 3, 4, 5], [2]), ([6, 7, 8, 9, 10], [6]), ([11, 12], [])]),
        (7, [([1, 2, 3, 4, 5, 6], [2]), ([7, 8, 9, 10, 11, 12], [6])]),
        (10, [([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [2, 6])]),
    ],
)
def test_an_image_is_encoded_whole_and_more_than_wanted_only_if_it_is_larger(most_tokens, expected):
    seen = chunks(with_images(image(2, 3), image(6, 4)), most_tokens)
    assert seen[: len(expected)] == expected
    assert [token for tokens, _ in seen for token in tokens] == list(range(1, 13))


def test_an_image_waits_for_a_pass_that_has_room():
    assert with_images(image(0, 3)).next_work(0) is None


def test_a_reused_prefix_brings_its_images_along():
    sequence = with_images(image(2, 3), image(6, 4))
    sequence.reuse(5)
    assert chunks(sequence, 100) == [([6, 7, 8, 9, 10, 11, 12], [6])]


def test_prefixes_tell_images_apart_by_pixels_and_size_but_not_by_place():
    def key(each):
        return with_images(each).prefix_keys(list(range(1, 13)))[each.start]

    one = key(image(2, 3))
    assert one < 0
    assert key(image(5, 3)) == one
    others = [image(2, 3, b"b"), image(2, 3, height=2), image(2, 3, width=2)]
    assert len({one, *map(key, others)}) == 4


def test_in_a_prefix_every_token_of_an_image_is_its_key_and_the_others_are_themselves():
    sequence = with_images(image(2, 3), image(6, 4))
    keys = sequence.prefix_keys([*range(1, 13), 77])
    first, second = keys[2], keys[6]
    assert keys == [1, 2, *[first] * 3, 6, *[second] * 4, 11, 12, 77]
    assert sequence.prefix_keys([1, 2, 3, 4, 5]) == keys[:5]
