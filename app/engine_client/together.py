"""Joins the choices of one prompt into one message, so that the prompt and its images travel once.

`GenerateRequest.choices` takes them apart again on the worker's side.
"""

from collections.abc import Iterable
from itertools import groupby

import msgspec

from engine.messages import Decision, GenerateRequest, Sampling, Sibling, Thought


def together(requests: Iterable[GenerateRequest]) -> list[GenerateRequest]:
    """Returns the requests with neighbours that are choices of one prompt joined into one."""
    return [
        _joined(list(choices))
        for _, group in groupby(requests, key=lambda request: id(request.prompt))
        for _, choices in groupby(group, key=_common)
    ]


def _common(
    request: GenerateRequest,
) -> tuple[int, str, Sampling, Thought | None, Decision | None]:
    """Returns what the choices of one prompt have in common, beside the prompt and its images."""
    sampling = msgspec.structs.replace(request.sampling, choice=0)
    return request.max_tokens, request.constraint, sampling, request.thought, request.decision


def _joined(choices: list[GenerateRequest]) -> GenerateRequest:
    first, *others = choices
    siblings = [
        Sibling(each.id, each.sampling.choice, each.delivered, each.delivered_blocks)
        for each in others
    ]
    return msgspec.structs.replace(first, siblings=siblings)
