"""The endpoints `/v1/responses/{id}`, which read and delete kept responses.

OpenAI's other endpoints of this kind are refused by name.
"""

import re
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.dialects.items import InputItem, MessageItem
from app.dialects.responses.store import KeptResponse, response_store
from app.errors import BadRequest, NotFound, short

router = APIRouter()

# Fields that OpenAI's parts always have. Here they always have these values.
_NEUTRAL: dict[str, dict[str, Any]] = {
    "output_text": {"annotations": []},
    "input_image": {"detail": "auto"},
}


@router.get("/responses/{id}", include_in_schema=False)
@router.get("/v1/responses/{id}")
async def get_response(http: Request, id: str) -> Response:
    if http.query_params.get("stream", "false") != "false":
        raise BadRequest(
            "stream: a kept response can't be streamed; allowed: false.", param="stream"
        )
    return JSONResponse(_kept(http, id).response)


@router.delete("/responses/{id}", include_in_schema=False)
@router.delete("/v1/responses/{id}")
async def delete_response(http: Request, id: str) -> Response:
    if not response_store(http).delete(id):
        raise _not_kept(id)
    return JSONResponse({"id": id, "object": "response", "deleted": True})


@router.get("/responses/{id}/input_items", include_in_schema=False)
@router.get("/v1/responses/{id}/input_items")
async def get_input_items(http: Request, id: str) -> Response:
    """Returns all items that the model read for this response, including earlier turns."""
    query = http.query_params
    items = [*_kept(http, id).read]
    if query.get("order", "desc") != "asc":
        items.reverse()
    if "after" in query:
        positions = [position for position, item in enumerate(items) if item.id == query["after"]]
        if not positions:
            raise BadRequest(f"after: no item has the id {short(query['after'])!r}.", param="after")
        items = items[positions[0] + 1 :]
    limit = query.get("limit", "20")
    if not (re.fullmatch("[0-9]{1,3}", limit) and 1 <= int(limit) <= 100):
        raise BadRequest(f"limit: {short(limit)!r} is not a number from 1 to 100.", param="limit")
    shown = [_listed(item) for item in items[: int(limit)]]
    return JSONResponse(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(shown) < len(items),
        }
    )


@router.post("/responses/compact", include_in_schema=False)
@router.post("/v1/responses/compact", include_in_schema=False)
async def compact() -> None:
    raise NotFound(
        "/v1/responses/compact is not supported: nothing here compacts a conversation. Ask for a "
        "summary of it with /v1/responses, and go on with that.",
        code="unsupported_endpoint",
    )


@router.post("/responses/{id}/cancel", include_in_schema=False)
@router.post("/v1/responses/{id}/cancel", include_in_schema=False)
async def cancel() -> None:
    raise NotFound(
        "/v1/responses/{id}/cancel is not supported: no response runs in the background. Close the "
        "connection to cancel an answer.",
        code="unsupported_endpoint",
    )


def _kept(http: Request, id: str) -> KeptResponse:
    kept = response_store(http).get(id)
    if kept is None:
        raise _not_kept(id)
    return kept


def _not_kept(id: str) -> NotFound:
    return NotFound(
        f"Response with id {short(id)!r} not found: it was never kept, was deleted, or was removed "
        "to make room for others."
    )


def _listed(item: InputItem) -> dict[str, Any]:
    """Returns the item as OpenAI lists it: with a status, and a message's content in parts."""
    listed = {"status": "completed", **item.model_dump(exclude_none=True)}
    if isinstance(item, MessageItem):
        parts = listed.get("content", [])
        if isinstance(parts, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            parts = [{"type": kind, "text": parts}]
        listed["content"] = [{**part, **_NEUTRAL.get(part["type"], {})} for part in parts]
    return listed
