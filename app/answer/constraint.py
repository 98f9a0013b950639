"""The constraint of an answer: what its request demands, compiled for the worker."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace

from app.answer.request import AnswerConstraint, AnswerRequest
from app.constraint import kinds
from app.constraint.limits import ConstraintError
from app.errors import UNSUPPORTED, BadRequest, short
from app.services import Services
from engine.messages import Ready


@dataclass(frozen=True)
class Demand:
    """What a request demands of its answers.

    `field` is the request's field that errors name. `tool_fields` has the field with the schema of
    each tool, by the tool's name, which errors about that schema name instead.
    """

    kind: kinds.Kind
    field: str
    tool_fields: Mapping[str, str] = dataclasses.field(default_factory=dict)


async def constrained(
    services: Services,
    request: AnswerRequest,
    demand: Demand | None,
    limits: Ready,
    *,
    thinks: bool = False,
) -> AnswerRequest:
    """Returns the request with the constraint that it demands, if it demands one.

    The constraint holds for what follows the thoughts, which the model may have if it `thinks`.
    Raises BadRequest if the demand cannot be fulfilled, or not together with other fields.
    """
    if demand is None:
        return request
    for name, given in (
        ("ignore_eos", request.sampling.ignore_eos),
        ("suffix", request.sampling.suffix),
    ):
        if given:
            raise BadRequest(
                f"{name}: it is not supported together with {demand.field}.",
                param=name,
                code=UNSUPPORTED,
            )
    prompt = request.prompts[0]  # those of raw completions are alike
    thought: kinds.Thought = "open" if prompt.thinking else "allowed" if thinks else "none"
    try:
        enforced = await services.constraints.enforced(
            kinds.Constraint(demand.kind, thought), limits.end_tokens
        )
    except ConstraintError as error:
        blamed = demand.tool_fields.get(error.tool, demand.field)
        tool = f" ({short(error.tool)})" if error.tool else ""
        where = f" at {error.path}" if error.path else ""
        raise BadRequest(
            f"{blamed}{tool}: it cannot be enforced{where}: {error}.",
            param=blamed,
            code=UNSUPPORTED,
        ) from error
    return replace(request, constraint=AnswerConstraint(enforced, demand.field))
