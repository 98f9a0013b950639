"""Function tools as several dialects have them: the name and the function."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from app.dialects.fields import Fields, JsonObject
from app.dialects.tool_schemas import PatternRoom, check_schema
from app.prompting.conversation import Tool

M = TypeVar("M", bound=BaseModel)

# OpenAI's characters, and `.` and `:`, which tool servers put behind a namespace.
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]


def checked_if_strict(field: str) -> Callable[[M, ValidationInfo], M]:
    """Returns a validator for a tool that has its JSON schema in `field`.

    Only the schema of a strict tool is checked. Others are shown to the model as far as they go.
    The context of the validation, if any, is the room that the tools of a request share.
    """

    def check(tool: M, info: ValidationInfo) -> M:
        schema = getattr(tool, field)
        if getattr(tool, "strict", None) and schema is not None:
            try:
                check_schema(schema, info.context or PatternRoom())
            except ValueError as error:
                name = getattr(tool, "name", None)
                context = {"field": field, "message": str(error), "tool": name}
                raise PydanticCustomError("value_error", "{message}", context) from error
        return tool

    return check


class Function(Fields):
    """A function, as OpenAI's chat and Responses APIs describe it."""

    name: ToolName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None

    _parameters = model_validator(mode="after")(checked_if_strict("parameters"))

    def tool(self, field: str) -> Tool:
        """Returns the function as a tool. `field` is the request's field with the function."""
        return Tool(
            self.name, self.description, self.parameters, bool(self.strict), f"{field}.parameters"
        )


class OtherTool(Fields):
    """A tool of another type, which is ignored.

    Such tools run in the provider's service or in the client. Clients send several with every
    request.
    """

    type: str

    @model_validator(mode="after")
    def _is_ignored(self) -> "OtherTool":
        self._ignored = (self.type,)
        return self


def tool_type(value: Any) -> str:
    """Returns the tag of a tool's type."""
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return "(other)" if isinstance(kind, str) and kind != "function" else "(function)"
