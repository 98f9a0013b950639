"""The tools of a response, under the names by which the model knows them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from app.dialects.item_turns import shown_name
from app.dialects.responses.schema import FunctionTool, NamespaceTool, ResponseRequest
from app.prompting.conversation import Tool


def offered_functions(body: ResponseRequest) -> Iterator[tuple[str | None, FunctionTool, str]]:
    """Yields the functions that the model may call: the namespace, the function, its field.

    There are none if the tool choice forbids them all.
    """
    if body.tool_choice == "none":
        return
    for index, tool in enumerate(body.tools or []):
        match tool:
            case FunctionTool():
                yield None, tool, f"tools.{index}"
            case NamespaceTool():
                for inner, function in enumerate(tool.tools):
                    if isinstance(function, FunctionTool):
                        yield tool.name, function, f"tools.{index}.tools.{inner}"


def offered_tools(body: ResponseRequest) -> list[Tool]:
    """Returns the functions that the model may call, under the names by which it knows them."""
    return [
        replace(function.tool(field), name=shown_name(namespace, function.name))
        for namespace, function, field in offered_functions(body)
    ]


def namespaces(body: ResponseRequest) -> dict[str, tuple[str | None, str]]:
    """Returns the namespace and name of each function, by every name that the model may use for it.

    These are the name by which it knows the function and, if no other has the same, its plain name.
    """
    functions = [(namespace, function.name) for namespace, function, _ in offered_functions(body)]
    plain = Counter(name for _, name in functions)
    names = {name: (namespace, name) for namespace, name in functions if plain[name] == 1}
    return names | {shown_name(*each): each for each in functions}
