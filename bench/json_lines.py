"""Files of questions for a measurement, with one JSON object a line."""

from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import AfterValidator, BaseModel, Field, ValidationError


def _no_total(task: str) -> str:
    if task == "all":
        raise ValueError("'all' means all tasks")
    return task


# What a line's `task` may be: the last row of a table has all of them.
Task = Annotated[str, Field(min_length=1), AfterValidator(_no_total)]

L = TypeVar("L", bound=BaseModel)


def json_lines(file: Path, kind: type[L]) -> list[L]:
    """Returns the lines of a file, each of this kind.

    Raises typer.BadParameter, which names the line that is wrong.
    """
    lines = []
    for number, text in enumerate(file.read_text().splitlines(), 1):
        if not text.strip():
            continue
        try:
            lines.append(kind.model_validate_json(text))
        except ValidationError as error:
            fault = error.errors()[0]
            where = "".join(f"{key}: " for key in fault["loc"])
            reason = f"{where}{fault['msg'].removeprefix('Value error, ')}"
            raise typer.BadParameter(f"{file}, line {number}: {reason}") from error
    if not lines:
        raise typer.BadParameter(f"{file} has no line")
    return lines
