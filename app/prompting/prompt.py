"""Turns a conversation or a raw text into a prompt's token ids.

The checkpoint's own chat template is rendered by Transformers' renderer, which needs no torch. This
is the only file that knows the arguments of a template. A text that a client sends never becomes a
control token, wherever in a message or a tool it is.
"""

import json
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from app.chat_format.gemma import EMPTY_THOUGHT, MODEL_TURN, ends_in_thought
from app.errors import BadRequest, ContextLengthExceeded
from app.prompting.conversation import (
    Content,
    Conversation,
    ImagePart,
    TextPart,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
)
from app.prompting.images import ImageReader
from app.prompting.model_files import model_file
from app.prompting.vocabulary import Vocabulary
from engine.messages import Image


@dataclass(frozen=True)
class Prompt:
    """The model's input. If `thinking`, it ends inside a thought, which the answer continues."""

    tokens: list[int]
    thinking: bool = False
    images: Sequence[Image] = ()


class PromptBuilder:
    """A checkpoint's tokenizer, chat template and image processor."""

    def __init__(self, model: str, image_hosts: Sequence[str] = (), *, sees: bool = True) -> None:
        """Read the files of a folder or a Hugging Face id. Raises OSError if one is missing.

        Images are fetched from `image_hosts` only. Unless `sees`, every image is refused.
        """
        self.vocabulary = Vocabulary(model_file(model, "tokenizer.json"))
        config = json.loads(model_file(model, "tokenizer_config.json").read_text())
        self._special = {
            name: token if isinstance(token, str) else token["content"]
            for name, token in config.items()
            if name.endswith("_token") and token is not None
        }
        self._template = model_file(model, "chat_template.jinja").read_text()
        self._images = ImageReader.find(model, image_hosts, sees=sees)

    def chat(
        self,
        conversation: Conversation,
        tools: Sequence[Tool] = (),
        *,
        thinking: bool = False,
        param: str = "messages",
    ) -> Prompt:
        """Returns the prompt of a conversation, up to the beginning of the model's answer.

        Raises BadRequest if an image is refused. Raises BadRequest, naming the request's field
        `param`, if the template refuses the conversation or it is nested too deeply.
        """
        _check_names(tools)
        pictures = self._images.read(list(_images(conversation)))
        typed: list[str] = []
        nonce = secrets.token_hex(8)
        messages = [template_message(each) for each in conversation]
        functions = [template_tool(tool) for tool in tools]
        try:
            rendered: list[str] = render_jinja_template(
                [self._marked(messages, nonce, typed)],
                tools=self._marked(functions, nonce, typed) or None,
                chat_template=self._template,
                add_generation_prompt=True,
                enable_thinking=thinking,
                **self._special,  # type: ignore[arg-type]  # the names that the template uses
            )[0]  # type: ignore[assignment]  # annotated as a string, but it is two lists
        except RecursionError as error:
            raise BadRequest(
                "Messages or tools are nested too deeply for the model's chat template.",
                param=param,
            ) from error
        except (TemplateError, TypeError, ValueError) as error:
            raise BadRequest(
                f"The model's chat template refuses these messages: {error}", param=param
            ) from error
        text = rendered[0]
        if not thinking and text.endswith(MODEL_TURN):
            # Without it the model might think all the same, and its answer would come late.
            text += EMPTY_THOUGHT
        literally = {part: self.vocabulary.encode_literally(part) for part in set(typed)}
        # Every part but the first begins with a mark, which stands for a typed text.
        first, *marked = text.split(f"\ue000{nonce}:")
        tokens = self.vocabulary.encode(first)
        for each in marked:
            number, _, plain = each.partition("\ue001")
            tokens += [*literally[typed[int(number)]], *self.vocabulary.encode(plain)]
        tokens, images = self._images.insert(tokens, pictures, param)
        return Prompt(tokens, ends_in_thought(text), images)

    def raw(self, text: str) -> Prompt:
        """Returns a raw completion's prompt: the beginning-of-text token, then the text."""
        bos = self._special.get("bos_token")
        first = [] if bos is None else self.vocabulary.encode(bos)
        return Prompt([*first, *self.vocabulary.encode_literally(text)])

    def _marked(self, value: Any, nonce: str, typed: list[str]) -> Any:
        """Returns the value with all of its strings marked, including the keys of mappings."""
        match value:
            case str():
                return self._mark(value, nonce, typed)
            case dict():
                return {
                    self._mark(key, nonce, typed): self._marked(each, nonce, typed)
                    for key, each in value.items()
                }
            case list():
                return [self._marked(each, nonce, typed) for each in value]
        return value

    def _mark(self, text: str, nonce: str, typed: list[str]) -> str:
        """Replace every control token in a typed text by a mark that no user can guess.

        A control token's beginning at the end of the text is replaced too, because the template may
        put another text right behind it.
        """

        def mark(part: str) -> str:
            typed.append(part)
            return f"\ue000{nonce}:{len(typed) - 1}\ue001"

        text = self.vocabulary.typed_control.sub(lambda match: mark(match.group()), text)
        begun = self.vocabulary.begun_control(text)
        return text[: begun.start] + mark(text[begun]) + text[begun.stop :] if text[begun] else text


def _check_names(tools: Iterable[Tool]) -> None:
    """Raises BadRequest if a call could mean either of two tools."""
    for name, times in Counter(tool.name for tool in tools).items():
        if times > 1:
            raise BadRequest(
                f"tools: {times} tools have the name {name!r}; names must differ.", param="tools"
            )


def template_message(each: Turn | ToolResult) -> dict[str, Any]:
    """Returns a turn or a result in the form that chat templates know: OpenAI's message."""
    if isinstance(each, ToolResult):
        fields = {"role": "tool", "tool_call_id": each.call_id, "name": each.name}
    else:
        fields = {"role": each.role, "name": each.name, "reasoning_content": each.thought or None}
    message: dict[str, Any] = {key: value for key, value in fields.items() if value is not None}
    message["content"] = _content(each.content)
    if isinstance(each, Turn) and each.calls:
        message["tool_calls"] = [_call(call) for call in each.calls]
    return message


def _content(content: Content) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
        for part in content
    ]


def _call(call: ToolCall) -> dict[str, Any]:
    """Returns a call with its arguments as a mapping, unlike OpenAI's, where they are a text."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def template_tool(tool: Tool) -> dict[str, Any]:
    """Returns a tool in the form that chat templates know: OpenAI's function tool."""
    fields = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    function = {key: value for key, value in fields.items() if value is not None}
    return {"type": "function", "function": function}


def _images(conversation: Conversation) -> Iterable[ImagePart]:
    """Yields the images in the order in which the template shows them."""
    for each in conversation:
        if not isinstance(each.content, str):
            yield from (part for part in each.content if isinstance(part, ImagePart))


def answer_room(prompt: list[int], wanted: int | None, context_length: int, *, param: str) -> int:
    """Returns how many tokens the answer may have: `wanted`, or less if the context is full.

    Raises ContextLengthExceeded, naming the request's field `param`, if there is no room at all.
    """
    room = context_length - len(prompt)
    if room < 1:
        raise ContextLengthExceeded(
            f"The prompt has {len(prompt)} tokens; at most {context_length - 1} fit the context "
            f"of {context_length} tokens together with an answer.",
            param=param,
        )
    return room if wanted is None else min(wanted, room)
