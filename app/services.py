"""The services that all endpoints share, and the checks that they make first."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from typing import Annotated

from fastapi import Depends, Request

from app.constraint.enforced import Constraints
from app.engine_client.worker import Admit, WorkerClient
from app.errors import ModelNotFound, short
from app.metrics import Metrics
from app.prompting.prompt import PromptBuilder
from app.security import client_of
from app.settings import Settings
from app.threads import Threads
from engine.messages import Ready

VERSION = version("easel-server")  # read once, because it is read from a file

_PROVIDER = "openai/"


@dataclass(frozen=True)
class Services:
    """The services of one running app."""

    settings: Settings
    metrics: Metrics
    worker: WorkerClient
    prompts: PromptBuilder
    threads: Threads
    constraints: Constraints

    def thinking_budget(self, given: int | None) -> int | None:
        """Returns the budget of an answer's thoughts, given that of its request."""
        return self.settings.thinking_budget if given is None else given

    def model_name(self, wanted: str | None) -> str:
        """Returns the name that the answer to a request gives the model.

        It is the name that the request gives it, if any. Raises ModelNotFound if it is not one of
        the model's names.
        """
        return model_name(wanted, self.settings.model_names)

    def fingerprint(self, limits: Ready) -> str:
        """Returns OpenAI's `system_fingerprint`.

        It is the same as long as the model, Easel's version and all settings that change an answer
        are. `limits` are those of the worker.
        """
        own = (VERSION, self.prompts.digest, self.settings.thinking_budget)
        digest = blake2b(repr((*own, limits.fingerprint)).encode(), digest_size=5)
        return f"fp_{digest.hexdigest()}"


def services_of(request: Request) -> Services:
    """Returns the services of the app that the request came to."""
    services: Services = request.app.state.services
    return services


def prefix_salt(request: Request) -> str:
    """Returns the salt of a request's prefixes, which separates API keys if the settings say so."""
    shared = services_of(request).settings.share_prefixes
    return "" if shared else client_of(request).id


async def _admission(request: Request) -> AsyncIterator[Admit]:
    with services_of(request).worker.admission() as admit:
        yield admit


# An endpoint that has a parameter of this type admits its request to the queue with it.
Admission = Annotated[Admit, Depends(_admission)]


def model_name(wanted: str | None, names: Sequence[str]) -> str:
    """Returns which of the model's names a request wants, or the first if it names none.

    Some clients put the provider's name in front, as in openai/demo. Raises ModelNotFound if it is
    not one of the names.
    """
    if wanted is None:
        return names[0]
    for name in (wanted, wanted.removeprefix(_PROVIDER)):
        if name in names:
            return name
    served = " or ".join(map(repr, names))
    raise ModelNotFound(
        f"The model {short(wanted)!r} is not served here; the served model is {served}.",
        param="model",
    )
