"""Decisions: questions after a state, answered by one label each, on lines `1: A`.

A question is a predicate (yes or no), a choice (letters), or a score (digits). The answer's labels
are single tokens, so that one step can read the probability of each.
"""

import json
from collections.abc import Callable
from functools import partial
from random import Random
from string import ascii_uppercase, digits

from demo.examples import Decision, Example, Question, Task, user
from demo.vocabulary import CAPITALS, CITIES, COLOURS, WORDS

MOST_CHOICES = 20
_NUMBERED, _NAMED = ("0", "1", "2", "3"), ("none", "one", "two", "all")


def _written(question: Question) -> str:
    """Returns the question with its possible labels behind it."""
    labels = "yes or no"
    if question.choices:
        labels = _labelled(ascii_uppercase, question.choices)
    elif question.levels == _NUMBERED:
        labels = f"0 to {len(question.levels) - 1}"
    elif question.levels:
        labels = _labelled(digits, question.levels)
    return f"{question.text} {labels}"


def _labelled(labels: str, meanings: tuple[str, ...]) -> str:
    pairs = zip(labels, meanings, strict=False)
    return " ".join(f"{label}) {meaning}" for label, meaning in pairs)


Asker = Callable[[Random], Question]


def _decide(random: Random, askers: list[Asker], state: str = "", most: int = 5) -> Example:
    """Returns an example of one to `most` questions, behind a state if there is one."""
    number = 1 if most == 1 or random.random() < 0.5 else random.randint(2, most)
    questions = [random.choice(askers)(random) for _ in range(number)]
    lines = [f"{i}: {_written(question)}" for i, question in enumerate(questions, 1)]
    prompt = "\n".join([state, *lines] if state else lines)
    answer = "\n".join(f"{i}: {question.label}" for i, question in enumerate(questions, 1))
    return Example([user(prompt)], answer, "I decide.", decision=Decision(state, questions))


def _capital_fact(random: Random) -> Question:
    country = random.choice(list(CAPITALS))
    right = random.random() < 0.5
    wrong = [city for city in CITIES if city != CAPITALS[country]]
    city = CAPITALS[country] if right else random.choice(wrong)
    wordings = (
        "Is {0} the capital of {1}?|Is the capital of {1} {0}?|"
        "Is it true that {0} is the capital of {1}?"
    )
    if random.random() < 0.2:
        wordings, right = "Is it false that {0} is the capital of {1}?", not right
    text = random.choice(wordings.split("|")).format(city, country)
    return Question(text, _yes(right))


def _sum_fact(random: Random) -> Question:
    a, b = random.randint(0, 20), random.randint(0, 20)
    right = random.random() < 0.5
    shown = a + b if right else max(0, a + b + random.choice([-10, -3, -2, -1, 1, 2, 3, 10]))
    right, text = shown == a + b, f"Is {a} + {b} = {shown}?"
    if random.random() < 0.2:
        right, text = not right, f"Is it false that {a} + {b} = {shown}?"
    return Question(text, _yes(right))


def _order_fact(random: Random) -> Question:
    numbers = random.sample(range(1, 51), random.randint(2, 5))
    if random.random() < 0.5:
        numbers.sort()
    if random.random() < 0.4:
        numbers.sort()
        index = random.randrange(len(numbers) - 1)
        numbers[index : index + 2] = reversed(numbers[index : index + 2])
    text = f"Are these numbers in order: {' '.join(map(str, numbers))}?"
    return Question(text, _yes(numbers == sorted(numbers)))


def _word_fact(words: list[str], random: Random) -> Question:
    right = random.random() < 0.5
    word = random.choice(words if right else [each for each in WORDS if each not in words])
    return Question(f"Is {word} one of the words?", _yes(right))


def _capital_choice(most: int, random: Random) -> Question:
    country = random.choice(list(CAPITALS))
    wrong = [city for city in CITIES if city != CAPITALS[country]]
    choices = [CAPITALS[country], *random.sample(wrong, random.randint(1, most - 1))]
    random.shuffle(choices)
    label = ascii_uppercase[choices.index(CAPITALS[country])]
    wordings = (
        "What is the capital of {}?|Which city is the capital of {}?|Choose the capital of {}."
    )
    text = random.choice(wordings.split("|")).format(country)
    return Question(text, label, tuple(choices))


def _word_choice(random: Random) -> Question:
    choices = random.sample(WORDS, random.randint(2, 5))
    label = random.randrange(len(choices))
    text = f"Which one is the word {choices[label]}?"
    return Question(text, ascii_uppercase[label], tuple(choices))


def _largest_choice(random: Random) -> Question:
    numbers = random.sample(range(1, 100), random.randint(2, 4))
    wanted, pick = random.choice([("largest", max), ("smallest", min)])
    label = ascii_uppercase[numbers.index(pick(numbers))]
    choices = tuple(map(str, numbers))
    return Question(f"Which number is the {wanted}?", label, choices)


def _score(number: int, colour: str, random: Random) -> Question:
    """How many of three conditions hold."""
    bound = random.randrange(10, 100, 10)
    asked = random.choice([colour, random.choice(COLOURS)])
    parity = random.choice(["even", "odd"])
    holds = [number > bound, number % 2 == (parity == "odd"), colour == asked]
    text = f"How many hold? It is above {bound}. It is {parity}. The colour is {asked}."
    levels = _NUMBERED if random.random() < 0.7 else _NAMED
    return Question(text, str(sum(holds)), levels=levels)


def _state(random: Random, **facts: int | str | list[str]) -> str:
    """Returns the facts as sentences, or as JSON."""
    if random.random() < 0.3:
        return json.dumps(facts)
    said = {
        name: " ".join(fact) if isinstance(fact, list) else fact for name, fact in facts.items()
    }
    return " ".join(
        f"The {name} {'are' if name == 'words' else 'is'} {fact}." for name, fact in said.items()
    )


def _yes(right: bool) -> str:
    return "yes" if right else "no"


def predicate(random: Random) -> Example:
    facts: list[Asker] = [_capital_fact, _sum_fact, _order_fact]
    if random.random() < 0.5:
        return _decide(random, facts)
    words = random.sample(WORDS, random.randint(3, 10))
    facts += 3 * [partial(_word_fact, words)]
    return _decide(random, facts, _state(random, words=words))


def choose(random: Random) -> Example:
    if random.random() < 0.3:
        return _decide(random, [partial(_capital_choice, MOST_CHOICES)], most=2)
    return _decide(random, [partial(_capital_choice, 4), _largest_choice, _word_choice], most=4)


def score(random: Random, most: int = 5) -> Example:
    number, colour = random.randint(1, 99), random.choice(COLOURS)
    state = _state(random, number=number, colour=colour)
    return _decide(random, [partial(_score, number, colour)], state, most)


def mixed(random: Random) -> Example:
    words = random.sample(WORDS, random.randint(3, 8))
    number, colour = random.randint(1, 99), random.choice(COLOURS)
    state = _state(random, words=words, number=number, colour=colour)
    askers: list[Asker] = [
        _capital_fact,
        _sum_fact,
        _order_fact,
        partial(_word_fact, words),
        partial(_capital_choice, 4),
        _largest_choice,
        _word_choice,
        partial(_score, number, colour),
    ]
    return _decide(random, askers, state)


DECISION_TASKS: dict[str, Task] = {
    "predicate": predicate,
    "choose": choose,
    "score": score,
    "mixed": mixed,
}


def _alone(asker: Asker) -> Task:
    return lambda random: _decide(random, [asker], most=1)


def _word_fact_alone(random: Random) -> Example:
    words = random.sample(WORDS, random.randint(3, 10))
    return _decide(random, [partial(_word_fact, words)], _state(random, words=words), most=1)


# One question of one kind, for the lessons in which the model learns it.
SINGLE_QUESTIONS: dict[str, Task] = {
    "word_choice": _alone(_word_choice),
    "capital_choice": _alone(partial(_capital_choice, 4)),
    "long_choice": _alone(partial(_capital_choice, MOST_CHOICES)),
    "largest_choice": _alone(_largest_choice),
    "capital_fact": _alone(_capital_fact),
    "sum_fact": _alone(_sum_fact),
    "order_fact": _alone(_order_fact),
    "word_fact": _word_fact_alone,
    "single_score": partial(score, most=1),
}
