"""Numbers between bounds, as expressions over the bytes of their digits.

Bounded numbers are written without an exponent, and a bounded fraction has at most MOST_FRACTION
digits, so that no text is rounded across a bound when it is read.
"""

from decimal import Decimal

from app.constraint.expressions import (
    EMPTY,
    NEVER,
    Embedded,
    Expression,
    Ranges,
    any_of,
    optional,
    repeated,
    sequence,
    symbols,
    word,
)
from app.constraint.limits import Effort, NoWayError
from app.constraint.machines import Machine, intersection, machine

MOST_FRACTION = 12  # digits of the fraction of a number with bounds
MOST_WHOLE = 15  # digits before the point of such a number
_MOST_MULTIPLE = 1_000

_DIGIT = symbols([(0x30, 0x39)])
_NOT_ZERO = symbols([(0x31, 0x39)])
_MINUS = word(b"-")
_POINT = word(b".")
_DIGITS = repeated(_DIGIT, 0, None)
_WHOLE = any_of([word(b"0"), sequence(_NOT_ZERO, _DIGITS)])
_EXPONENT = sequence(
    symbols([(0x45, 0x45), (0x65, 0x65)]),
    optional(symbols([(0x2B, 0x2B), (0x2D, 0x2D)])),
    repeated(_DIGIT, 1, 2),
)

INTEGER = sequence(optional(_MINUS), _WHOLE)
NUMBER = sequence(
    INTEGER, optional(sequence(_POINT, repeated(_DIGIT, 1, None))), optional(_EXPONENT)
)


def integers(least: int | None, most: int | None, multiples_of: int, effort: Effort) -> Expression:
    """Returns the integers between two bounds that are multiples of a number.

    Raises NoWayError if the number is too large.
    """
    if least is None and most is None:
        expression = INTEGER
    else:
        positive = _magnitudes(max(least or 0, 0), most)
        negative = _magnitudes(
            max(-most, 1) if most is not None else 1, None if least is None else -least
        )
        expression = any_of([positive, NEVER if negative is NEVER else sequence(_MINUS, negative)])
    if multiples_of == 1 or expression is NEVER:
        return expression
    if multiples_of > _MOST_MULTIPLE:
        raise NoWayError(f"multiples of numbers above {_MOST_MULTIPLE} are not supported")
    both = intersection(machine(expression, effort), _multiples(multiples_of), effort)
    return NEVER if both.accepts_nothing else Embedded(both, symbols)


def numbers(
    least: Decimal | None, most: Decimal | None, above: bool, below: bool, effort: Effort
) -> Expression:
    """Returns the numbers from `least` to `most`, without these if `above` or `below` is set."""
    if least is None and most is None:
        return NUMBER
    positive = negative = NEVER
    zero = Decimal(0)
    if most is None or most >= 0:
        low = (least, above) if least is not None and least >= 0 else (zero, False)
        positive = _decimals(low, None if most is None else (most, below), effort)
    if least is None or least < 0:
        low = (-most, below) if most is not None and most <= 0 else (zero, True)
        negative = _decimals(low, None if least is None else (-least, above), effort)
    return any_of([positive, sequence(_MINUS, negative)])


def _magnitudes(least: int, most: int | None) -> Expression:
    """Returns the integers from `least`, which is not negative, to `most`."""
    if most is not None and most < least:
        return NEVER
    parts = []
    low = least
    longest = len(str(least)) if most is None else len(str(most))
    for digits in range(len(str(least)), longest + 1):
        high = 10**digits - 1 if most is None else min(most, 10**digits - 1)
        parts += [
            sequence(*(symbols([part]) for part in ranges))
            for ranges in _split(str(low).encode(), str(high).encode())
        ]
        low = 10**digits
    if most is None:
        parts.append(sequence(_NOT_ZERO, repeated(_DIGIT, longest, None)))
    return any_of(parts)


def _split(start: bytes, end: bytes) -> list[Ranges]:
    """Returns sequences of ranges of digits that are together the numbers from start to end."""
    if len(start) == 1:
        return [((start[0], end[0]),)]
    if start[0] == end[0]:
        return [((start[0], start[0]), *tail) for tail in _split(start[1:], end[1:])]
    zeros, nines = b"0" * (len(start) - 1), b"9" * (len(start) - 1)
    first, last = start[0], end[0]
    sequences: list[Ranges] = []
    if start[1:] != zeros:
        sequences += [((first, first), *tail) for tail in _split(start[1:], nines)]
        first += 1
    tails: list[Ranges] = []
    if end[1:] != nines:
        tails = [((last, last), *tail) for tail in _split(zeros, end[1:])]
        last -= 1
    if first <= last:
        sequences.append(((first, last), *((0x30, 0x39) for _ in zeros)))
    return sequences + tails


def _decimals(
    low: tuple[Decimal, bool], high: tuple[Decimal, bool] | None, effort: Effort
) -> Expression:
    """Returns the decimals between two bounds that are not negative. True excludes a bound."""
    any_fraction = optional(sequence(_POINT, repeated(_DIGIT, 1, None)))
    whole, fraction = _parts(low[0])
    at_least = any_of(
        [
            sequence(_magnitudes(whole + 1, None), any_fraction),
            sequence(word(b"%d" % whole), _from_fraction(fraction, low[1])),
        ]
    )
    both = intersection(machine(at_least, effort), machine(_SHAPE, effort), effort)
    if high is not None:
        whole, fraction = _parts(high[0])
        at_most = any_of(
            [
                sequence(_magnitudes(0, whole - 1), any_fraction),
                sequence(word(b"%d" % whole), _to_fraction(fraction, high[1])),
            ]
        )
        both = intersection(both, machine(at_most, effort), effort)
    return NEVER if both.accepts_nothing else Embedded(both, symbols)


_SHAPE = sequence(
    any_of([word(b"0"), sequence(_NOT_ZERO, repeated(_DIGIT, 0, MOST_WHOLE - 1))]),
    optional(sequence(_POINT, repeated(_DIGIT, 1, MOST_FRACTION))),
)


def _parts(value: Decimal) -> tuple[int, bytes]:
    """Returns the integer and the digits of the fraction, without zeros at the end."""
    whole, _, fraction = format(value, "f").partition(".")
    return int(whole), fraction.rstrip("0").encode()


def _from_fraction(digits: bytes, above: bool) -> Expression:
    """Returns the point and the digits of the fractions that are at least 0.digits, or above it."""
    not_zero = sequence(repeated(word(b"0"), 0, None), _NOT_ZERO, _DIGITS)
    if not digits:
        some = sequence(_POINT, not_zero if above else repeated(_DIGIT, 1, None))
        return some if above else optional(some)
    tail: Expression = not_zero if above else _DIGITS
    for digit in reversed(digits):
        larger = symbols([(digit + 1, 0x39)]) if digit < 0x39 else NEVER
        tail = any_of([sequence(larger, _DIGITS), sequence(word([digit]), tail)])
    return sequence(_POINT, tail)


def _to_fraction(digits: bytes, below: bool) -> Expression:
    """Returns the point and the digits of the fractions that are at most 0.digits, or below it."""
    zeros = repeated(word(b"0"), 0, None)
    if not digits:
        return NEVER if below else optional(sequence(_POINT, word(b"0"), zeros))
    tail: Expression = NEVER if below else zeros
    for index, digit in reversed(list(enumerate(digits))):
        smaller = symbols([(0x30, digit - 1)]) if digit > 0x30 else NEVER
        parts = [sequence(smaller, _DIGITS), sequence(word([digit]), tail)]
        tail = any_of(parts if index == 0 else [*parts, EMPTY])
    return optional(sequence(_POINT, tail))


def _multiples(of: int) -> Machine:
    """Returns the integers in digits that are multiples of a number."""
    digits = range(10)
    rows = [
        [(0x30 + digit, 0x30 + digit, 2 + (rest * 10 + digit) % of) for digit in digits]
        for rest in range(of)
    ]
    first = rows[0]
    return Machine(
        [[(0x2D, 0x2D, 1), *first], first, *rows],
        [False, False, True, *([False] * (of - 1))],
        [None] * (of + 2),
    )
