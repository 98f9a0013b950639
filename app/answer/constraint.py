"""The constraint of an answer: what its request demands, compiled for the worker."""

from dataclasses import dataclass, replace

from app.answer.request import AnswerConstraint, AnswerRequest
from app.constraint import kinds
from app.constraint.limits import ConstraintError
from app.errors import UNSUPPORTED, BadRequest
from app.services import Services
from engine.messages import Ready


@dataclass(frozen=True)
class Demand:
    """What a request demands of its answers. `field` is the request's field that errors name."""

    kind: kinds.Kind
    field: str


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
    for field, given in (
        ("ignore_eos", request.sampling.ignore_eos),
        ("suffix", request.sampling.suffix),
    ):
        if given:
            raise BadRequest(
                f"{field}: it is not supported together with {demand.field}.",
                param=field,
                code=UNSUPPORTED,
            )
    prompt = request.prompts[0]  # those of raw completions are alike
    thought: kinds.Thought = "open" if prompt.thinking else "allowed" if thinks else "none"
    try:
        enforced = await services.constraints.enforced(
            kinds.Constraint(demand.kind, thought), limits.end_tokens
        )
    except ConstraintError as error:
        where = f" at {error.path}" if error.path else ""
        raise BadRequest(
            f"{demand.field}: it cannot be enforced{where}: {error}.",
            param=demand.field,
            code=UNSUPPORTED,
        ) from error
    return replace(request, constraint=AnswerConstraint(enforced, demand.field))
