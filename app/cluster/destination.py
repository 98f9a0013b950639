"""Which replica a request belongs to: by its conversation, or by what it refers to.

A replica keeps the prefixes of the conversations that it has answered, so all turns of a
conversation should reach the same one. A conversation is known by its beginning: the texts of its
system prompt and of its first turn. They are read as the dialects read them, so what Easel leaves
out of prompts is left out here too. Later turns, thoughts and tools do not count.

A request that refers to a kept response or to a running answer must reach the replica that has it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b

from app.dialects import item_turns
from app.dialects.anthropic import turns as anthropic_turns
from app.dialects.anthropic.schema import CountTokensRequest, MessagesRequest
from app.dialects.body import checked_size, parse
from app.dialects.chat import turns as chat_turns
from app.dialects.chat.control import ControlRequest
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.completions.schema import CompletionRequest
from app.dialects.decisions.schema import DecisionsRequest
from app.dialects.items import ItemReference
from app.dialects.responses.schema import InputTokensRequest, ResponseRequest
from app.dialects.systemone.schema import SystemOneRequest
from app.errors import ApiError
from app.prompting.conversation import (
    Content,
    Conversation,
    ImageFile,
    ImagePart,
    ImageUrl,
    TextPart,
    Turn,
)

_BEGINNING = 1024  # characters or token ids of a raw prompt that tell it from others
_KEPT = re.compile(r"(?:/v1)?/responses/([^/]+)(?:/input_items)?")


@dataclass(frozen=True)
class Destination:
    """Where a request belongs.

    Requests of the same `session` reach the same replica, and a request without one any. `held` has
    the ids of responses, items and answers that the request refers to, and takes precedence.
    """

    session: str = ""
    held: tuple[str, ...] = ()


def destination(path: str, body: bytes, most_text_bytes: int) -> Destination:
    """Returns where a request belongs, given its path and its body without an encoding.

    A request that is refused anyway, as for more than `most_text_bytes` of text, belongs to no
    replica. A large body takes seconds.
    """
    reader = _READERS.get(path.removeprefix("/v1"))
    if reader is not None:
        try:
            checked_size(body, most_text_bytes)
            return reader(body)
        except ApiError:
            return Destination()
    kept = _KEPT.fullmatch(path)
    return Destination() if kept is None else Destination(held=(kept[1],))


def _chat(body: bytes) -> Destination:
    value, _ = parse(body, ChatCompletionRequest)
    return _begins(chat_turns.conversation(value.messages))


def _control(body: bytes) -> Destination:
    value, _ = parse(body, ControlRequest)
    return Destination(held=(value.id,))


def _completion(body: bytes) -> Destination:
    value, _ = parse(body, CompletionRequest)
    return Destination(_digest([str(value.prompts[0][:_BEGINNING])]))


def _messages(body: bytes) -> Destination:
    value, _ = parse(body, MessagesRequest)
    return _begins(anthropic_turns.conversation(value))


def _count_tokens(body: bytes) -> Destination:
    value, _ = parse(body, CountTokensRequest)
    return _begins(anthropic_turns.conversation(value))


def _response(body: bytes) -> Destination:
    value, _ = parse(body, ResponseRequest)
    return _items(value)


def _input_tokens(body: bytes) -> Destination:
    value, _ = parse(body, InputTokensRequest)
    return _items(value)


def _items(value: ResponseRequest) -> Destination:
    earlier = value.previous_response_id
    referred = [item.id for item in value.items if isinstance(item, ItemReference)]
    if earlier is not None or referred:
        return Destination(held=(*([] if earlier is None else [earlier]), *referred))
    items = [item for item in value.items if not isinstance(item, ItemReference)]
    turns = item_turns.conversation([], items)
    return _begins([Turn("system", value.instructions or ""), *turns])


def _decisions(body: bytes) -> Destination:
    value, _ = parse(body, DecisionsRequest)
    return _begins(item_turns.conversation([], value.items))


def _systemone(body: bytes) -> Destination:
    value, _ = parse(body, SystemOneRequest)
    return _begins(value.conversation)


_READERS: dict[str, Callable[[bytes], Destination]] = {
    "/chat/completions": _chat,
    "/chat/completions/control": _control,
    "/completions": _completion,
    "/messages": _messages,
    "/messages/count_tokens": _count_tokens,
    "/responses": _response,
    "/responses/input_tokens": _input_tokens,
    "/decisions": _decisions,
    "/systemone": _systemone,
}


def _begins(conversation: Conversation) -> Destination:
    """Returns the destination of a conversation by its texts up to its first turn."""
    texts: list[str] = []
    for each in conversation:
        texts += _texts(each.content)
        if not (isinstance(each, Turn) and each.role in ("system", "developer")):
            break
    return Destination(_digest(texts))


def _texts(content: Content) -> Iterable[str]:
    if isinstance(content, str):
        yield content
        return
    for part in content:
        match part:
            case TextPart(text=text):
                yield text
            case ImagePart(source=ImageFile(base64=file)):
                yield file
            case ImagePart(source=ImageUrl(url=url)):
                yield url


def _digest(texts: Iterable[str]) -> str:
    whole = blake2b(digest_size=16)
    for text in texts:
        whole.update(f"{len(text)}:{text}".encode(errors="replace"))
    return whole.hexdigest()
