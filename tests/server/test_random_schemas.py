"""Random schemas over HTTP: each answer is valid by its schema, or the request is a 400.

The schemas are the same in every run. `make schemas` tries more of them.
"""

import json
import os
import re
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.app.constraint.schemas import schemas

TRIED = int(os.environ.get("SCHEMAS_TRIED", "12"))
GENERATED = settings(
    max_examples=TRIED,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
WAYS = ("format", "required", "named")
FIELDS = {"format": "response_format.json_schema.schema"}
TOOL_FIELD = "tools.0.function.parameters"
PROMPTS = ("Make JSON with name Ann and age 7.", "What is the weather in Paris?", "Count to 20")
STEPS = 12  # denoising steps a block, since most schemas are none that the model has learned
ROOM = 150  # tokens
REFUSAL = re.compile(
    r": (it cannot be enforced( at /\S*)?|it is not a JSON schema|"
    r"arguments can't be checked by this schema): ."
)


def in_object(schema):
    """Returns the schema of an object with such a value, as the parameters of a tool."""
    value = {key: each for key, each in schema.items() if key != "$defs"}
    wrapped = {"type": "object", "properties": {"value": value}, "required": ["value"]}
    return {**wrapped, **({"$defs": schema["$defs"]} if "$defs" in schema else {})}


def demand(way, schema):
    """Returns the fields of a chat that demand a value of a schema."""
    if way == "format":
        described = {"name": "x", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": described}}
    function = {"name": "f", "parameters": schema, "strict": True}
    named = {"type": "function", "function": {"name": "f"}}
    return {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required" if way == "required" else named,
    }


def choices_of(response, *, stream):
    """Returns the text, the calls' arguments and the reason for the end of each choice."""
    if not stream:
        return [
            (
                choice["message"]["content"] or "",
                [each["function"]["arguments"] for each in choice["message"].get("tool_calls", ())],
                choice["finish_reason"],
            )
            for choice in response.json()["choices"]
        ]
    texts, calls, reasons = Counter(), {}, {}
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        for choice in json.loads(line)["choices"]:
            index, delta = choice["index"], choice["delta"]
            texts[index] = (texts[index] or "") + (delta.get("content") or "")
            own = calls.setdefault(index, {})
            for call in delta.get("tool_calls") or ():
                own[call["index"]] = own.get(call["index"], "") + call["function"]["arguments"]
            reasons[index] = choice["finish_reason"]
    return [
        (texts[index] or "", [*calls[index].values()], reasons[index]) for index in sorted(calls)
    ]


class Trial:
    """Sends what one schema demands, and judges the answers."""

    def __init__(self, http, outcomes):
        self._http = http
        self._outcomes = outcomes

    def run(self, schema, way, prompt, options, extra):
        """Ask without enough room first, which tells how much is enough, and then with it."""
        schema = schema if isinstance(schema, dict) else {"allOf": [schema]}
        schema = schema if way == "format" else in_object(schema)
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_denoising_steps": STEPS,
            **demand(way, schema),
        }
        refused = self._http.post("/v1/chat/completions", json={**body, "max_tokens": 1})
        by_grammar = refused.status_code == 200  # nothing is known of the room that it needs
        least = 1
        if not by_grammar:
            assert refused.status_code == 400, refused.text
            error = refused.json()["error"]
            if error["param"] != "max_tokens":
                assert error["param"] == FIELDS.get(way, TOOL_FIELD)
                assert REFUSAL.search(error["message"]), error
                self._outcomes["refused"] += 1
                return
            least = int(re.search(r"allows has (\d+)", error["message"])[1])
        most = ROOM if by_grammar else least + extra
        sent = {**body, **options, "max_tokens": most}
        response = self._http.post("/v1/chat/completions", json=sent)
        assert response.status_code == 200, response.text
        choices = choices_of(response, stream=options["stream"])
        assert len(choices) == options["n"]
        validator = Draft202012Validator(schema)
        for text, calls, reason in choices:
            if by_grammar and reason == "length":
                self._outcomes["cut"] += 1
                continue
            self._outcomes["by grammar" if by_grammar else "by automaton"] += 1
            if way == "format":
                assert (calls, reason) == ([], "stop")
                validator.validate(json.loads(text))
                continue
            assert (text, reason) == ("", "tool_calls")
            assert len(calls) == 1 if way == "named" else calls
            for arguments in calls:
                validator.validate(json.loads(arguments))


OPTIONS = st.fixed_dictionaries(
    {"stream": st.booleans(), "n": st.integers(1, 3), "seed": st.integers(0, 2**32)},
    optional={"temperature": st.sampled_from([0, 1.5]), "parallel_tool_calls": st.booleans()},
)


@pytest.mark.timeout(120 + 20 * TRIED)
@pytest.mark.parametrize("way", WAYS)
def test_answers_by_random_schemas_are_valid_within_a_tight_limit(demo_server, way):
    outcomes = Counter()
    trial = Trial(demo_server.http, outcomes)

    @seed(WAYS.index(way))
    @GENERATED
    @given(schemas(), st.sampled_from(PROMPTS), OPTIONS, st.sampled_from([0, 1, 5, 40, ROOM]))
    def run(schema, prompt, options, extra):
        trial.run(schema, way, prompt, options, extra)

    run()
    print(dict(outcomes))
    assert outcomes["by automaton"] > TRIED // 3, outcomes
