import httpx
from fastapi import FastAPI

from app.logs import RequestIds
from app.server import UnexpectedErrors


async def test_a_fault_of_ours_is_a_500_in_the_envelope_with_a_request_id():
    app = FastAPI()
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(RequestIds)

    @app.get("/fault")
    async def fault():
        raise ZeroDivisionError

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://easel"
    ) as client:
        response = await client.get("/fault")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert response.headers["x-request-id"]
