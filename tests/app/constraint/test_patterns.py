import random
import re

import pytest

from app.constraint.limits import ConstraintError, Effort, NoWayError
from app.constraint.patterns import search, whole_match

_PATTERNS = [
    "^[a-z]{2,4}$", "abc", "a|^b", "b$|^c.*", r"\d+\.\d{2}", "^(foo|bar)+?$", "[^a-c]x", "^$",
    "(^|,)a(,|$)", r"\w+@\w+\.com", r"^[\w.-]+$", "^.{0,5}$", "a{0}b", r"[a\-z]", "[-a]$",
    "^(?:a|b)*c?$", r"\s\S", "^(a$|b)", "(a|)b$", r"(?P<year>\d)", r"[\d@]{2,}", r"\x61\u0062",
    "x{2",
]  # fmt: skip


@pytest.mark.parametrize("pattern", _PATTERNS)
def test_a_pattern_matches_what_python_matches(pattern):
    chosen = random.Random(pattern)
    found, whole = search(pattern, Effort()), whole_match(pattern, Effort())
    for _ in range(1500):
        text = "".join(chosen.choices("abcxz,.-@1 0foobrm{2}", k=chosen.randrange(9)))
        points = list(map(ord, text))
        assert found.accepts(points) == bool(re.search(pattern, text)), text
        assert whole.accepts(points) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(?=a)", "look-around"),
        ("(?<!a)b", "look-around"),
        (r"(a)\1", "back-references"),
        (r"(?P<n>a)(?P=n)", "back-references"),
        (r"a\b", "word boundaries"),
        ("(?i)a", "flags"),
        ("a++", "possessive"),
        ("(?>a)", "atomic"),
        (r"\p{Script=Greek}", "Unicode property"),
        ("[]a]", "closing bracket"),
        ("a{,2}", "lower bound"),
    ],
)
def test_what_no_automaton_can_match_is_refused_by_name(pattern, why):
    with pytest.raises(NoWayError, match=why):
        search(pattern, Effort())


@pytest.mark.parametrize(
    "pattern", ["a(", ")", "[a", "a{2,1}", "*a", "a**", "a\\", "[z-a]", r"\x1"]
)
def test_a_text_that_is_no_pattern_is_refused(pattern):
    with pytest.raises(ConstraintError, match="not a regular expression") as refused:
        search(pattern, Effort())
    assert not isinstance(refused.value, NoWayError)


def test_classes_are_narrow_and_their_complements_too():
    for pattern, points in {
        r"^\d$": "٣", r"^\D$": "3٣", r"^\w$": "é", r"^\W$": "éa", r"^\S$": "\u00a0\ufeff ",
        r"^[^\d]$": "٣", "^.$": "\n\u2028",
    }.items():  # fmt: skip
        machine = search(pattern, Effort())
        for character in points:
            assert not machine.accepts([ord(character)]), (pattern, character)
    assert search(r"^\p{Lu}$", Effort()).accepts([ord("É")])
    assert not search(r"^\P{Lu}$", Effort()).accepts([ord("É")])


def test_a_pattern_that_stands_for_too_much_is_refused():
    for pattern in ("(a{1,1000}){1,1000}", "a{1000000000}", "(" * 101 + ")" * 101, "a" * 20_001):
        with pytest.raises(NoWayError):
            search(pattern, Effort())
