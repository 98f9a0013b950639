"""Requests made up from our own OpenAPI document, right and wrong ones: no 5xx, no hang, no harm.

The same ones every time. `make fuzz` sends other ones for as long as it is told to.
"""

import os
import time
from collections import Counter
from itertools import count

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.specs.openapi import checks

from app.openapi import BODIES
from app.server import create_app
from app.settings import Settings
from tests.server.vitals import unharmed

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))  # 0: a fixed set of requests instead
EXAMPLES = (
    40  # an operation and a kind, right or wrong: the whole takes about a minute on two busy cores
)
LIMIT_S = 60
GROWN_BYTES = 300 * 2**20
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

config = schemathesis.Config.from_dict({"generation": {"mode": "all"}})
document = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=config)
operations = {
    f"{each.ok().method.upper()} {each.ok().path}": each.ok()  # type: ignore[union-attr]
    for each in document.get_all_operations()
}
SHARES = sum(2 if operation.body else 1 for operation in operations.values())
MADE_UP = settings(
    max_examples=EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", autouse=True)
def _no_harm(server):
    with unharmed(server, GROWN_BYTES):
        yield


def tamed(body, path, model):
    """The same, for the model that is served and with a short answer, where it has any."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    if isinstance(body.get("model"), str):
        body["model"] = model
    if isinstance(body.get("n"), int) and body["n"] > 2:
        body["n"] = 2
    given = [name for name in LIMITS if name in body]
    for name in given or ([] if path not in BODIES else _limit(path)):
        if isinstance(body.get(name, 1), int) and body.get(name, 9) > 4:
            body[name] = 4
    return body


def _limit(path):
    fields = BODIES[path].model_fields
    return [name for name in LIMITS if name in fields][-1:]


def mended(value):
    """A right request without what only code can tell to be wrong, so that more are answered."""
    match value:
        case float() if value.is_integer():
            return int(value)  # to a JSON schema 1.0 is an integer
        case {"role": role}:
            spoken = {"role": "user" if role == "tool" else role, "content": value.get("content")}
            return spoken if isinstance(spoken["content"], str) else {**spoken, "content": "x"}
        case {"messages": [*messages]}:
            asked = [*mended(messages), {"role": "user", "content": "x"}]
            return {**{k: mended(v) for k, v in value.items()}, "messages": asked}
        case dict():
            return {key: mended(each) for key, each in value.items()}
        case list():
            return [mended(each) for each in value]
    return value


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, id=f"{name} {mode.value}")
        for name, operation in operations.items()
        for mode in schemathesis.GenerationMode
        if operation.body or mode.is_positive  # a path is a string, whatever is in it
    ],
)
@pytest.mark.timeout(SECONDS + 300)
def test_made_up_requests_are_answered_as_documented(server, model_folder, name, mode):
    until = time.monotonic() + SECONDS / SHARES
    answers = []

    def send(case):
        right = mode.is_positive and len(answers) % 2 == 1
        body = mended(case.body) if right else case.body
        case.body = tamed(body, case.path, str(model_folder))
        response = case.call(base_url=server.url, timeout=LIMIT_S)
        case.validate_response(response, checks=CHECKS)
        status = response.status_code
        failed = status == 500 and response.json()["error"].get("code") != "tool_call_invalid"
        assert not failed, response.text
        answers.append(status)

    for number in count():
        cases = given(operations[name].as_strategy(generation_mode=mode))
        seed(number)(MADE_UP(cases(lambda case: send(case))))()
        if time.monotonic() >= until:
            break
    if operations[name].body and mode.is_positive:
        assert answers.count(200) > len(answers) // 20, Counter(answers)
