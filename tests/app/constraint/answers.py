"""A small vocabulary, and answers that an automaton allows."""

from app.chat_format.gemma import Control
from app.constraint.tokens import TokenTrie, trie_of
from engine.constraint.automaton import Automaton

CONTROLS = ("<turn|>", '<|"|>', "<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>")
_WORDS = (
    '{"', '": ', '":', ', "', '","', '"}', '"]', '["', "[]", "{}", "}}", "]}", '"}]', "\n  ",
    "    ", "true", "false", "null", "name", "ab", "abc", "a ", " b", "\\n", '\\"', "12", "00",
    "0.5", "-1",
    "é", "日本", "🙂", "call", "call:", ":{", "e+", "2024-", "-01", "T00:", "Z", ",", " the",
)  # fmt: skip
TEXTS: dict[int, bytes] = {byte: bytes([byte]) for byte in range(256)}
TEXTS |= {256 + index: word.encode() for index, word in enumerate(_WORDS)}
FIRST = len(TEXTS)
END = FIRST
SIZE = FIRST + len(CONTROLS) + 3  # three tokens that are never allowed


def toy_trie() -> TokenTrie:
    return trie_of(TEXTS, SIZE, {name: FIRST + index for index, name in enumerate(CONTROLS)})


def allows(automaton: Automaton, tokens: list[int]) -> bool:
    """Returns whether an answer of these tokens, and then the end token, is allowed."""
    state = automaton.start
    for token in [*tokens, END]:
        if state < 0 or state == automaton.end:
            return False
        state = automaton.next_state[state, automaton.token_class[token]]
    return bool(state == automaton.end)


def an_answer(automaton: Automaton, random, budget: int) -> list[int]:
    """Returns the tokens of a random answer that ends within a budget of tokens, without the end.

    It goes on for as long as the budget allows, half of the time.
    """
    tokens: list[int] = []
    state = automaton.start
    assert automaton.need[state] <= budget
    of_class: dict[int, list[int]] = {}
    for token, number in enumerate(automaton.token_class):
        of_class.setdefault(int(number), []).append(token)
    while True:
        left = budget - len(tokens)
        targets = [
            (number, int(target))
            for number, target in enumerate(automaton.next_state[state])
            if target >= 0 and automaton.need[target] <= left - 1
        ]
        number, state = random.choice(targets)
        if state == automaton.end:
            others = [each for each in targets if each[1] != automaton.end]
            if not others or random.random() < 0.5:
                return tokens
            number, state = random.choice(others)
        tokens.append(random.choice(of_class[number]))


def text_of(tokens: list[int]) -> str:
    """Returns the text of tokens that are no control tokens."""
    return b"".join(TEXTS[token] for token in tokens).decode()


def pieces_of(tokens: list[int]) -> list[str | Control]:
    """Returns the text between control tokens, and these."""
    pieces: list[str | Control] = []
    text = b""
    for token in tokens:
        if token in TEXTS:
            text += TEXTS[token]
            continue
        pieces += [text.decode()] if text else []
        pieces.append(Control(CONTROLS[token - FIRST]))
        text = b""
    return [*pieces, text.decode()] if text else pieces


def tokens_of(text: str) -> list[int]:
    """Returns the tokens of a text, the longest first."""
    data, tokens = text.encode(), []
    by_length = sorted(TEXTS.items(), key=lambda each: -len(each[1]))
    while data:
        token = next(token for token, own in by_length if data.startswith(own))
        tokens.append(token)
        data = data[len(TEXTS[token]) :]
    return tokens
