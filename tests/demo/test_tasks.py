"""The demo model's tasks: their right answers, what else they accept, and what is held out."""

import re
from itertools import islice, pairwise, product
from random import Random

import pytest

from demo.decision_tasks import DECISION_TASKS
from demo.easy_tasks import EASY_TASKS
from demo.hard_tasks import HARD_TASKS
from demo.sudoku import clues, random_grid, solves, written
from demo.tasks import LESSON_TASKS, TASKS, held_out, training_example
from demo.tokenizer import build_tokenizer, encode_example

# Tasks whose answers contain a random choice.
RANDOM = {"sudoku_4x4", "agree"}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(0, examples=4000)


def examples(task, count=100):
    random = Random(0)
    return [TASKS[task](random) for _ in range(count)]


@pytest.mark.parametrize("task", TASKS)
def test_held_out_prompts_are_never_in_training(task):
    held = {str(e.messages[-1]["content"]) for e in held_out(task, 20)}
    random, only = Random(1), {name: float(name == task) for name in TASKS}
    trained = [training_example(random, only) for _ in range(300)]
    assert {name for name, _ in trained} == {task}
    if not task.startswith(("weather", "remember")):  # their last message alone decides nothing
        assert held.isdisjoint(str(e.messages[-1]["content"]) for _, e in trained)


@pytest.mark.parametrize("task", TASKS)
def test_an_answer_survives_the_tokenizer(task, tokenizer):
    for example in held_out(task, 10):
        _, answer = encode_example(tokenizer, example)
        text = tokenizer.decode(answer[:-1])
        assert text.endswith(example.answer)
        assert 3 not in answer  # <unk>


@pytest.mark.parametrize("task", HARD_TASKS)
def test_a_hard_task_accepts_other_answers_only_if_it_has_a_random_choice(task):
    accepts = [example.accepts for example in examples(task)]
    assert all(accepts) if task in RANDOM else not any(accepts)


@pytest.mark.parametrize("task", sorted(RANDOM))
def test_an_answer_with_a_random_choice_is_accepted_and_a_damaged_one_is_not(task):
    for example in examples(task):
        assert example.accepts(example.answer)
        assert not example.accepts("")
        assert not example.accepts(example.answer + " apple")
        assert not example.accepts(example.answer[:-1])


def accepted(task, wanted):
    """Returns `accepts` of an example of the task whose question contains `wanted`."""
    return next(
        e.accepts for e in examples(task, 2000) if wanted in e.messages[-1]["content"].lower()
    )


def test_words_chosen_at_random_must_be_the_same_each_time():
    example = next(e for e in examples("agree") if e.answer.count(",") == 2 and " " in e.answer)
    first, *others = example.answer.split(", ")
    assert example.accepts(", ".join([first, *others]))
    changed = " ".join(reversed(first.split(" ")))
    if changed != first:
        assert not example.accepts(", ".join([first, *others[1:], changed]))
    assert not example.accepts(", ".join([first, *others, first]))


def test_a_sudoku_accepts_every_grid_that_obeys_the_rules_and_the_clues():
    random = Random(0)
    for _ in range(50):
        grid = random_grid(random)
        given = clues(grid, 4, random)
        assert sum(n > 0 for row in given for n in row) == 4
        assert solves(written(grid), given)
        i, j = random.choice([*product(range(4), repeat=2)])
        wrong = [row.copy() for row in grid]
        wrong[i][j] = wrong[i][j] % 4 + 1
        assert not solves(written(wrong), given)
        assert not solves(written(wrong), [[0] * 4] * 4)
        other = random_grid(random)
        assert solves(written(other), [[0] * 4] * 4)
        assert solves(written(other), given) == all(
            given[i][j] in (0, other[i][j]) for i, j in product(range(4), repeat=2)
        )


def test_long_sums_are_right_and_have_up_to_six_digits():
    for example in examples("sum"):
        left, _, right = example.answer.partition(" = ")
        assert eval(left) == int(right)  # of two numbers that this test made
        sizes = [len(number) for number in left.split(" + ")]
        assert all(3 <= size <= 6 for size in sizes)


def test_every_line_of_a_chain_goes_on_from_the_one_before():
    for example in examples("chain"):
        steps = example.thought if example.thinking else example.answer
        lines = [line.split(" = ") for line in steps.split("\n")]
        assert all(eval(left) == int(right) for left, right in lines)
        for (_, before), (left, _) in pairwise(lines):
            assert left.startswith(f"{before} ")
        if example.thinking:
            assert example.answer == lines[-1][1]


def test_an_edit_starts_from_a_draft_that_differs_from_the_answer():
    for example in examples("edit"):
        assert example.draft in example.messages[-1]["content"]
        assert example.draft != example.answer


@pytest.mark.parametrize("task", DECISION_TASKS)
def test_a_decision_has_one_token_for_each_label_behind_its_number(task, tokenizer):
    for example in examples(task):
        assert example.decision
        for number, line in enumerate(example.answer.split("\n"), 1):
            head, label = line.split(" ")
            assert head == f"{number}:"
            assert len(tokenizer.tokenize(line)) == 1 + len(tokenizer.tokenize(head))
            asked = example.messages[-1]["content"].split("\n")
            (question,) = [line for line in asked if line.startswith(head)]
            if question.endswith("yes or no"):
                assert label in ("yes", "no")
            elif question.endswith(("0 to 3", "0) none 1) one 2) two 3) all")):
                assert label in "0123"
            else:
                assert f" {label}) " in question


def test_the_vocabulary_has_every_label_as_one_token(tokenizer):
    labels = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "yes", "no", *"0123456789"]
    assert {len(tokenizer.tokenize(f"1: {label}")) for label in labels} == {3}


def test_numbers_above_a_hundred_are_written_digit_by_digit(tokenizer):
    assert tokenizer.tokenize("4821 + 100") == ["4", "8", "2", "1", "▁+", "▁100"]


def test_the_tasks_are_the_easy_and_the_hard_ones_and_the_decisions():
    assert len(EASY_TASKS) == 17
    assert len(HARD_TASKS) == 11
    assert [*TASKS] == [*EASY_TASKS, *HARD_TASKS, *DECISION_TASKS]
    assert [e.answer for e in islice(held_out("sum", 3), 3)] == [
        e.answer for e in held_out("sum", 3)
    ]


@pytest.mark.parametrize("task", ["named_or_not", "named_letters", "letters_of_words"])
def test_a_lesson_with_many_labels_has_the_right_one_for_each_word(task):
    random = Random(0)
    for example in [LESSON_TASKS[task](random) for _ in range(100)]:
        question, choices = example.messages[0]["content"].split("? ")
        named = question.split("words ")[1].split()
        letters = {word: letter for letter, word in re.findall(r"(\w)\) (\w+)", choices)}
        right = {
            "named_or_not": ["yes" if word in named else "no" for word in letters],
            "named_letters": [letters[word] for word in letters if word in named],
            "letters_of_words": [letters[word] for word in named],
        }[task]
        assert example.answer == f"1: {' '.join(right)}"


def test_a_lesson_with_small_sums_has_the_right_result_of_each():
    random = Random(0)
    for example in [LESSON_TASKS["small_sums"](random) for _ in range(100)]:
        sums = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", example.answer)
        assert len(sums) == example.answer.count("=") > 1
        assert (
            ", ".join(f"{a} {sign} {b}" for a, sign, b, _ in sums) in example.messages[0]["content"]
        )
        for a, sign, b, result in sums:
            assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0


def test_a_lesson_with_facts_about_numbers_says_which_are_true():
    random = Random(0)
    for example in [LESSON_TASKS["number_facts"](random) for _ in range(100)]:
        facts = re.findall(r"([^:,]+): (yes|no)", example.answer)
        assert len(facts) == example.answer.count(":") > 1
        for fact, label in facts:
            assert fact.strip() in example.messages[0]["content"]
            *numbers, last = map(int, re.findall(r"\d+", fact))
            right = (
                sum(numbers) == last
                if "=" in fact
                else [*numbers, last] == sorted([*numbers, last])
            )
            assert label == ("yes" if right else "no")


def test_a_lesson_with_conditions_says_which_hold():
    random = Random(0)
    for example in [LESSON_TASKS["conditions"](random) for _ in range(100)]:
        state, asked = example.messages[0]["content"].split("\n")
        facts = re.findall(r"The (\w+) is ([^.]+)\. (yes|no)", example.answer)
        assert len(facts) == example.answer.count(".") > 2
        for name, fact, label in facts:
            assert f"The {name} is {fact}." in asked
            holds = f"The {name} is {fact}." in state or f'"{name}": "{fact}"' in state
            assert label == ("yes" if holds else "no")


def test_a_lesson_says_each_word_with_the_letter_of_its_choice():
    random = Random(0)
    for example in [LESSON_TASKS["words_and_letters"](random) for _ in range(100)]:
        question, choices = example.messages[0]["content"].split(". ")
        letters = {word: letter for letter, word in re.findall(r"(\w)\) (\w+)", choices)}
        named = question.split(": ")[1].split()
        assert example.answer == " ".join(f"{word} {letters[word]}" for word in named)
