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
from demo.vocabulary import CAPITALS, CITIES, COLOURS, DAYS, WORDS

MOST_CHOICES = 20
_NUMBERED, _NAMED = ("0", "1", "2", "3"), ("none", "one", "two", "all")
_FACTS = {"colour": COLOURS, "city": CITIES, "day": DAYS}

Facts = dict[str, str]


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
    decision = Decision(state, questions)
    return Example([user(prompt)], answer, "I decide.", decision=decision, slots_behind=":")


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
    said, right = _sum_or_not(random)
    text = f"Is {said}?"
    if random.random() < 0.2:
        right, text = not right, f"Is it false that {said}?"
    return Question(text, _yes(right))


def _sum_or_not(random: Random) -> tuple[str, bool]:
    """Returns a sum with a result, and whether that is right."""
    a, b = random.randint(0, 9), random.randint(0, 9)
    shown = a + b if random.random() < 0.5 else random.choice([a + b + 1, random.randint(0, 18)])
    return f"{a} + {b} = {shown}", shown == a + b


def _order_fact(random: Random) -> Question:
    said, right = _ordered_or_not(random)
    return Question(f"Are these numbers in order: {said}?", _yes(right))


def _ordered_or_not(random: Random) -> tuple[str, bool]:
    """Returns some numbers, and whether they are in order."""
    numbers = random.sample(range(1, 51), random.randint(2, 4))
    if random.random() < 0.5:
        numbers.sort()
    if random.random() < 0.4:
        numbers.sort()
        index = random.randrange(len(numbers) - 1)
        numbers[index : index + 2] = reversed(numbers[index : index + 2])
    return " ".join(map(str, numbers)), numbers == sorted(numbers)


def _state_fact(facts: Facts, random: Random) -> Question:
    name = random.choice(list(facts))
    asked = _asked(facts, random)[name]
    return Question(f"Is the {name} {asked}?", _yes(asked == facts[name]))


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


def _score(facts: Facts, random: Random) -> Question:
    """How many of three conditions hold."""
    asked = _asked(facts, random)
    levels = _NUMBERED if random.random() < 0.7 else _NAMED
    number = sum(asked[name] == fact for name, fact in facts.items())
    return Question(f"How many hold? {_sentences(asked)}", str(number), levels=levels)


def _random_facts(random: Random) -> Facts:
    return {name: random.choice(choices) for name, choices in _FACTS.items()}


def _asked(facts: Facts, random: Random) -> Facts:
    """Returns the facts, about half of which are replaced by random ones."""
    others = _random_facts(random)
    return {name: random.choice([fact, others[name]]) for name, fact in facts.items()}


def _state(facts: Facts, random: Random) -> str:
    """Returns the facts as sentences, or as JSON."""
    return json.dumps(facts) if random.random() < 0.3 else _sentences(facts)


def _sentences(facts: Facts) -> str:
    return " ".join(f"The {name} is {fact}." for name, fact in facts.items())


def _yes(right: bool) -> str:
    return "yes" if right else "no"


def predicate(random: Random) -> Example:
    askers: list[Asker] = [_capital_fact, _sum_fact, _order_fact]
    if random.random() < 0.5:
        return _decide(random, askers)
    facts = _random_facts(random)
    askers += 3 * [partial(_state_fact, facts)]
    return _decide(random, askers, _state(facts, random))


def choose(random: Random) -> Example:
    if random.random() < 0.3:
        return _decide(random, [partial(_capital_choice, MOST_CHOICES)], most=2)
    return _decide(random, [partial(_capital_choice, 4), _largest_choice, _word_choice], most=4)


def score(random: Random) -> Example:
    facts = _random_facts(random)
    return _decide(random, [partial(_score, facts)], _state(facts, random))


def mixed(random: Random) -> Example:
    facts = _random_facts(random)
    askers: list[Asker] = [
        _capital_fact,
        _sum_fact,
        _order_fact,
        partial(_state_fact, facts),
        partial(_capital_choice, 4),
        _largest_choice,
        _word_choice,
        partial(_score, facts),
    ]
    return _decide(random, askers, _state(facts, random))


DECISION_TASKS: dict[str, Task] = {
    "predicate": predicate,
    "choose": choose,
    "score": score,
    "mixed": mixed,
}


def _alone(asker: Asker) -> Task:
    return lambda random: _decide(random, [asker], most=1)


def _alone_on_facts(asker: Callable[[Facts, Random], Question]) -> Task:
    def task(random: Random) -> Example:
        facts = _random_facts(random)
        return _decide(random, [partial(asker, facts)], _state(facts, random), most=1)

    return task


def _choices(random: Random) -> list[str]:
    return random.sample(WORDS, random.choice((2, 2, 3, 3, 4, 5, 6, 8)))


def _many_labels(asked: str, choices: list[str], labels: list[str], behind: str = "") -> Example:
    """Returns an example with many labels in one answer. One alone is learned slowly."""
    question = f"{asked}? {_labelled(ascii_uppercase, tuple(choices))}{behind}"
    return Example([user(question)], f"1: {' '.join(labels)}", "I decide.")


def words_and_letters(random: Random) -> Example:
    """Each word that the question names, with its letter behind it.

    The word on the canvas asks for one letter, so an answer has many such questions.
    """
    choices = _choices(random)
    named = random.choices(choices, k=random.randint(6, 24))
    question = f"Say the words and their letters: {' '.join(named)}. "
    question += _labelled(ascii_uppercase, tuple(choices))
    pairs = [f"{word} {ascii_uppercase[choices.index(word)]}" for word in named]
    return Example([user(question)], " ".join(pairs), "I decide.")


def named_or_not(random: Random) -> Example:
    """Yes or no for each choice."""
    choices = _choices(random)
    named = random.sample(choices, random.randint(1, len(choices)))
    labels = [_yes(choice in named) for choice in choices]
    return _many_labels(f"Which are the words {' '.join(named)}", choices, labels, " yes or no")


def named_letters(random: Random) -> Example:
    """The letters of all choices that the question names, in the choices' order."""
    choices = _choices(random)
    named = random.sample(choices, random.randint(1, len(choices)))
    labels = [ascii_uppercase[index] for index, choice in enumerate(choices) if choice in named]
    return _many_labels(f"Which are the words {' '.join(named)}", choices, labels)


def letters_of_words(random: Random) -> Example:
    """The letter of each word that the question names, in the question's order."""
    choices = _choices(random)
    named = random.choices(choices, k=random.randint(3, 10))
    labels = [ascii_uppercase[choices.index(word)] for word in named]
    return _many_labels(f"Which letters have the words {' '.join(named)}", choices, labels)


def number_facts(random: Random) -> Example:
    """Many sums, and numbers that are in order or not, with yes or no behind each."""
    said, answers = [], []
    for _ in range(random.randint(2, 8)):
        fact, right = random.choice([_sum_or_not, _ordered_or_not])(random)
        said.append(fact)
        answers.append(f"{fact}: {_yes(right)}")
    question = f"Is it true, yes or no? {', '.join(said)}"
    return Example([user(question)], ", ".join(answers), "I decide.", slots_behind=":")


def conditions(random: Random) -> Example:
    """Many sentences about a state, with yes or no behind each."""
    facts = _random_facts(random)
    asked = [_asked(facts, random) for _ in range(random.randint(1, 3))]
    said = " ".join(map(_sentences, asked))
    answers = [
        f"The {name} is {each}. {_yes(each == facts[name])}"
        for some in asked
        for name, each in some.items()
    ]
    question = f"{_state(facts, random)}\nIs it true, yes or no? {said}"
    return Example([user(question)], " ".join(answers), "I decide.", slots_behind=".")


# For the lessons only: many labels of one question, and one question of one kind.
LESSON_TASKS: dict[str, Task] = {
    "words_and_letters": words_and_letters,
    "named_or_not": named_or_not,
    "named_letters": named_letters,
    "letters_of_words": letters_of_words,
    "number_facts": number_facts,
    "conditions": conditions,
    "word_choice": _alone(_word_choice),
    "capital_choice": _alone(partial(_capital_choice, 4)),
    "long_choice": _alone(partial(_capital_choice, MOST_CHOICES)),
    "largest_choice": _alone(_largest_choice),
    "capital_fact": _alone(_capital_fact),
    "sum_fact": _alone(_sum_fact),
    "order_fact": _alone(_order_fact),
    "state_fact": _alone_on_facts(_state_fact),
    "single_score": _alone_on_facts(_score),
}
