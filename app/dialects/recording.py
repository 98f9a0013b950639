"""The record of an answer, with which `easel replay` makes it again."""

from collections.abc import Iterable, Sequence
from typing import Any

from app.answer.generation import Finished
from app.dialects.openai_fields import ApiRequest
from app.services import VERSION
from engine.messages import GenerateRequest

# Fields that concern who serves the request, when and how its answer is sent.
_NOT_RECORDED = {"model", "priority", "stream", "stream_options", "timeout"}


def record(
    endpoint: str,
    fingerprint: str,
    body: ApiRequest,
    prepared: Sequence[GenerateRequest],
    ends: Iterable[Finished],
) -> dict[str, Any]:
    """Returns the record of the choices that have ended. `prepared` are all choices of the request.

    Its `request` is the one that came, with the seed that was chosen for it if it had none. The
    prompts are recorded as they became of it, so that a replay can tell whether they still do.
    """
    request = body.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=_NOT_RECORDED)
    return {
        "version": VERSION,
        "fingerprint": fingerprint,
        "endpoint": endpoint,
        "request": {**request, "seed": _signed(prepared[0].sampling.seed)},
        "choices": [
            {
                "index": end.choice,
                "prompt_token_ids": prepared[end.choice].prompt,
                "blocks": [
                    {
                        "token_ids": block.tokens,
                        "denoising_steps": block.denoising_steps,
                        "stopped": block.stopped,
                    }
                    for block in end.blocks
                ],
                "finish_reason": end.reason,
            }
            for end in ends
        ],
    }


def _signed(seed: int) -> int:
    """Returns the seed in the range that a request may name. It stands for the same numbers."""
    return seed - 2**64 if seed >= 2**63 else seed
