import msgspec
import pytest

from engine.messages import GenerateRequest, Image, Sampling, Thought, TokenLogprobs
from engine.schedule.sequence import WORTH_KEEPING_TOKENS, Sequence, StepResult, Work

END = frozenset({99})
PADDING = 98


def start(max_tokens=100, prompt=(1, 2, 3, 4, 5), **sampling):
    request = GenerateRequest("r", list(prompt), max_tokens, Sampling(seed=0, **sampling))
    return Sequence.start(request, END, PADDING)


def run(sequence, canvas=None, **step):
    """Record one pass. With a canvas, the pass finishes the block. Returns the finished block."""
    result = StepResult(canvas or [0, 0], "confident" if canvas else None, **step)
    return sequence.record(sequence.next_work(1000), result)


def test_the_prompt_is_encoded_in_chunks_and_the_last_chunk_is_in_the_first_step():
    sequence, passes = start(), []
    for _ in range(4):
        work = sequence.next_work(most_tokens=2)
        passes.append((work.tokens, work.denoise))
        sequence.record(work, StepResult([0]) if work.denoise else None)
    assert passes == [([1, 2], False), ([3, 4], False), ([5], True), ([], True)]


def test_encoding_pauses_behind_a_long_first_turn_so_that_it_can_be_reused():
    system = [*([8, 9] * WORTH_KEEPING_TOKENS), 99]
    request = GenerateRequest("r", [*system, 10, 99, 11], 100, Sampling(seed=0))
    sequence = Sequence.start(request, END)
    first = sequence.next_work(10_000)
    assert (first.tokens, first.denoise) == (system, False)
    sequence.record(first, None)
    assert sequence.next_work(10_000) == Work(sequence, [10, 99, 11], denoise=True)


def test_encoding_does_not_pause_behind_a_short_first_turn():
    sequence = Sequence.start(GenerateRequest("r", [8, 99, 10], 100, Sampling(seed=0)), END)
    assert sequence.next_work(10_000).tokens == [8, 99, 10]


def test_end_tokens_of_the_chat_format_end_a_first_turn_too():
    system = [*([8, 9] * WORTH_KEEPING_TOKENS), 97]
    request = GenerateRequest("r", [*system, 10], 100, Sampling(seed=0, end_tokens=[97]))
    assert Sequence.start(request, END).next_work(10_000).tokens == system


def test_reused_tokens_are_not_encoded():
    sequence = start()
    sequence.reuse(3)
    assert sequence.next_work(1000) == Work(sequence, [4, 5], denoise=True)
    assert sequence.reused == 3


def test_a_sequence_that_may_encode_nothing_denoises_only_if_nothing_is_unencoded():
    sequence = start()
    assert sequence.next_work(most_tokens=0) is None
    run(sequence)
    assert sequence.next_work(most_tokens=0) == Work(sequence, [], denoise=True)


def test_a_step_that_does_not_finish_the_canvas_returns_no_block():
    sequence = start()
    assert run(sequence) is None
    assert run(sequence) is None
    assert sequence.step_index == 2


def test_a_block_without_an_end_is_committed_with_the_first_step_of_the_next_block():
    sequence = start()
    block = run(sequence, [7, 8])
    assert (block.tokens, block.finish_reason) == ([7, 8], None)
    assert sequence.next_work(1000) == Work(sequence, [7, 8], denoise=True)
    run(sequence)
    assert sequence.next_work(1000) == Work(sequence, [], denoise=True)


def test_a_block_counts_only_its_own_steps():
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
        (3, [7, 8, 9], "length"),  # cut before the end token
        (4, [7, 8, 9, 99], "stop"),  # the end token is the last one allowed
        (5, [7, 8, 9, 99], "stop"),
    ],
)
def test_max_tokens_cuts_exactly(max_tokens, tokens, reason):
    block = run(start(max_tokens), [7, 8, 9, 99, 5])
    assert (block.tokens, block.finish_reason) == (tokens, reason)


@pytest.mark.parametrize("field", ["end_tokens", "stop_token_ids"])
def test_end_tokens_of_a_request_end_its_answer_like_those_of_the_checkpoint(field):
    for canvas in ([7, 97, 8, 99], [7, 99, 97, 8]):
        block = run(start(**{field: [96, 97]}), canvas)
        assert (block.tokens, block.finish_reason) == (canvas[:2], "stop")
    assert speculation_after(start(**{field: [97]}), [7, 97]) is None
    retried = start(**{field: [97]})
    assert run(retried, [97, 8]) is None
    assert retried.rerolled


@pytest.mark.parametrize(
    ("canvas", "max_tokens", "tokens", "reason"),
    [
        ([7, 8, 98, 98], 100, [7, 8], "stop"),
        ([7, 8, 9, 98], 100, [7, 8, 9], "stop"),
        ([7, 98, 8, 98], 100, [7, 98, 8], "stop"),  # padding in the middle is no end
        ([98, 7, 8, 9], 100, [98, 7, 8, 9], None),
        ([7, 99, 98, 98], 100, [7, 99], "stop"),
        ([7, 98, 99, 98], 100, [7, 98, 99], "stop"),
        ([7, 8, 98, 98], 3, [7, 8], "stop"),
        ([7, 8, 98, 98], 2, [7, 8], "stop"),  # it is complete
        ([7, 8, 98, 98], 1, [7], "length"),
    ],
)
def test_padding_up_to_the_end_of_a_block_ends_the_answer_and_is_no_part_of_it(
    canvas, max_tokens, tokens, reason
):
    block = run(start(max_tokens), canvas)
    assert (block.tokens, block.finish_reason) == (tokens, reason)


def test_a_block_of_nothing_but_padding_ends_the_answer_without_a_token():
    sequence = start()
    run(sequence, [7, 8])
    logprobs = [TokenLogprobs(token, -0.5) for token in (98, 98)]
    block = run(sequence, [98, 98], logprobs=logprobs)
    assert (block.tokens, block.finish_reason, block.logprobs) == ([], "stop", [])
    assert sequence.answer == [7, 8]


def test_padding_is_an_ordinary_token_for_a_checkpoint_that_names_none():
    request = GenerateRequest("r", [1, 2], 100, Sampling(seed=0))
    block = run(Sequence.start(request, END), [7, 98])
    assert (block.tokens, block.finish_reason) == ([7, 98], None)


def test_max_tokens_counts_the_tokens_of_all_blocks():
    sequence = start(max_tokens=3)
    assert run(sequence, [7, 8]).finish_reason is None
    last = run(sequence, [7, 8])
    assert (last.tokens, last.finish_reason) == ([7], "length")


def test_a_block_that_fills_max_tokens_exactly_ends_the_answer():
    assert run(start(max_tokens=2), [7, 8]).finish_reason == "length"


def speculation_after(sequence, draft, *, nearly=True):
    """Record a step with this draft. Returns the draft that the next work speculates on."""
    sequence.record(sequence.next_work(1000), StepResult(draft, nearly=nearly))
    return sequence.next_work(1000, speculate=True).speculation


def test_a_pass_speculates_on_a_nearly_done_canvas_if_speculation_is_on():
    sequence = start()
    assert speculation_after(sequence, [7, 8]) == [7, 8]
    assert sequence.next_work(1000).speculation is None
    assert speculation_after(start(), [7, 8], nearly=False) is None


def test_a_pass_does_not_speculate_on_a_canvas_that_would_end_the_answer():
    assert speculation_after(start(), [7, 99]) is None
    assert speculation_after(start(), [7, 98]) is None
    assert speculation_after(start(ignore_eos=True), [99, 98]) == [99, 98]
    assert speculation_after(start(max_tokens=2), [7, 8]) is None
    assert speculation_after(start(max_tokens=3), [7, 8]) == [7, 8]


def test_won_speculation_has_committed_the_block_and_made_the_first_step_of_the_next():
    sequence = start()
    speculation_after(sequence, [7, 8])
    work = sequence.next_work(1000, speculate=True)
    won = StepResult([7, 8], "confident", next_step=StepResult([0, 0]))
    block = sequence.record(work, won)
    assert (block.tokens, block.denoising_steps, block.speculations) == ([7, 8], 2, 1)
    assert sequence.next_work(1000) == Work(sequence, [], denoise=True)
    assert run(sequence, [9, 9]).denoising_steps == 2


def test_lost_speculation_changes_nothing():
    sequence = start()
    speculation_after(sequence, [7, 8])
    work = sequence.next_work(1000, speculate=True)
    block = sequence.record(work, StepResult([7, 9], "confident"))
    assert (block.tokens, block.speculations) == ([7, 9], 1)
    assert sequence.next_work(1000) == Work(sequence, [7, 9], denoise=True)


@pytest.mark.parametrize(("canvas", "tokens"), [([99, 8], [99]), ([98, 98], [])])
def test_an_empty_first_block_is_retried_once_with_other_noise(canvas, tokens):
    sequence = start(choice=3)
    assert sequence.stream(0) == 6
    assert run(sequence, canvas) is None
    assert (sequence.stream(0), sequence.stream(1)) == (7, 6)
    assert sequence.next_work(1000) == Work(sequence, [], denoise=True)
    block = run(sequence, canvas)
    assert (block.tokens, block.finish_reason, block.rerolled) == (tokens, "stop", True)
    assert block.denoising_steps == 2


def test_a_first_block_that_only_begins_with_padding_is_not_empty():
    assert run(start(), [98, 7]).tokens == [98, 7]


def test_a_retried_first_block_that_is_not_empty_is_treated_like_any_other_block():
    sequence = start()
    run(sequence, [99, 8])
    block = run(sequence, [7, 8])
    assert (block.tokens, block.finish_reason, block.rerolled) == ([7, 8], None, True)
    assert not run(sequence, [7, 8]).rerolled


def test_a_later_block_may_be_empty():
    sequence = start()
    run(sequence, [7, 8])
    assert run(sequence, [99, 8]).tokens == [99]


OPEN, CLOSE = 50, 51
MARKS = Thought(OPEN, CLOSE, [60, 61])


def thinking(max_tokens=100, thought=MARKS, **sampling):
    request = GenerateRequest(
        "r", [1, 2, 3], max_tokens, Sampling(seed=0, **sampling), thought=thought
    )
    return Sequence.start(request, END, PADDING)


HEAD = [OPEN, 60, 61]


@pytest.mark.parametrize("thought", [[*HEAD, 7, CLOSE], [60, 61, 7, CLOSE], [*HEAD, CLOSE]])
@pytest.mark.parametrize("end", [[99, 8], [98, 98]])
def test_an_answer_that_is_empty_behind_its_thought_is_retried_once(thought, end):
    sequence = thinking()
    assert run(sequence, [*thought, *end]) is None
    assert (sequence.stream(0), sequence.stream(1)) == (1, 0)
    block = run(sequence, [*thought, *end])
    assert (block.finish_reason, block.rerolled, block.denoising_steps) == ("stop", True, 2)


def test_an_answer_whose_thought_ends_with_a_block_is_retried_in_the_next_one():
    sequence = thinking(choice=2)
    assert not run(sequence, [*HEAD, 7, CLOSE]).rerolled
    assert run(sequence, [99, 8]) is None
    assert (sequence.stream(0), sequence.stream(1), sequence.stream(2)) == (4, 5, 4)
    block = run(sequence, [7, 8])
    assert (block.tokens, block.rerolled) == ([7, 8], True)
    assert run(sequence, [99, 8]).tokens == [99]  # something was said before


@pytest.mark.parametrize(
    "canvas",
    [
        [*HEAD, 7, CLOSE, 8, 99],
        [*HEAD, 7, 99],  # the thought is the answer
        [OPEN, 70, 61, 7, CLOSE, 99],  # a channel of another name may have the answer
        [8, *HEAD, 7, CLOSE, 99],
        [OPEN, 99],
    ],
)
def test_an_answer_with_anything_but_closed_thoughts_is_not_empty(canvas):
    assert run(thinking(), canvas).finish_reason == "stop"


def test_a_thought_of_an_answer_that_was_interrupted_counts():
    request = GenerateRequest(
        "r", [1], 100, Sampling(0), thought=MARKS, delivered=[*HEAD, CLOSE], delivered_blocks=1
    )
    assert run(Sequence.start(request, END, PADDING), [99, 8]) is None


def test_a_cut_block_is_committed_as_it_is_and_names_what_cut_it():
    sequence = thinking(thought=Thought(OPEN, CLOSE, [60, 61], budget=5))
    block = run(sequence, [*HEAD, 7, CLOSE], thought_closed=True)
    assert (block.tokens, block.thought_closed) == ([*HEAD, 7, CLOSE], "budget")
    assert sequence.next_work(1000) == Work(sequence, [*HEAD, 7, CLOSE], denoise=True)


def test_a_thought_behind_the_end_of_an_answer_counts_as_not_closed():
    sequence = thinking(thought=Thought(OPEN, CLOSE, [60, 61], budget=5))
    block = run(sequence, [7, 99, *HEAD, 7, CLOSE], thought_closed=True)
    assert (block.tokens, block.thought_closed, block.finish_reason) == ([7, 99], None, "stop")


def test_the_end_of_a_thought_gives_up_a_draft_that_would_be_speculated_on():
    sequence = thinking()
    assert speculation_after(sequence, [*HEAD, 7, 8]) == [*HEAD, 7, 8]
    sequence.end_thought()
    assert sequence.next_work(1000, speculate=True).speculation is None


def test_choices_have_thoughts_of_their_own():
    first = thinking()
    other = first.sibling(first.request)
    first.end_thought()
    assert first.thoughts.cut(first.thought, [*HEAD, 7]) == ([*HEAD, CLOSE], True)
    assert other.thoughts.cut(other.thought, [*HEAD, 7]) == ([*HEAD, 7], False)


def test_ignored_end_tokens_neither_end_nor_cut_nor_retry_a_block():
    sequence = start(max_tokens=3, ignore_eos=True)
    block = run(sequence, [99, 8])
    assert (block.tokens, block.finish_reason, block.rerolled) == ([99, 8], None, False)
    last = run(sequence, [99, 99])
    assert (last.tokens, last.finish_reason) == ([99], "length")


@pytest.mark.parametrize("canvas", [[97, 8], [98, 98]])
def test_ignored_ends_include_padding_and_end_tokens_of_the_chat_format(canvas):
    block = run(start(ignore_eos=True, end_tokens=[97]), canvas)
    assert (block.tokens, block.finish_reason, block.rerolled) == (canvas, None, False)


def test_stop_token_ids_are_never_ignored():
    block = run(start(ignore_eos=True, stop_token_ids=[97]), [99, 97, 8])
    assert (block.tokens, block.finish_reason) == ([99, 97], "stop")


@pytest.mark.parametrize(
    ("canvas", "tokens", "reason"),
    [
        ([7, 8, 40, 99], [7, 8], "length"),  # an end token in the suffix does not count
        ([7, 99, 40, 99], [7, 99], "stop"),
        ([99, 8, 40, 99], [99], "stop"),  # the empty block is not retried
        ([7, 98, 40, 99], [7], "stop"),
        ([98, 98, 40, 99], [], "stop"),
        ([7, 8, 98, 98], [7, 8], "length"),  # padding in the suffix does not count
    ],
)
def test_a_suffix_is_not_in_the_answer_and_its_block_is_the_last(canvas, tokens, reason):
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
    """Returns the tokens that each pass encodes, and the positions at which its images start."""
    passes = []
    while sequence.unencoded:
        work = sequence.next_work(most_tokens)
        passes.append((work.tokens, [each.start for each in work.images]))
        sequence.record(work, StepResult([0]) if work.denoise else None)
    return passes


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
def test_an_image_is_encoded_whole_and_only_a_larger_image_exceeds_the_limit(most_tokens, expected):
    passes = chunks(with_images(image(2, 3), image(6, 4)), most_tokens)
    assert passes[: len(expected)] == expected
    assert [token for tokens, _ in passes for token in tokens] == list(range(1, 13))


def test_an_image_waits_for_a_pass_that_may_encode_tokens():
    assert with_images(image(0, 3)).next_work(0) is None


def test_images_in_a_reused_prefix_are_not_encoded():
    sequence = with_images(image(2, 3), image(6, 4))
    sequence.reuse(5)
    assert chunks(sequence, 100) == [([6, 7, 8, 9, 10, 11, 12], [6])]


def test_prefix_keys_of_images_depend_on_pixels_and_size_but_not_on_the_position():
    def key(each):
        return with_images(each).prefix_keys(list(range(1, 13)))[each.start]

    one = key(image(2, 3))
    assert one < 0
    assert key(image(5, 3)) == one
    others = [image(2, 3, b"b"), image(2, 3, height=2), image(2, 3, width=2)]
    assert len({one, *map(key, others)}) == 4


def test_prefixes_of_different_salts_have_no_token_in_common():
    def keys(salt, *images):
        request = msgspec.structs.replace(with_images(*images).request, salt=salt)
        return Sequence.start(request).prefix_keys(list(range(1, 13)))

    for images in ((), (image(0, 3),)):
        plain, one, other = keys("", *images), keys("one", *images), keys("other", *images)
        assert keys("one", *images) == one
        assert plain[1:] == one[1:] == other[1:]
        assert len({plain[0], one[0], other[0]}) == 3
        assert one[0] < 0 > other[0]


def test_prefix_keys_replace_the_tokens_of_images_and_no_other_tokens():
    sequence = with_images(image(2, 3), image(6, 4))
    keys = sequence.prefix_keys([*range(1, 13), 77])
    first, second = keys[2], keys[6]
    assert keys == [1, 2, *[first] * 3, 6, *[second] * 4, 11, 12, 77]
    assert sequence.prefix_keys([1, 2, 3, 4, 5]) == keys[:5]
