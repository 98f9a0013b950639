"""The services that all endpoints share, and the checks that they make first."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.engine_client.worker import Admit, WorkerClient
from app.errors import ModelNotFound
from app.metrics import Metrics
from app.prompting.prompt import PromptBuilder
from app.settings import Settings


@dataclass(frozen=True)
class Services:
    """The services of one running app."""

    settings: Settings
    metrics: Metrics
    worker: WorkerClient
    prompts: PromptBuilder


def services_of(request: Request) -> Services:
    """Returns the services of the app that the request came to."""
    services: Services = request.app.state.services
    return services


async def _admission(request: Request) -> AsyncIterator[Admit]:
    with services_of(request).worker.admission() as admit:
        yield admit


# An endpoint that has a parameter of this type holds the request's places in the queue until its
# response has been sent.
Admission = Annotated[Admit, Depends(_admission)]


def check_model(wanted: str | None, served: str) -> None:
    """Raises ModelNotFound if the request names another model than the served one."""
    if wanted is not None and wanted != served:
        raise ModelNotFound(
            f"The model {wanted!r} is not served here; the served model is {served!r}.",
            param="model",
        )
