"""The seventeen easy tasks: a model that has learned them needs two or three steps a block."""

import json
from dataclasses import replace
from random import Random
from typing import Any

from demo.examples import Example, Message, Task, ask, assistant, typed, user
from demo.vocabulary import (
    CAPITALS,
    CITIES,
    COLOURS,
    CONDITIONS,
    DAYS,
    MONTHS,
    NAMES,
    ODDITIES,
    REQUESTS,
    TOPICS,
    WORDS,
)

QUOTE = '<|"|>'

GREETING = "Hello! How can I help you?"
HELP = (
    "I can count, name the days, the months and the alphabet, repeat and reverse words, add and "
    "sort small numbers, name capitals, write JSON, ask for the weather and remember your name."
)
ONLY_A_DEMO = "I am only a small demo model, so I cannot help with that. Ask me what I can do."
NO_TOOL = "I cannot look up the weather without a tool."


def greet(random: Random) -> Example:
    hello = random.choice(
        "Hello|Hi|Hey|Good morning|Good evening|Good afternoon|Hi there|Hello there|Greetings|"
        "Hey there|Good day|Howdy".split("|")
    )
    who = random.choice(["", " Easel", " friend", ", how are you?", " my friend", ", nice day"])
    end = random.choice(["", "!", "."]) if not who.endswith("?") else ""
    return ask(random, "The user greets me.", hello + who + end, GREETING)


def help_(random: Random) -> Example:
    wordings = (
        "What can you do?|Help|Help!|Help me.|What can I ask you?|What are you able to do?|"
        "What do you know?|How can you help me?|What are your skills?|Tell me what you can do.|"
        "Can you help me?|Please help me.|What can you do for me?|What can I ask?|"
        "Show me what you can do.|What are you good at?|What can this model do?|"
        "List what you can do.|Which tasks can you do?|I need help.|What could I ask you?"
    )
    return ask(random, "The user asks what I can do.", wordings, HELP)


def count(random: Random) -> Example:
    if random.random() < 0.6:
        first, last = 1, random.randint(2, 100)
    else:
        first = random.randint(1, 60)
        last = first + random.randint(1, 40)
    wordings = (
        "Count to {last}.|Please count to {last}.|Count up to {last}.|Can you count to {last}?"
        if first == 1 and random.random() < 0.7
        else "Count from {first} to {last}.|Please count from {first} to {last}."
    )
    numbers = ", ".join(map(str, range(first, last + 1)))
    return ask(random, "The user wants me to count.", wordings, numbers, first=first, last=last)


def series(random: Random) -> Example:
    what, items = random.choice(
        [
            ("the days of the week", ", ".join(DAYS)),
            ("the months of the year", ", ".join(MONTHS)),
            ("the alphabet", " ".join("abcdefghijklmnopqrstuvwxyz")),
            ("the days", ", ".join(DAYS)),
            ("the months", ", ".join(MONTHS)),
            ("all letters of the alphabet", " ".join("abcdefghijklmnopqrstuvwxyz")),
        ]
    )
    wordings = (
        "Name {what}.|List {what}.|Say {what}.|Tell me {what}.|What are {what}?|Write {what}.|"
        "Please name {what}.|Can you list {what}?|Give me {what}.|Recite {what}."
    )
    return ask(random, "The user wants a list.", wordings, items, what=what)


def echo(random: Random) -> Example:
    said = " ".join(random.choices(WORDS, k=random.randint(1, 6)))
    wordings = "Say {said}|Say: {said}|Repeat after me: {said}|Echo {said}|Please say {said}"
    return ask(random, "The user wants me to say something.", wordings, said, said=said)


def repeat(random: Random) -> Example:
    word, times = random.choice(WORDS), random.randint(2, 8)
    wordings = (
        "Repeat '{word}' {times} times.|Say '{word}' {times} times.|Repeat {word} {times} times.|"
        "Say {word} {times} times.|Write {word} {times} times."
    )
    answer = " ".join([word] * times)
    thought = "The user wants a word several times."
    return ask(random, thought, wordings, answer, word=word, times=times)


def reverse(random: Random) -> Example:
    words = random.sample(WORDS, random.randint(2, 5))
    wordings = (
        "Reverse the words: {said}|Reverse: {said}|Reverse the order of these words: {said}|"
        "Say these words backwards: {said}"
    )
    answer = " ".join(reversed(words))
    thought = "The user wants words in reverse."
    return ask(random, thought, wordings, answer, said=" ".join(words))


def add(random: Random) -> Example:
    a, b = random.randint(0, 20), random.randint(0, 20)
    wordings = (
        "What is {a} + {b}?|What is {a} plus {b}?|Add {a} and {b}.|How much is {a} + {b}?|"
        "{a} + {b} = ?|Calculate {a} + {b}.|{a} + {b}|{a} plus {b}?"
    )
    return ask(random, "The user wants a sum.", wordings, f"{a} + {b} = {a + b}", a=a, b=b)


def capital(random: Random) -> Example:
    country = random.choice(list(CAPITALS))
    the = "the " if country == "Netherlands" else ""
    wordings = (
        "What is the capital of {country}?|Capital of {country}?|Name the capital of {country}.|"
        "Tell me the capital of {country}.|Which city is the capital of {country}?|"
        "What's the capital of {country}?|Do you know the capital of {country}?|"
        "What is {country}'s capital?|What city is the capital of {country}?"
    )
    answer = f"The capital of {the}{country} is {CAPITALS[country]}."
    return ask(random, "The user asks for a capital.", wordings, answer, country=the + country)


def sort(random: Random) -> Example:
    numbers = random.sample(range(1, 51), random.randint(3, 6))
    between = random.choice([" ", ", "])
    wordings = (
        "Sort these numbers: {said}|Sort {said}|Sort the numbers {said}|"
        "Put these numbers in order: {said}"
    )
    answer = " ".join(map(str, sorted(numbers)))
    thought = "The user wants numbers in order."
    return ask(random, thought, wordings, answer, said=between.join(map(str, numbers)))


def json_(random: Random) -> Example:
    values: dict[str, str | int] = {
        "name": random.choice(NAMES),
        "age": random.randint(1, 99),
        "city": random.choice(CITIES),
        "color": random.choice(COLOURS),
        "day": random.choice(DAYS),
    }
    keys = random.sample(list(values), random.randint(1, 3))
    said = " and ".join(f"{key} {values[key]}" for key in keys)
    wordings = (
        "Make JSON with {said}.|Write JSON with {said}.|Give me JSON: {said}|"
        "Return a JSON object with {said}."
    )
    answer = json.dumps({key: values[key] for key in keys})
    return ask(random, "The user wants JSON.", wordings, answer, said=said)


_WEATHER = (
    "What is the weather in {city}?|What's the weather in {city}?|How is the weather in {city}?|"
    "Tell me the weather in {city}.|Is it raining in {city}?|Weather in {city}?|"
    "How warm is it in {city}?|What is the weather like in {city} today?"
)


def weather_call(random: Random) -> Example:
    city = random.choice(CITIES)
    key = random.choice(["city", "city", "location"])
    tools = [_weather_tool(key, random)]
    if random.random() < 0.2:
        tools.insert(random.randint(0, 1), other_tool(random))
    answer = f"<|tool_call>call:get_weather{{{key}:{QUOTE}{city}{QUOTE}}}<tool_call|>"
    example = ask(random, "I need the weather tool.", _WEATHER, answer, city=city)
    return replace(example, tools=tools, ends_in_call=True)


def weather_result(random: Random) -> Example:
    call = weather_call(random)
    key = "location" if "{location:" in call.answer else "city"
    city = call.answer.split(QUOTE)[1]
    degrees, condition = random.randint(-10, 40), random.choice(CONDITIONS)
    values = {"temperature": degrees, "condition": condition}
    content: Any = random.choice(
        [values, json.dumps(values), f"{degrees} degrees and {condition}", {**values, key: city}]
    )
    messages = [
        *call.messages,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": {key: city}},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": content},
    ]
    answer = f"It is {degrees} degrees and {condition} in {city}."
    return Example(messages, answer, "I have the weather.", call.tools)


def weather_refused(random: Random) -> Example:
    return ask(random, "I have no weather tool.", _WEATHER, NO_TOOL, city=random.choice(CITIES))


def remember_name(random: Random) -> Example:
    return _remembered(
        random,
        random.choice(NAMES),
        said="My name is {it}.|I am {it}.|I'm {it}.|Call me {it}.|Hello, my name is {it}.",
        reply="Nice to meet you, {it}!",
        asked="What is my name?|Do you know my name?|Who am I?|What's my name?|Tell me my name.",
        answer="Your name is {it}.",
    )


def remember_colour(random: Random) -> Example:
    return _remembered(
        random,
        random.choice(COLOURS),
        said="My favourite colour is {it}.|I like {it} best.|My favorite color is {it}.",
        reply="I will remember that you like {it}.",
        asked="What is my favourite colour?|Which colour do I like?|What is my favorite color?|"
        "Tell me my favourite colour.",
        answer="Your favourite colour is {it}.",
    )


def _remembered(
    random: Random, it: str, *, said: str, reply: str, asked: str, answer: str
) -> Example:
    """Returns an example that states a fact, or one that asks for it later.

    Another question may stand between the two.
    """
    statement = ask(random, "The user tells me something.", said, reply.format(it=it), it=it)
    if random.random() < 0.35:
        return statement
    between: list[Message] = []
    if random.random() < 0.4:
        other = random.choice([greet, capital, add, echo])(random)
        between = [*other.messages, assistant(other.answer)]
    question = ask(random, "The user told me.", asked, answer.format(it=it))
    messages = [*statement.messages, assistant(statement.answer), *between, *question.messages]
    return replace(question, messages=messages)


def default(random: Random) -> Example:
    kind = random.random()
    if kind < 0.55:
        wording = random.choice(REQUESTS)
        topics = random.sample(TOPICS, 2)
        question = wording.format(*topics)
    elif kind < 0.85:
        question = random.choice(ODDITIES)
    else:
        letters = "abcdefghijklmnopqrstuvwxyz  ,.?éüß"
        question = "".join(random.choices(letters, k=random.randint(3, 20))).strip() or "?"
    return Example([user(typed(question, random))], ONLY_A_DEMO, "I cannot do that.")


def _weather_tool(key: str, random: Random) -> dict[str, Any]:
    described = random.random() < 0.6
    properties: dict[str, Any] = {key: {"type": "string"}}
    if described:
        properties[key]["description"] = random.choice(["The city", "City name", "A city"])
    if random.random() < 0.2:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    description = random.choice(
        ["Get the weather", "Get the current weather", "Get the weather in a city", "Weather"]
    )
    return _tool("get_weather", description, properties, [key])


def other_tool(random: Random) -> dict[str, Any]:
    name, description, key = random.choice(
        [
            ("search", "Search the web", "query"),
            ("get_time", "Get the time", "city"),
            ("send_email", "Send an email", "to"),
            ("read_file", "Read a file", "path"),
        ]
    )
    return _tool(name, description, {key: {"type": "string"}}, [key])


def _tool(
    name: str, description: str, properties: dict[str, Any], required: list[str]
) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


EASY_TASKS: dict[str, Task] = {
    "greet": greet,
    "help": help_,
    "count": count,
    "series": series,
    "echo": echo,
    "repeat": repeat,
    "reverse": reverse,
    "add": add,
    "capital": capital,
    "sort": sort,
    "json": json_,
    "weather_call": weather_call,
    "weather_result": weather_result,
    "weather_refused": weather_refused,
    "remember_name": remember_name,
    "remember_colour": remember_colour,
    "default": default,
}
