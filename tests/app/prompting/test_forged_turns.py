"""Typed text never becomes a control token, whatever it is and wherever in a request it is."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.dialects.anthropic import route as anthropic
from app.dialects.anthropic import turns as anthropic_turns
from app.dialects.anthropic.schema import MessagesRequest
from app.dialects.chat import route as chat
from app.dialects.chat import turns as chat_turns
from app.dialects.chat.schema import ChatCompletionRequest
from app.dialects.completions import route as completions
from app.dialects.completions.schema import CompletionRequest
from app.dialects.responses import route as responses
from app.dialects.responses.schema import ResponseRequest
from app.prompting.conversation import Turn
from app.prompting.prompt import PromptBuilder
from engine.config import DEMO_MODEL_PATH

PROMPTS = PromptBuilder(str(DEMO_MODEL_PATH))
SERVICES = SimpleNamespace(prompts=PROMPTS, thinking_budget=lambda given: given)
LIMITS = SimpleNamespace(vocab_size=1280, context_length=100_000)
CONTROLS = PROMPTS.vocabulary.controls
HARMLESS = ["ab", "cd", "ef"]


def schema(text):
    """Returns a JSON schema with the text wherever a template might show it."""
    leaf = {"type": "string", "description": text, "enum": [text], "const": text, "default": text}
    return {
        "type": "object",
        "description": text,
        "properties": {f"p{text}": leaf, "list": {"type": "array", "items": leaf}},
        "required": [f"p{text}"],
        f"x{text}": {text: [text]},
    }


def chat_request(a, b, c):
    call = {"name": f"f{a}", "arguments": json.dumps({f"k{a}": [b, {c: a}]})}
    broken = {"name": "g", "arguments": "{" + a}
    body = {
        "messages": [
            {"role": "system", "content": a},
            {
                "role": "user",
                "name": b,
                "content": [{"type": "text", "text": t} for t in (a, b, c)],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": t} for t in (c, b, a)],
                "reasoning_content": b,
                "reasoning": b,
                "tool_calls": [{"id": a, "function": call}, {"id": f"{a}2", "function": broken}],
            },
            {"role": "tool", "tool_call_id": a, "content": c, "name": f"n{b}"},
            {"role": "tool", "tool_call_id": f"{a}2", "content": [{"type": "text", "text": b}]},
            {"role": "user", "content": b},
        ],
        "tools": [{"type": "function", "function": tool} for tool in tools(a, "parameters")],
        "stop": [a or "x"],
        "user": a,
    }
    read = ChatCompletionRequest.model_validate(body)
    turns = chat_turns.conversation(read.messages)
    return chat.answer_request(SERVICES, read, turns, [], LIMITS)


def tools(text, parameters):
    return [{"name": "f", "description": text, parameters: schema(text)}]


def responses_request(a, b, c):
    body = {
        "instructions": a,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": t} for t in (a, b, c)]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": a}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": t} for t in (a, b)]},
            {"type": "function_call", "call_id": a, "name": f"f{a}", "arguments": f'{{"{"k"}":1}}'},
            {"type": "function_call_output", "call_id": a, "output": c, "name": f"n{b}"},
            {"role": "user", "content": b},
        ],
        "tools": [{"type": "function", **tool} for tool in tools(a, "parameters")],
        "metadata": {a: b},
    }
    read = ResponseRequest.model_validate(body)
    turns = responses._turns(read, [], read.items)
    return responses.answer_request(SERVICES, read, turns, [], LIMITS)


def messages_request(a, b, c):
    use = {"type": "tool_use", "id": f"i{a}", "name": f"f{a}", "input": {f"k{a}": [b, {c: a}]}}
    result = {"type": "tool_result", "tool_use_id": f"i{a}", "content": f"r{c}", "is_error": True}
    texts = [{"type": "text", "text": f"t{text}"} for text in (a, b, c)]
    body = {
        "model": "demo",
        "max_tokens": 1,
        "system": texts,
        "messages": [
            {"role": "user", "content": texts},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": a, "signature": b}, *texts, use],
            },
            {"role": "user", "content": [result, *texts]},
        ],
        "tools": tools(a, "input_schema"),
        "stop_sequences": [f"s{a}"],
    }
    read = MessagesRequest.model_validate(body)
    turns = anthropic_turns.conversation(read)
    return anthropic.answer_request(SERVICES, read, turns, [], LIMITS)


def completion_request(a, b, c):
    body = {"prompt": [f"p{a}", f"p{b}{c}"], "suffix": f"s{a}", "max_tokens": 1}
    return completions.answer_request(SERVICES, CompletionRequest.model_validate(body), LIMITS)


REQUESTS = (chat_request, responses_request, messages_request, completion_request)


def controls(request):
    """Returns the control tokens that the model reads, in their order."""
    read = [*(prompt.tokens for prompt in request.prompts), request.sampling.suffix]
    return [[token for token in tokens if token in CONTROLS] for tokens in read]


names = sorted(set(CONTROLS.values()))
halves = [
    half for name in names for cut in range(1, len(name)) for half in (name[:cut], name[cut:])
]
typed = st.lists(
    st.sampled_from(names)
    | st.sampled_from(halves)
    | st.sampled_from(
        [" ", "\n", "\ue000", "\ue001", "\ue0000:0\ue001", "\x00", "\ufeff", "\u200b"]
    )
    | st.sampled_from(
        ["user", "system", "model", "thought", "＜|turn＞", "<|TURN|>", '"', "{", "|"]
    )
    | st.text(max_size=3),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("request_of", REQUESTS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.tuples(typed, typed, typed))
def test_no_text_in_any_field_forges_a_control_token(request_of, texts):
    # Texts must not be empty, because a template may leave out an empty one.
    texts = [f"{text}." if not text.strip() else text for text in texts]
    assert controls(request_of(*texts)) == controls(request_of(*HARMLESS))


@pytest.mark.parametrize("request_of", REQUESTS)
@pytest.mark.parametrize("name", names)
def test_a_control_token_cut_in_two_anywhere_stays_text(request_of, name):
    plain = controls(request_of(*HARMLESS))
    for cut in range(1, len(name)):
        for a, b in ((name[:cut], name[cut:]), (f"x{name[:cut]} ", f" {name[cut:]}x")):
            assert controls(request_of(a, b, "x")) == plain
            assert controls(request_of("x", a, b)) == plain


def test_a_control_token_cut_into_three_parts_stays_text():
    assert controls(chat_request("<t", "ur", "n|>")) == controls(chat_request(*HARMLESS))


def test_a_text_that_ends_like_the_beginning_of_a_control_token_arrives_whole():
    tokens = PROMPTS.chat([Turn("user", "Is 3 <")]).tokens
    assert "user\nIs 3 <<turn|>" in PROMPTS.vocabulary.decode(tokens)
