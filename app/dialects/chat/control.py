"""The endpoint `POST /v1/chat/completions/control`, as llama.cpp has it: it ends a running thought.

The id is that of an answer of any dialect whose stream has begun.
"""

import re
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from app.dialects.fields import MAX_NAME, RequestFields
from app.dialects.incoming import incoming
from app.services import services_of

router = APIRouter()

_ID = re.compile(r"(?:chatcmpl-|msg_|resp_)([0-9a-f]{32})")


class ControlRequest(RequestFields):
    model: str | None = None
    id: str = Field(max_length=MAX_NAME)
    action: Literal["reasoning_end"]


@router.post("/chat/completions/control", include_in_schema=False)
@router.post("/v1/chat/completions/control")
async def control(http: Request) -> dict[str, Any]:
    services = services_of(http)
    async with incoming(http, ControlRequest) as arriving:
        body = arriving.body
        services.model_name(body.model)
    answer = _ID.fullmatch(body.id)
    why_not = services.worker.end_thoughts("" if answer is None else answer[1])
    return {"success": True} if why_not is None else {"success": False, "message": why_not}
