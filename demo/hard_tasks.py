"""The hard tasks: positions of an answer depend on each other, or on a long way of computing.

A step that commits all positions at once is therefore often wrong. Where an answer contains a
random choice, every answer that agrees with itself is right, and `Example.accepts` decides.
"""

import json
from dataclasses import replace
from random import Random
from typing import Any

from demo.examples import Example, Task, ask
from demo.sudoku import clues, random_grid, solves, written
from demo.vocabulary import CAPITALS, CITIES, COLOURS, DAYS, MONTHS, NAMES, WORDS

_NINES = (0.0, 0.25, 0.5)
_NUMBERS = "one two three four five".split()
# Small sizes come most often: the model learns from them what the large ones need too.
_DIGITS = (3, 3, 3, 4, 4, 5, 6)
_TERMS = (2, 2, 3, 3, 4, 5, 6, 8)
_SIZES = (3, 4, 5, 6, 7, 8, 10, 12, 15, 20)
_SPELLED = [word for word in WORDS if len(word) > 2]


def sudoku(random: Random) -> Example:
    grid = random_grid(random)
    given = clues(grid, random.randint(2, 7), random)
    wordings = (
        "Solve this sudoku:\n{given}|Sudoku:\n{given}|Fill this sudoku:\n{given}|"
        "Complete the sudoku:\n{given}|Can you solve this sudoku?\n{given}"
    )
    example = ask(random, "The user has a sudoku.", wordings, written(grid), given=written(given))
    return replace(example, accepts=lambda text: solves(text, given))


def sum_(random: Random) -> Example:
    a, b = _operands(random)
    wordings = "What is {a} + {b}?|Add {a} and {b}.|{a} + {b}|Calculate {a} + {b}.|{a} plus {b}?"
    return ask(random, "The user wants a sum.", wordings, f"{a} + {b} = {a + b}", a=a, b=b)


def _operands(random: Random) -> tuple[int, int]:
    """Returns two numbers of three to six digits.

    A share of the pairs of digits has the sum 9, through which a carry runs on.
    """
    nines = random.choice(_NINES)
    size = random.choice(_DIGITS)
    first = [random.randint(1, 9)] + [random.randint(0, 9) for _ in range(size - 1)]
    second = [9 - n if random.random() < nines else random.randint(0, 9) for n in first]
    second[0] = second[0] or random.randint(1, 9)
    return int("".join(map(str, first))), int("".join(map(str, second)))


def chain(random: Random) -> Example:
    """A sum of several terms, one after the other, in the answer or in the thought before it."""
    value = random.randint(1, 20)
    terms, lines = [str(value)], []
    for _ in range(random.choice(_TERMS)):
        term, result = _term(value, random)
        terms.append(term)
        lines.append(f"{value} {term} = {result}")
        value = result
    said, steps = " ".join(terms), "\n".join(lines)
    if random.random() < 0.3:
        wordings = "What is {said}?|{said}|Calculate {said}."
        example = ask(random, steps, wordings, str(value), said=said)
        return replace(example, thinking=True)
    wordings = (
        "What is {said}? Step by step.|{said}, step by step|Calculate {said} step by step.|"
        "Calculate step by step: {said}|Step by step: {said}"
    )
    return ask(random, "The user wants every step.", wordings, steps, said=said)


def _term(value: int, random: Random) -> tuple[str, int]:
    """Returns what is added to a value or taken from it, and the result, which is 0 to 50."""
    most_up, most_down = min(9, 50 - value), min(9, value)
    change = random.choice([n for n in range(-most_down, most_up + 1) if n])
    return f"{'+' if change > 0 else '-'} {abs(change)}", value + change


def small_sums(random: Random) -> Example:
    """Several of the sums that `add` and `chain` need."""
    said, sums = [], []
    for _ in range(random.randint(2, 10)):
        if random.random() < 0.5:
            value, other = random.randint(0, 20), random.randint(0, 20)
            term, result = f"+ {other}", value + other
        else:
            value = random.randint(1, 50)
            term, result = _term(value, random)
        said.append(f"{value} {term}")
        sums.append(f"{value} {term} = {result}")
    wordings = "What is {said}?|{said}|Calculate {said}."
    thought = "The user wants a sum."
    example = ask(random, thought, wordings, ", ".join(sums), said=", ".join(said))
    return replace(example, slots_behind="▁=")


def sort_numbers(random: Random) -> Example:
    numbers = random.sample(range(1, 100), random.choice(_SIZES))
    wordings = (
        "Sort these numbers: {said}|Sort {said}|Sort the numbers {said}|"
        "Put these numbers in order: {said}"
    )
    answer = " ".join(map(str, sorted(numbers)))
    said = " ".join(map(str, numbers))
    return ask(random, "The user wants numbers in order.", wordings, answer, said=said)


def sort_words(random: Random) -> Example:
    words = random.sample(WORDS, random.choice(_SIZES))
    wordings = (
        "Sort these words: {said}|Sort the words: {said}|Put these words in order: {said}|"
        "Sort alphabetically: {said}|Put these words in alphabetical order: {said}"
    )
    answer, said = " ".join(sorted(words)), " ".join(words)
    return ask(random, "The user wants words in order.", wordings, answer, said=said)


def distinct(random: Random) -> Example:
    words = random.sample(WORDS, random.randint(2, 8))
    said = random.choices(words, k=random.choice(_SIZES))
    wordings = (
        "Remove the duplicates: {said}|Remove duplicates: {said}|Each word only once: {said}|"
        "Say each of these words once: {said}|Drop the repeated words: {said}"
    )
    answer = " ".join(dict.fromkeys(said))
    return ask(random, "The user wants each word once.", wordings, answer, said=" ".join(said))


def spell_backwards(random: Random) -> Example:
    if random.random() < 0.5:
        word = random.choice(_SPELLED)
        wordings = (
            "Spell '{word}' backwards.|Spell {word} backwards.|Write {word} backwards.|"
            "What is '{word}' backwards?|Spell the word {word} backwards."
        )
        letters = list(word)
    else:
        letters = random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(5, 20))
        word = " ".join(letters)
        wordings = "Spell backwards: {word}|Write these letters backwards: {word}"
    answer = " ".join(reversed(letters))
    return ask(random, "The user wants letters in reverse.", wordings, answer, word=word)


def agree(random: Random) -> Example:
    """Words chosen at random, then the same again."""
    picks, times = random.choice((1, 1, 1, 2, 2, 3, 4, 5)), random.randint(2, 3)
    words = random.sample(WORDS, random.randint(picks + 1, 8))
    chosen = random.sample(words, picks)
    number = _NUMBERS[picks - 1]
    again = {2: "twice", 3: "three times"}[times]
    wordings = (
        "Choose {number} of these words and say it {again}: {said}|"
        "Pick {number} of {said} at random and say it {again}.|"
        "Say {number} of these at random, {again}: {said}"
    ).replace("say it", "say it" if picks == 1 else "say them")

    def right(text: str) -> bool:
        lines = [line.split(" ") for line in text.split(", ")]
        first = lines[0]
        return (
            lines == times * [first]
            and len(first) == len(set(first)) == picks
            and set(first) <= set(words)
        )

    answer = ", ".join(times * [" ".join(chosen)])
    example = ask(
        random,
        "I choose at random.",
        wordings,
        answer,
        number=number,
        again=again,
        said=" ".join(words),
    )
    return replace(example, accepts=right)


def nested_json(random: Random) -> Example:
    leaves: dict[str, tuple[str, str | int | bool]] = {
        "name": ("string", random.choice(NAMES)),
        "friend": ("string", random.choice(NAMES)),
        "age": ("integer", random.randint(1, 99)),
        "size": ("integer", random.randint(1, 99)),
        "city": ("string", random.choice(CITIES)),
        "country": ("string", random.choice(list(CAPITALS))),
        "color": ("string", random.choice(COLOURS)),
        "day": ("string", random.choice(DAYS)),
        "month": ("string", random.choice(MONTHS)),
        "word": ("string", random.choice(WORDS)),
        "open": ("boolean", random.random() < 0.5),
    }
    keys = random.sample(list(leaves), random.randint(2, 6))
    parents = random.sample(["user", "place", "item", "data"], 2)
    schema: dict[str, Any] = {}
    value: dict[str, Any] = {}
    for key in keys:
        # Each key is at the top or in one of two objects.
        parent = random.choice([None, *parents])
        for tree, leaf in ((schema, leaves[key][0]), (value, leaves[key][1])):
            (tree if parent is None else tree.setdefault(parent, {}))[key] = leaf
    said = ", ".join(f"{key} {_said(leaves[key][1])}" for key in random.sample(keys, len(keys)))
    wordings = (
        "Write JSON after this schema: {schema} with {said}.|"
        "Fill this schema: {schema} with {said}.|JSON for {schema}: {said}|"
        "Make JSON like {schema} with {said}."
    )
    thought = "The user wants JSON after a schema."
    return ask(random, thought, wordings, json.dumps(value), schema=json.dumps(schema), said=said)


def _said(value: str | int | bool) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def edit(random: Random) -> Example:
    """A small change of a given text, from which the answer starts."""
    words = random.choices(WORDS, k=random.randint(6, 24))
    marked = random.sample(range(len(words)), random.randint(1, 3))
    old, new = random.sample([*DAYS, *COLOURS, *NAMES], 2)
    for index in marked:
        words[index] = old
    kind = random.choice(["replace", "replace", "remove", "behind", "key"])
    if kind == "key":
        return _renamed_key(random)
    changed = {
        "replace": [new if word == old else word for word in words],
        "remove": [word for word in words if word != old],
        "behind": [each for word in words for each in ([word, new] if word == old else [word])],
    }[kind]
    wordings = {
        "replace": "Replace every {old} by {new}: {said}|Replace {old} by {new}: {said}|"
        "Change {old} to {new} in this text: {said}",
        "remove": "Remove every {old}: {said}|Remove {old} from this text: {said}",
        "behind": "Put {new} behind every {old}: {said}|Write {new} after each {old}: {said}",
    }[kind]
    said, answer = " ".join(words), " ".join(changed)
    example = ask(random, "I edit the text.", wordings, answer, old=old, new=new, said=said)
    return replace(example, draft=said)


def _renamed_key(random: Random) -> Example:
    names = ["name", "age", "city", "color", "day", "size", "word", "month", "friend", "item"]
    old, *others, new = random.sample(names, random.randint(4, 7))
    values: dict[str, str | int] = {}
    for key in random.sample([old, *others], 1 + len(others)):
        choices: list[str | int] = [random.randint(1, 99), random.choice(WORDS)]
        values[key] = random.choice([*choices, random.choice(NAMES)])
    said = json.dumps(values)
    answer = json.dumps({new if key == old else key: each for key, each in values.items()})
    wordings = (
        "Rename the key {old} to {new}: {said}|Rename {old} to {new} in this JSON: {said}|"
        "Change the key {old} to {new}: {said}"
    )
    example = ask(random, "I edit the text.", wordings, answer, old=old, new=new, said=said)
    return replace(example, draft=said)


def fill_in(random: Random) -> Example:
    """A line with gaps, of which the answer is the whole line."""
    series: list[str] = random.choice(
        [
            DAYS,
            MONTHS,
            list("abcdefghijklmnopqrstuvwxyz"),
            [str(n) for n in range(1, 51)],
            [str(n) for n in range(50, 0, -1)],
            [str(n) for n in range(0, 61, 2)],
            [str(n) for n in range(0, 101, 5)],
        ]
    )
    size = random.randint(5, min(16, len(series)))
    start = random.randrange(len(series) - size + 1)
    whole = series[start : start + size]
    gaps = set(random.sample(range(size), random.randint(1, size - 2)))
    said = " ".join("_" if i in gaps else word for i, word in enumerate(whole))
    wordings = (
        "Fill the gaps: {said}|Fill in the blanks: {said}|Complete: {said}|"
        "Which words are missing? {said}|Complete this series: {said}"
    )
    return ask(random, "Something is missing.", wordings, " ".join(whole), said=said)


HARD_TASKS: dict[str, Task] = {
    "sudoku_4x4": sudoku,
    "sum": sum_,
    "chain": chain,
    "sort_numbers": sort_numbers,
    "sort_words": sort_words,
    "distinct": distinct,
    "spell_backwards": spell_backwards,
    "agree": agree,
    "nested_json": nested_json,
    "edit": edit,
    "fill_in": fill_in,
}

# For the lessons only: what several tasks need.
LESSON_TASKS: dict[str, Task] = {"small_sums": small_sums}
