"""Valid and invalid requests generated from our OpenAPI document: no 5xx, no hang, no harm.

They are the same in every run. `make fuzz` sends different ones for the given number of minutes.
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
# For each operation and each kind, valid or invalid. The file takes a minute on two busy cores.
EXAMPLES = 40
LIMIT_S = 60
GROWN_BYTES = 300 * 2**20
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "samples", "steps")

config = schemathesis.Config.from_dict({"generation": {"mode": "all"}})
document = schemathesis.openapi.from_dict(create_app(Settings()).openapi(), config=config)
operations = {
    f"{each.ok().method.upper()} {each.ok().path}": each.ok()  # type: ignore[union-attr]
    for each in document.get_all_operations()
}
SHARES = sum(2 if operation.body else 1 for operation in operations.values())
GENERATED = settings(
    max_examples=EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", autouse=True)
def _no_harm(server):
    with unharmed(server, GROWN_BYTES):
        yield


def with_short_answers(body, path, model):
    """Returns the body with the served model's name and with limits for few and short answers."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    if isinstance(body.get("model"), str):
        body["model"] = model
    if isinstance(body.get("n"), int) and body["n"] > 2:
        body["n"] = 2
    limits = [name for name in LIMITS if name in body]
    if not limits and path in BODIES:
        limits = [name for name in LIMITS if name in BODIES[path].model_fields][-1:]
    for name in limits:
        if isinstance(body.get(name, 1), int) and body.get(name, 9) > 4:
            body[name] = 4
    return body


def mended(value):
    """Returns the body without the mistakes that no JSON schema excludes, so that it is answered.

    A generated body fits the schema, but may break a rule that only code checks.
    """
    match value:
        case float() if value.is_integer():
            return int(value)  # 1.0 is an integer in a JSON schema
        case {"role": role}:
            content = value.get("content")
            return {
                "role": "user" if role == "tool" else role,
                "content": content if isinstance(content, str) else "x",
            }
        case {"input": _, "questions": [*questions]}:
            return {**value, "input": "x", "questions": [decidable(each) for each in questions]}
        case {"state": _, "questions": {**questions}}:
            few = list(questions.items())[:3]
            asked = {f"q{i}": decidable(each) for i, (_, each) in enumerate(few)}
            kept = {k: v for k, v in value.items() if k not in ("images", "chat_template_kwargs")}
            return {**kept, "state": "x", "questions": asked}
        case {"messages": [*messages]}:
            turns = [*mended(messages), {"role": "user", "content": "x"}]
            return {**{k: mended(v) for k, v in value.items()}, "messages": turns}
        case dict():
            return {key: mended(each) for key, each in value.items()}
        case list():
            return [mended(each) for each in value]
    return value


def decidable(question):
    """Returns a decision's question without options that are there twice."""
    question = {**question, "instructions": "x"}
    for name, key in (("choices", "value"), ("levels", "label")):
        if name in question:
            question[name] = [{**each, key: str(i)} for i, each in enumerate(question[name][:9])]
    match question.get("criteria"):
        case [*levels]:
            question["criteria"] = [str(i) for i in range(len(levels[:9]))]
        case {**choices} if question["type"] == "choice":
            question["criteria"] = {str(i): None for i in range(len(list(choices)[:9]))}
    return question


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, id=f"{name} {mode.value}")
        for name, operation in operations.items()
        for mode in schemathesis.GenerationMode
        if operation.body or mode.is_positive  # any string is a valid path
    ],
)
@pytest.mark.timeout(SECONDS + 300)
def test_generated_requests_are_answered_as_documented(server, model_folder, name, mode):
    until = time.monotonic() + SECONDS / SHARES
    answers = []

    def send(case):
        valid = mode.is_positive and len(answers) % 2 == 1
        body = mended(case.body) if valid else case.body
        case.body = with_short_answers(body, case.path, model_folder.name)
        response = case.call(base_url=server.url, timeout=LIMIT_S)
        case.validate_response(response, checks=CHECKS)
        status = response.status_code
        failed = status == 500 and response.json()["error"].get("code") != "tool_call_invalid"
        assert not failed, response.text
        answers.append(status)

    for number in count():
        cases = given(operations[name].as_strategy(generation_mode=mode))
        seed(number)(GENERATED(cases(lambda case: send(case))))()
        if time.monotonic() >= until:
            break
    if operations[name].body and mode.is_positive:
        assert answers.count(200) > len(answers) // 20, Counter(answers)
