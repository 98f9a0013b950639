"""Sudoku of 4x4: random grids, their clues, and whether a text solves one.

A grid is written as lines of digits without spaces, with 0 for an empty cell.
"""

from itertools import product
from random import Random

_SIDE = 4
_BOX = 2  # rows and columns of a box


def random_grid(random: Random) -> list[list[int]]:
    """Returns a filled grid, made from the simplest one by moves that keep it right."""
    digits = random.sample(range(1, _SIDE + 1), _SIDE)
    # Rows may be swapped in their band, and bands with each other. So may columns.
    down, across = _shuffled_lines(random), _shuffled_lines(random)
    return [[digits[(_BOX * (i % _BOX) + i // _BOX + j) % _SIDE] for j in across] for i in down]


def _shuffled_lines(random: Random) -> list[int]:
    return [
        band * _BOX + line
        for band in random.sample(range(_SIDE // _BOX), _SIDE // _BOX)
        for line in random.sample(range(_BOX), _BOX)
    ]


def clues(grid: list[list[int]], count: int, random: Random) -> list[list[int]]:
    """Returns the grid with so many of its cells, and 0 in all others."""
    kept = set(random.sample(list(product(range(_SIDE), repeat=2)), count))
    return [[n if (i, j) in kept else 0 for j, n in enumerate(row)] for i, row in enumerate(grid)]


def written(grid: list[list[int]]) -> str:
    return "\n".join("".join(map(str, row)) for row in grid)


def solves(text: str, given: list[list[int]]) -> bool:
    """Returns whether the text is a filled grid that obeys the rules and keeps the clues."""
    lines = text.split("\n")
    if len(lines) != _SIDE or any(len(line) != _SIDE or not line.isdecimal() for line in lines):
        return False
    grid = [[int(digit) for digit in line] for line in lines]
    cells = list(product(range(_SIDE), repeat=2))
    units = [[cell for cell in cells if cell[0] == i] for i in range(_SIDE)]
    units += [[cell for cell in cells if cell[1] == j] for j in range(_SIDE)]
    units += [
        [cell for cell in cells if (cell[0] // _BOX, cell[1] // _BOX) == box]
        for box in product(range(_SIDE // _BOX), repeat=2)
    ]
    digits = set(range(1, _SIDE + 1))
    return all({grid[i][j] for i, j in unit} == digits for unit in units) and all(
        given[i][j] in (0, grid[i][j]) for i, j in cells
    )
