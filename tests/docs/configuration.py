"""The tables of docs/configuration.md, made from the settings.

`python -m tests.docs.configuration` prints them. test_configuration.py holds the page against them.
"""

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from app.settings import PREFIX, Settings
from engine.config import EngineConfig

_BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def tables() -> str:
    """Returns a table of the front end's settings and one of the worker's, with headings."""
    worker = EngineConfig.model_fields
    ours = {name: field for name, field in Settings.model_fields.items() if name not in worker}
    return f"## The server\n\n{_table(ours)}\n\n## The model and its worker\n\n{_table(worker)}"


def _table(fields: dict[str, FieldInfo]) -> str:
    rows = [
        f"| `{PREFIX}{name.upper()}` | {_default(field)} | {_allowed(field)} | {_text(field)} |"
        for name, field in fields.items()
    ]
    return "\n".join(["| variable | default | allowed | |", "|---|---|---|---|", *rows])


def _default(field: FieldInfo) -> str:
    value = str(field.default)
    if field.default is True or field.default is False:
        value = value.lower()
    return "not set" if value in ("", "None") else f"`{value}`"


def _allowed(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = [
        text.format(getattr(rule, name))
        for rule in field.metadata
        for name, text in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join(bounds)


def _choices(annotation: Any) -> Iterable[str]:
    if annotation is bool:
        return "true", "false"
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _text(field: FieldInfo) -> str:
    text = field.description or ""
    for mark, escaped in (("|", "\\|"), ("*", "\\*"), ("<", "&lt;")):
        text = text.replace(mark, escaped)
    return text


if __name__ == "__main__":
    print(tables())
