"""A checkpoint's chat template: where it is found, what it can show, how it is rendered.

Templates differ in what they show rightly. Google's published Gemma 4 template writes null as None,
for example, and drops parameters that are named like a keyword of JSON Schema. So a template is
tried once with small conversations when it is loaded, and is then given only what it can show.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from app.chat_format.gemma import IMAGE
from engine.sizing.model_files import ModelFiles, is_pointer, pointer_fault

Message = dict[str, Any]  # OpenAI's, but that a call's arguments are a mapping

_TOOL_USE = "tool_use"  # by this name some checkpoints have a second template, for tools
_DEFAULT = "default"
# Names of parameters that templates are known to take for keywords of a schema.
_KEYWORDS = (
    "description",
    "type",
    "properties",
    "required",
    "nullable",
    "items",
    "enum",
    "title",
    "format",
)


class TemplateUnreadableError(RuntimeError):
    """A chat template that was named or found can't be used. The text names its file."""


class Null:
    """Stands for null in a template that would write None. As text it is `null`."""

    def __str__(self) -> str:
        return "null"

    def __bool__(self) -> bool:
        return False


class ChatTemplate:
    """Renders conversations, once it has been compiled."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`sources` are templates by name, `special_tokens` what they may write, such as bos_token.

        Raises TemplateUnreadableError if one does not compile.
        """
        self.sources = sources
        self._special_tokens = special_tokens
        for name, source in sources.items():
            try:
                _compiled(source)
            except (TemplateError, RecursionError) as error:
                line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
                reason = getattr(error, "message", None) or str(error)
                raise TemplateUnreadableError(
                    f"the chat template {name!r} does not compile: {line}"
                    + " ".join(reason.split())
                ) from error

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        thinking: bool = False,
        generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Returns the prompt's text. Raises whatever the template raises.

        With `generation_prompt` it ends where the model answers. `options` are further variables.
        """
        source = self.sources.get(_TOOL_USE) if tools else None
        # Not by Transformers' renderer, which would show `Null` as "<Null>".
        return _compiled(source or self.sources[_DEFAULT]).render(
            messages=list(messages),
            tools=list(tools) or None,
            documents=None,
            add_generation_prompt=generation_prompt,
            **{**(options or {}), **self._special_tokens, "enable_thinking": thinking},
        )

    @cached_property
    def null(self) -> Any:
        """Returns what stands for null in arguments: None, or `Null` where None goes wrong."""
        return Null() if "None" in self._tried([_USER, _called({"probe": None})]) else None

    @cached_property
    def lost_names(self) -> frozenset[str]:
        """Returns the names of parameters that the template does not show."""
        parameters = {
            "type": "object",
            "properties": {name: {"type": "string", "description": name} for name in _KEYWORDS},
            "required": [],
        }

        def tool(properties: Mapping[str, Any]) -> dict[str, Any]:
            shown = {**parameters, "properties": properties}
            function = {"name": "probe", "description": "probe", "parameters": shown}
            return {"type": "function", "function": function}

        lost = set()
        for name in _KEYWORDS:
            # A parameter that is shown makes a difference.
            described = {name: {"type": "string", "description": "a parameter of the probe"}}
            if "a parameter of the probe" not in self._tried([_USER], [tool(described)]):
                lost.add(name)
        # A template that shows no parameter at all loses none by its name.
        plain = {"plain": {"type": "string", "description": "a parameter of the probe"}}
        shows = "a parameter of the probe" in self._tried([_USER], [tool(plain)])
        return frozenset(lost) if shows else frozenset()

    @cached_property
    def shows_result_images(self) -> bool:
        """Returns whether the template shows an image that is part of a tool's result."""
        content = [{"type": "text", "text": "result"}, {"type": "image"}]
        shown = self._tried([_USER, _called({}), _result(content)])
        return IMAGE in shown and not self.embeds_results

    @cached_property
    def embeds_results(self) -> bool:
        """Returns whether the template wants results inside the message that called.

        Such a template takes a tool's message for the turn of a role that Gemma does not know.
        """
        return "<|turn>tool" in self._tried([_USER, _called({}), _result("result")])

    @cached_property
    def text_follows_results(self) -> bool:
        """Returns whether the template shows a turn's text behind the results of its calls."""
        calling = {**_called({}), "content": "before"}
        if self.embeds_results:
            calling |= {"tool_responses": [{"name": "probe", "response": "result"}]}
        shown = self._tried([_USER, calling, _result("result")])
        return -1 < shown.find("result") < shown.find("before")

    def _tried(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        try:
            return self.render(messages, tools)
        except (TemplateError, TypeError, ValueError):
            return ""


def find_template(
    model: str,
    special_tokens: Mapping[str, str],
    file: Path | None = None,
    revision: str = "",
) -> ChatTemplate | None:
    """Returns a checkpoint's template, or the one in `file`; None if there is none.

    A checkpoint's is looked for where Transformers looks: in chat_template.jinja,
    chat_template.json and tokenizer_config.json, where it is a text or a list of named ones.
    `revision` is that of a checkpoint on the hub. Raises TemplateUnreadableError if a template
    can't be used, and ModelFilesError if a file is damaged or the hub can't be asked.
    """
    if file is not None:
        file = file.expanduser()
        sources = {_DEFAULT: _text(file)}
    else:
        file, sources = _sources(ModelFiles(model, revision))
    if file is None or _DEFAULT not in sources:
        return None
    try:
        return ChatTemplate(sources, special_tokens)
    except TemplateUnreadableError as error:
        raise TemplateUnreadableError(f"{file}: {error}") from error


def _compiled(source: str) -> Template:
    """Returns a template with what Transformers gives templates. It is compiled only once."""
    # Imported here, because Transformers takes half a second to import.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled: Template = _compile_jinja_template(source)
    return compiled


def _sources(files: ModelFiles) -> tuple[Path | None, dict[str, str]]:
    """Returns the file with the templates and the templates by name, or None and no templates."""
    path = files.optional_file("chat_template.jinja")
    if path is not None:
        return path, {_DEFAULT: _text(path)}
    for name in ("chat_template.json", "tokenizer_config.json"):
        path = files.optional_file(name)
        template = (files.optional_json(name) or {}).get("chat_template")
        match template:
            case None:
                continue
            case str():
                return path, {_DEFAULT: template}
            case list() if all(map(_is_named, template)):
                return path, {each["name"]: each["template"] for each in template}
        raise TemplateUnreadableError(
            f"{path}: chat_template is neither a text nor a list of objects with name and template"
        )
    return None, {}


def _is_named(template: Any) -> bool:
    match template:
        case {"name": str(), "template": str()}:
            return True
    return False


def _text(file: Path) -> str:
    try:
        if is_pointer(file):
            raise TemplateUnreadableError(pointer_fault(file))
        return file.read_text()
    except OSError as error:
        raise TemplateUnreadableError(
            f"{file}: the chat template can't be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise TemplateUnreadableError(
            f"{file}: the chat template can't be read: {error}"
        ) from error


_USER: Message = {"role": "user", "content": "question"}


def _called(arguments: Mapping[str, Any]) -> Message:
    function = {"name": "probe", "arguments": arguments}
    call = {"id": "1", "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _result(content: Any) -> Message:
    return {"role": "tool", "tool_call_id": "1", "name": "probe", "content": content}
