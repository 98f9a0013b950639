"""Turns a conversation or a raw text into a prompt's token ids.

The checkpoint's own chat template is rendered by Transformers' renderer, which needs no torch. The
template alone says how a prompt ends. A text that a client sends never becomes a control token,
wherever in a message or a tool it is.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from app.chat_format.gemma import ANSWER_ENDS, ends_in_thought, with_text_before_call
from app.errors import BadRequest, ContextLengthExceeded, short
from app.prompting.conversation import (
    Conversation,
    ImagePart,
    Tool,
    ToolResult,
    Turn,
    characters_of,
)
from app.prompting.images import ImageReader, Picture
from app.prompting.labels import Labels
from app.prompting.marks import Marks
from app.prompting.messages import (
    images_of,
    shown_conversation,
    template_messages,
    template_tools,
)
from app.prompting.readable import readable
from app.prompting.template import ChatTemplate, find_template
from app.prompting.vocabulary import Vocabulary
from app.threads import Pool
from engine.messages import Image
from engine.sizing.dimensions import read_dimensions
from engine.sizing.model_files import ModelFiles, ModelFilesError

logger = logging.getLogger(__name__)

# Of all texts that a prompt is made of. Tokenising one character takes up to 350 bytes of memory.
MOST_CHARACTERS = 4 * 2**20
_LONG_TOKEN = 16  # characters of a token, for an estimate that is rather too small


@dataclass(frozen=True)
class Prompt:
    """The model's input. If `thinking`, it ends inside a thought, which the answer continues.

    `end_tokens` are the control tokens with which the chat format ends an answer.
    """

    tokens: list[int]
    thinking: bool = False
    images: Sequence[Image] = ()
    end_tokens: Sequence[int] = ()


class PromptBuilder:
    """A checkpoint's tokenizer, chat template and image processor."""

    def __init__(
        self,
        model: str,
        image_hosts: Sequence[str] = (),
        *,
        sees: bool = True,
        template_file: Path | None = None,
        revision: str = "",
    ) -> None:
        """Read the files of a folder or a Hugging Face id.

        Images are fetched from `image_hosts` only. Unless `sees`, every image is refused. The chat
        template is the one in `template_file`, if given, and else the checkpoint's. `revision` is
        that of a checkpoint on the hub.

        Logs a warning if the tokenizer has tokens that the model lacks. Raises ModelFilesError or
        DimensionsError if a file is missing, damaged or has a wrong value, and
        TemplateUnreadableError if the template can't be used.
        """
        files = ModelFiles(model, revision)
        files.refuse_adapter()
        self.vocabulary = Vocabulary(files.file("tokenizer.json"))
        config = files.json("tokenizer_config.json")
        special = _special_tokens(config)
        self._first = _first_tokens(config, special.get("bos_token"), self.vocabulary)
        self._template = find_template(model, special, template_file, revision)
        sources = {} if self._template is None else self._template.sources
        parts = [self.vocabulary.tokenizer.to_str(), json.dumps(sources, sort_keys=True)]
        # Of what makes tokens of messages, and text of tokens.
        self.digest = blake2b("".join(parts).encode(), digest_size=8).hexdigest()
        self._images = ImageReader.find(model, image_hosts, sees=sees, revision=revision)
        self.vocab_size = read_dimensions(files.file("config.json")).vocab_size  # the model's
        _warn_of_tokens(self.vocabulary, self.vocab_size)
        self.labels = Labels.find(self.vocabulary, self.vocab_size)
        # With this token the chat format ends a turn, unless the tokenizer lacks it.
        self.end_of_turn = next(iter(self.vocabulary.control_ids(ANSWER_ENDS)), None)

    @property
    def sees(self) -> bool:
        """Returns whether the model takes images."""
        return self._images.sees

    def images(self, conversation: Conversation, param: str = "messages") -> list[ImagePart]:
        """Returns the images that the prompt of a conversation has, in their order.

        The order is that of the turns as the template shows them. Raises BadRequest, naming the
        request's field `param`, if it has images and there is no template, or the conversation is
        larger than any prompt.
        """
        if not images_of(conversation):
            return []  # as nearly always: `chat` checks the rest
        _check_size(conversation, (), param)
        template = self._chat_template(param)
        return images_of(shown_conversation(readable(conversation, sees=self.sees), template))

    async def pictures(self, images: Sequence[ImagePart], pool: Pool) -> list[Picture]:
        """Returns the pictures of `images`, which `pool` decodes. Raises BadRequest."""
        return await self._images.read(images, pool)

    def chat(
        self,
        conversation: Conversation,
        tools: Sequence[Tool] = (),
        *,
        pictures: Sequence[Picture] = (),
        thinking: bool = False,
        continues: bool = False,
        options: Mapping[str, Any] | None = None,
        param: str = "messages",
        context_length: int | None = None,
    ) -> Prompt:
        """Returns the prompt of a conversation, up to the beginning of the model's answer.

        `pictures` are those of the conversation's `images`. If it `continues`, the answer goes on
        with the conversation's last turn. `options` are further variables of the chat template.
        Raises BadRequest, naming the request's field `param`, if there is no template, the template
        refuses the conversation, or it is nested too deeply. Raises ContextLengthExceeded before
        the text becomes tokens if it is certain not to fit into `context_length`.
        """
        _check_size(conversation, tools, param)
        template = self._chat_template(param)
        _check_names(tools)
        shown = shown_conversation(readable(conversation, sees=self.sees), template)
        continues = continues and bool(shown) and _may_continue(shown[-1])
        if context_length is not None:
            _check_fits(len(shown), len(shown), "messages", context_length, param)
        marks = Marks(self.vocabulary)
        messages = marks.marked(template_messages(shown, template))
        moved = marks.moved_texts(messages) if template.text_follows_results else {}
        if continues:
            messages[-1]["content"] += marks.end
        try:
            text = template.render(
                messages,
                marks.marked(template_tools(tools, template)),
                thinking=thinking,
                generation_prompt=not continues,
                options=marks.marked(dict(options or {})),
            )
        except RecursionError as error:
            raise BadRequest(
                "Messages or tools are nested too deeply for the model's chat template.",
                param=param,
            ) from error
        except (TemplateError, TypeError, ValueError) as error:
            raise BadRequest(
                f"The model's chat template refuses these messages: {error}", param=param
            ) from error
        for mark, before_call in moved.items():
            text = with_text_before_call(text, mark, before_call)
        if continues:
            text = text.partition(marks.end)[0]
        self._check_length(marks.length(text), context_length, param)
        tokens, images = self._images.insert(marks.tokens(text), pictures, param)
        ends = self.vocabulary.control_ids(ANSWER_ENDS)
        return Prompt(tokens, ends_in_thought(text), images, ends)

    def raw(self, text: str, context_length: int | None = None, param: str = "prompt") -> Prompt:
        """Returns a raw completion's prompt: the beginning-of-text token, then the text.

        Raises ContextLengthExceeded if the text is certain not to fit into `context_length`.
        """
        return Prompt([*self._first, *self.raw_tokens(text, context_length, param)])

    def raw_tokens(
        self, text: str, context_length: int | None = None, param: str = "prompt"
    ) -> list[int]:
        """Returns the tokens of a raw text. Raises ContextLengthExceeded as `raw` does."""
        self._check_length(len(text), context_length, param)
        return self.vocabulary.encode_literally(text)

    def _chat_template(self, param: str) -> ChatTemplate:
        if self._template is None:
            raise BadRequest(
                "The model has no chat template, so it takes no chats: use /v1/completions, or "
                "start the server with --chat-template FILE.",
                param=param,
                code="no_chat_template",
            )
        return self._template

    def _check_length(self, characters: int, context_length: int | None, param: str) -> None:
        """Raises ContextLengthExceeded if a text of so many characters can't be a prompt.

        It then has more tokens than the context even if each is the longest one of the vocabulary.
        """
        if characters > MOST_CHARACTERS:
            raise _too_large(characters, param)
        if context_length is not None:
            least = math.ceil(characters / self.vocabulary.longest)
            _check_fits(least, characters, "characters", context_length, param)


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts of the special tokens in a `tokenizer_config.json`, by their keys.

    Raises ModelFilesError, which names the key, if a value is not a token.
    """
    special = {}
    for name, value in config.items():
        if not name.endswith("_token") or name.startswith("add_"):
            continue
        match value:
            case None:
                pass
            case str() | {"content": str()}:
                special[name] = value if isinstance(value, str) else value["content"]
            case _:
                raise ModelFilesError(
                    f"tokenizer_config.json: {name} is {value!r}; it must be a token's text, or an "
                    "object with the text as content"
                )
    return special


def _first_tokens(config: Mapping[str, Any], bos: str | None, vocabulary: Vocabulary) -> list[int]:
    """Returns the tokens with which a raw completion's prompt begins: one or none.

    It is the beginning-of-text token, unless add_bos_token is false. In that case, as in
    Transformers, tokenizer.json decides. Raises ModelFilesError if a value is wrong.
    """
    adds = config.get("add_bos_token")
    if not isinstance(adds, bool | None):
        raise ModelFilesError(
            f"tokenizer_config.json: add_bos_token is {adds!r}; it must be true or false"
        )
    if bos is None:
        return []
    token = vocabulary.tokenizer.token_to_id(bos)
    if token is None:
        raise ModelFilesError(
            f"tokenizer_config.json: bos_token is {bos!r}, which is not a token of tokenizer.json"
        )
    return [] if adds is False and vocabulary.first_token != token else [token]


def _warn_of_tokens(vocabulary: Vocabulary, vocab_size: int) -> None:
    lacking = vocabulary.beyond(vocab_size)
    if lacking:
        logger.warning(
            "the tokenizer has %d token%s that the model lacks, with ids from %d to %d, because "
            "vocab_size is %d; prompts with such a token are refused",
            len(lacking),
            "" if len(lacking) == 1 else "s",
            lacking[0],
            lacking[-1],
            vocab_size,
        )


def _may_continue(last: Turn | ToolResult) -> bool:
    return isinstance(last, Turn) and last.role == "assistant" and not last.calls


def _check_names(tools: Iterable[Tool]) -> None:
    """Raises BadRequest if a call could mean either of two tools."""
    for name, times in Counter(tool.name for tool in tools).items():
        if times > 1:
            raise BadRequest(
                f"tools: {times} tools have the name {short(name)!r}; names must differ.",
                param="tools",
            )


def _check_size(conversation: Conversation, tools: Iterable[Tool], param: str) -> None:
    """Raises ContextLengthExceeded if all texts together are larger than any prompt.

    A body is never so large, but a conversation may be that refers to kept items many times.
    """
    characters = sum(map(characters_of, conversation))
    characters += sum(len(tool.description or "") for tool in tools)
    if characters > MOST_CHARACTERS:
        raise _too_large(characters, param)


def _too_large(characters: int, param: str) -> ContextLengthExceeded:
    least = characters // _LONG_TOKEN
    return ContextLengthExceeded(
        f"This model's maximum context length is exceeded: your prompt is too long. Its "
        f"{characters} characters, of which at most {MOST_CHARACTERS} are read, were not counted "
        f"as tokens; an estimate is {least} tokens.",
        param=param,
        tokens=least,
    )


def _check_fits(least: int, size: int, unit: str, context_length: int, param: str) -> None:
    """Raises ContextLengthExceeded if `least` tokens, which `size` units have, do not fit."""
    if least > context_length:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, your prompt "
            f"is too long: it has at least {least} tokens, estimated from its {size} {unit}.",
            param=param,
            tokens=least,
        )


def answer_room(
    prompt: list[int], wanted: int | None, context_length: int, *, suffix_tokens: int, param: str
) -> int:
    """Returns how many tokens the answer may have: `wanted`, or less if the context is full.

    The context also holds the suffix. Raises ContextLengthExceeded, naming the request's field
    `param`, if there is no room at all.
    """
    most = max(context_length - suffix_tokens - 1, 0)  # an answer has at least one token
    if len(prompt) > most:
        # Clients find out by the words "maximum context length", and then shorten the conversation.
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens. However, your prompt "
            f"is too long: it has {len(prompt)} tokens; at most {most} leave room for an answer.",
            param=param,
            tokens=len(prompt),
        )
    room = most + 1 - len(prompt)
    return room if wanted is None else min(wanted, room)
