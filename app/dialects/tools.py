"""Function tools as several dialects have them: the name, the function, the tool choice."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from app.answer.tool_schemas import checked_schema
from app.dialects.fields import JsonObject, Strict, quoted, unsupported
from app.prompting.conversation import Tool

# OpenAI's characters, and `.` and `:`, which tool servers put behind a namespace.
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


class Function(Strict):
    """A function, as OpenAI's chat and Responses APIs describe it."""

    name: ToolName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    _parameters = field_validator("parameters")(checked_schema)

    def tool(self, field: str) -> Tool:
        """Returns the function as a tool. `field` is the request's field with its parameters."""
        return Tool(self.name, self.description, self.parameters, bool(self.strict), field)


def _supported_choice(value: Any) -> Any:
    if value not in (None, "none", "auto"):
        raise unsupported("", f'{quoted(value)} is not supported; allowed: null, "none", "auto"')
    return value


ToolChoice = Annotated[Any, AfterValidator(_supported_choice)]  # only what Easel can guarantee
