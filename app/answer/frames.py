"""Frames: how a block looks after a denoising step, for clients that watch it being made.

A frame shows tokens as they are on the canvas. It knows no thoughts, calls or stop strings, which
are only certain in a finished answer.
"""

from dataclasses import dataclass
from typing import Any

from app.answer.figures import Figures
from app.answer.output import TokenText
from app.prompting.vocabulary import Vocabulary
from engine.messages import Block, Draft, StopReason


@dataclass(frozen=True)
class Frame:
    """A draft of a block, or the finished block if `settled` and `stopped` are set.

    `begun` are the bytes of a character that the blocks before have begun. `figures` are those of
    the answer up to these blocks.
    """

    choice: int
    figures: Figures
    begun: bytes
    block: int
    step: int
    tokens: list[int]
    accepted: list[bool]
    entropy: float
    settled: list[int] | None = None
    stopped: StopReason | None = None

    @classmethod
    def of_draft(cls, choice: int, figures: Figures, begun: bytes, draft: Draft) -> "Frame":
        made = (draft.index, draft.step, draft.tokens, draft.accepted, draft.entropy)
        return cls(choice, figures, begun, *made)

    @classmethod
    def of_block(cls, choice: int, figures: Figures, begun: bytes, block: Block) -> "Frame":
        """Returns the last frame of a block that came with the figures of its drafts."""
        assert block.entropy is not None
        assert block.settled is not None
        accepted = [True] * len(block.tokens)
        made = (block.index, block.denoising_steps, block.tokens, accepted, block.entropy)
        return cls(choice, figures, begun, *made, block.settled, block.stopped)

    def sent(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Returns the object `diffusion` of this frame's chunk."""
        texts = _texts(vocabulary, self.begun, self.tokens)
        shown = {
            "block": self.block,
            "step": self.step,
            "text": "".join(texts),
            "tokens": texts,
            "accepted": self.accepted,
            "entropy": round(self.entropy, 6),
        }
        if self.settled is None:
            return shown
        return {**shown, "settled": self.settled, "stopped": self.stopped}


def _texts(vocabulary: Vocabulary, begun: bytes, tokens: list[int]) -> list[str]:
    """Returns the text that each token completes. Control tokens have none.

    A character of several tokens belongs to its last one. If it is not completed, U+FFFD belongs to
    the token behind it, or to the last of all.
    """
    decoder = TokenText(vocabulary, begun)
    pieces = [decoder.add(token) for token in tokens]
    if pieces:
        pieces[-1] += decoder.end()
    return ["".join(piece for piece in each if isinstance(piece, str)) for each in pieces]
