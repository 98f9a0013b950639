"""Messages or raw text to a prompt's token ids, through the checkpoint's own chat template.

Needs no torch: the template is rendered by Transformers' renderer. What a user types is never a
control token, wherever in a message or a tool it stands.
"""

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from app.errors import BadRequest, ContextLengthExceeded
from app.gemma_format import EMPTY_THOUGHT, MODEL_TURN, ends_in_thought
from app.images import ImagePart, ImageReader
from app.model_files import model_file
from app.vocabulary import Vocabulary
from engine.messages import Image

Message = dict[str, Any]  # in the chat template's terms


@dataclass(frozen=True)
class Prompt:
    """What the model reads. `thinking`: it ends inside a thought, which the answer goes on with."""

    tokens: list[int]
    thinking: bool = False
    images: Sequence[Image] = ()


class PromptBuilder:
    """A checkpoint's tokenizer, chat template and image processor."""

    def __init__(self, model: str, image_hosts: Sequence[str] = (), *, sees: bool = True) -> None:
        """Reads the files of a folder or a Hugging Face id; raises OSError if one is missing.

        Unless it `sees`, images are refused whatever the files say.
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
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        *,
        thinking: bool = False,
        param: str = "messages",
    ) -> Prompt:
        """A conversation, up to where the model answers.

        Messages and tools are what the template is given: OpenAI's, but that the arguments of a
        tool call are a mapping, and a content's images are `image_part`s. Raises BadRequest for
        images that can't be taken and, blaming the request's field `param`, if the template
        refuses the messages or can't go as deep as they or the tools are nested.
        """
        _check_names(tools)
        messages, parts = _without_images(messages)
        pictures = self._images.read(parts)
        typed: list[str] = []
        nonce = secrets.token_hex(8)
        try:
            rendered: list[str] = render_jinja_template(
                [self._marked(messages, nonce, typed)],
                tools=self._marked(list(tools), nonce, typed) or None,
                chat_template=self._template,
                add_generation_prompt=True,
                enable_thinking=thinking,
                **self._special,  # type: ignore[arg-type]  # names that the template uses
            )[0]  # type: ignore[assignment]  # annotated as a string, is a list and a list
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
            # Without it the model may think all the same, and its answer would come late.
            text += EMPTY_THOUGHT
        literally = {part: self.vocabulary.encode_literally(part) for part in set(typed)}
        # All but the first begin with what a user typed that looks like a control token.
        first, *marked = text.split(f"\ue000{nonce}:")
        tokens = self.vocabulary.encode(first)
        for each in marked:
            number, _, plain = each.partition("\ue001")
            tokens += [*literally[typed[int(number)]], *self.vocabulary.encode(plain)]
        tokens, images = self._images.place(tokens, pictures, param)
        return Prompt(tokens, ends_in_thought(text), images)

    def raw(self, text: str) -> Prompt:
        """A raw completion's prompt: the beginning-of-text token, then the text."""
        bos = self._special.get("bos_token")
        first = [] if bos is None else self.vocabulary.encode(bos)
        return Prompt([*first, *self.vocabulary.encode_literally(text)])

    def _marked(self, value: Any, nonce: str, typed: list[str]) -> Any:
        """The same value with all its strings marked, a mapping's keys among them."""
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
        """Put a place-holder that no user can guess where a control token is typed as text.

        Also where one begins at the text's end: a template may put another text right behind it.
        """

        def mark(part: str) -> str:
            typed.append(part)
            return f"\ue000{nonce}:{len(typed) - 1}\ue001"

        text = self.vocabulary.typed_control.sub(lambda match: mark(match.group()), text)
        begun = self.vocabulary.begun_control(text)
        return text[: begun.start] + mark(text[begun]) + text[begun.stop :] if text[begun] else text


def _check_names(tools: Sequence[dict[str, Any]]) -> None:
    """Raises BadRequest if a call could mean either of two tools."""
    names = Counter(tool["function"]["name"] for tool in tools)
    for name, times in names.items():
        if times > 1:
            raise BadRequest(f"tools: {times} of them are named {name!r}.", param="tools")


def image_part(url: str, param: str) -> dict[str, Any]:
    """A part of a message's content: an image, and the request's field that has it."""
    return {"type": "image", "image": ImagePart(url, param)}


def _without_images(messages: Sequence[Message]) -> tuple[list[Message], list[ImagePart]]:
    """The messages as the template knows them, and the images that it shows, in its order."""
    images: list[ImagePart] = []

    def taken(part: dict[str, Any]) -> dict[str, Any]:
        if "image" not in part:
            return part
        images.append(part["image"])
        return {"type": "image"}

    return [
        {**message, "content": [taken(part) for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ], images


def answer_room(prompt: list[int], wanted: int | None, context_length: int, *, param: str) -> int:
    """How many tokens the answer may have: what is wanted, cut to what the context leaves.

    Raises ContextLengthExceeded, which blames the request's field `param`.
    """
    room = context_length - len(prompt)
    if room < 1:
        raise ContextLengthExceeded(
            f"The prompt has {len(prompt)} tokens; at most {context_length - 1} fit the context "
            f"of {context_length} tokens together with an answer.",
            param=param,
        )
    return room if wanted is None else min(wanted, room)
