"""Sudoku of 4x4 and 6x6: random grids, their clues, and whether a text solves one.

A grid is written as lines of digits without spaces, with 0 for an empty cell.
"""

from itertools import product
from random import Random

_BOXES = {4: (2, 2), 6: (2, 3)}  # rows and columns of a box, by the side of the grid


def random_grid(side: int, random: Random) -> list[list[int]]:
    """Returns a filled grid, made from the simplest one by moves that keep it right."""
    rows, columns = _BOXES[side]
    digits = random.sample(range(1, side + 1), side)
    # Rows may be swapped in their band, and bands with each other. So may columns.
    down = _shuffled_lines(side // rows, rows, random)
    across = _shuffled_lines(side // columns, columns, random)
    return [[digits[(columns * (i % rows) + i // rows + j) % side] for j in across] for i in down]


def _shuffled_lines(bands: int, size: int, random: Random) -> list[int]:
    return [
        band * size + line
        for band in random.sample(range(bands), bands)
        for line in random.sample(range(size), size)
    ]


def clues(grid: list[list[int]], count: int, random: Random) -> list[list[int]]:
    """Returns the grid with so many of its cells, and 0 in all others."""
    side = len(grid)
    kept = set(random.sample(list(product(range(side), repeat=2)), count))
    return [[n if (i, j) in kept else 0 for j, n in enumerate(row)] for i, row in enumerate(grid)]


def written(grid: list[list[int]]) -> str:
    return "\n".join("".join(map(str, row)) for row in grid)


def solves(text: str, given: list[list[int]]) -> bool:
    """Returns whether the text is a filled grid that obeys the rules and keeps the clues."""
    side = len(given)
    lines = text.split("\n")
    if len(lines) != side or any(len(line) != side or not line.isdecimal() for line in lines):
        return False
    grid = [[int(digit) for digit in line] for line in lines]
    rows, columns = _BOXES[side]
    cells = list(product(range(side), repeat=2))
    units = [[cell for cell in cells if cell[0] == i] for i in range(side)]
    units += [[cell for cell in cells if cell[1] == j] for j in range(side)]
    units += [
        [cell for cell in cells if (cell[0] // rows, cell[1] // columns) == box]
        for box in product(range(side // rows), range(side // columns))
    ]
    digits = set(range(1, side + 1))
    return all({grid[i][j] for i, j in unit} == digits for unit in units) and all(
        given[i][j] in (0, grid[i][j]) for i, j in cells
    )
