"""Messages or raw text to a prompt's token ids, through the checkpoint's own chat template.

Needs no torch: the template is rendered by Transformers' renderer, the text encoded by the
tokenizers library. What a user types is never a control token: see `PromptBuilder.encode`.
"""

import json
import re
import secrets
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from app.errors import BadRequest, ContextLengthExceeded


class PromptBuilder:
    """A checkpoint's tokenizer and chat template."""

    def __init__(self, model: str) -> None:
        """Reads the files of a folder or a Hugging Face id; raises OSError if one is missing."""
        self.tokenizer = Tokenizer.from_file(str(_model_file(model, "tokenizer.json")))
        # The same tokenizer to which "<turn|>" is six characters.
        self._literal = Tokenizer.from_str(self.tokenizer.to_str())
        self._literal.encode_special_tokens = True
        config = json.loads(_model_file(model, "tokenizer_config.json").read_text())
        self._special = {
            name: token if isinstance(token, str) else token["content"]
            for name, token in config.items()
            if name.endswith("_token") and token is not None
        }
        self._template = _model_file(model, "chat_template.jinja").read_text()
        added = self.tokenizer.get_added_tokens_decoder()
        self._control_ids = frozenset(added)
        control = [token.content for token in added.values()]
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))

    def chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to where the model answers."""
        typed: list[str] = []
        nonce = secrets.token_hex(8)
        marked = [
            {**message, "content": self._mark(message["content"], nonce, typed)}
            for message in messages
        ]
        try:
            rendered: list[str] = render_jinja_template(
                [marked],
                chat_template=self._template,
                add_generation_prompt=True,
                **self._special,  # type: ignore[arg-type]  # names that the template uses
            )[0]  # type: ignore[assignment]  # annotated as a string, is a list and a list
        except (TemplateError, TypeError, ValueError) as error:
            raise BadRequest(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        tokens: list[int] = []
        # Odd parts are what a user typed that looks like a control token.
        for index, part in enumerate(re.split(f"\ue000{nonce}:([0-9]+)\ue001", rendered[0])):
            tokens += self.text(typed[int(part)]) if index % 2 else self._encode(part)
        return tokens

    def text(self, text: str) -> list[int]:
        """Token ids of raw text, in which nothing is a control token."""
        text = _encodable(text)
        tokens = _ids(self._literal, text)
        if self._control_ids.isdisjoint(tokens):
            return tokens
        # A tokenizer may have a control token among its words too; its characters are not it.
        return [token for character in text for token in _ids(self._literal, character)]

    def raw(self, text: str) -> list[int]:
        """Token ids of a raw completion prompt: the beginning-of-text token, then the text."""
        first = self.tokenizer.token_to_id(self._special.get("bos_token", ""))
        return [*([] if first is None else [first]), *self.text(text)]

    def _encode(self, text: str) -> list[int]:
        return _ids(self.tokenizer, _encodable(text))

    def _mark(self, text: str, nonce: str, typed: list[str]) -> str:
        """Put a place-holder that no user can guess where a control token is typed as text."""

        def mark(match: re.Match[str]) -> str:
            typed.append(match.group())
            return f"\ue000{nonce}:{len(typed) - 1}\ue001"

        return self._control.sub(mark, text)


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


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """As a batch of one, which lets other threads run meanwhile: `encode` holds up them all."""
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return list(encoding.ids)


def _encodable(text: str) -> str:
    """Lone surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _model_file(model: str, name: str) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, name))
