"""Answers through the official OpenAI SDK, from a real server and a real worker."""

import asyncio

import openai
import pytest

MESSAGES = [{"role": "user", "content": "Count to 20"}]


def ask(client, **options):
    return client.chat.completions.create(
        **{"model": None, "messages": MESSAGES, "seed": 1, **options}
    )


def content(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def test_max_tokens_is_exact_and_usage_counts_it(client):
    answer = ask(client, max_tokens=70)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 70
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 70
    assert answer.diffusion["blocks"] == 3


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(client):
    first, again, other = (
        ask(client, max_tokens=40, seed=seed).choices[0].message.content for seed in (-5, -5, 6)
    )
    assert first == again
    assert first != other


def test_a_stream_is_a_role_then_a_chunk_per_block_then_an_end_and_usage(client):
    chunks = list(ask(client, max_tokens=70, stream=True, stream_options={"include_usage": True}))
    role, *texts, last, usage = chunks
    assert (role.choices[0].delta.role, role.choices[0].delta.content) == ("assistant", "")
    assert len(texts) == 3
    assert last.choices[0].finish_reason == "length"
    assert sum(bool(c.choices and c.choices[0].finish_reason) for c in chunks) == 1
    assert usage.choices == []
    assert usage.usage.completion_tokens == 70


def test_a_stream_has_the_text_of_the_whole_answer(client):
    whole = ask(client, max_tokens=70).choices[0].message.content
    assert content(ask(client, max_tokens=70, stream=True)) == whole


def test_an_answer_ends_before_a_stop_string_in_its_middle_or_at_its_end(client):
    whole = ask(client, max_tokens=96).choices[0].message.content
    middle = len(whole) // 2
    for stop in (whole[middle : middle + 12], whole[-8:-2]):
        for stream in (False, True):
            answer = ask(client, max_tokens=96, stop=[stop], stream=stream)
            text = content(answer) if stream else answer.choices[0].message.content
            assert text == whole[: whole.index(stop)]


def test_max_tokens_beyond_the_context_is_cut_to_it(client):
    answer = ask(client, max_tokens=32_000)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.total_tokens <= 2048


async def test_the_async_client_streams_the_same(server, client):
    whole = ask(client, max_tokens=50).choices[0].message.content
    url = f"{server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as each:
        stream = await ask(each, max_tokens=50, stream=True)
        assert content([chunk async for chunk in stream]) == whole


def test_usage_of_the_next_turn_counts_the_tokens_that_were_cached(client):
    first = ask(client, max_tokens=20)
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And on"},
    ]
    second = ask(client, max_tokens=20, messages=turns)
    # The common prefix ends where the model's turn begins, because the template ends a prompt
    # differently from a finished turn.
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens - 8 <= cached <= first.usage.prompt_tokens
    chunks = list(
        ask(
            client,
            max_tokens=20,
            messages=turns,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    usage = chunks[-1].usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens


async def test_concurrent_requests_get_the_same_answers_as_alone(server, client):
    seeds = range(6)  # more than run together
    alone = [ask(client, max_tokens=60, seed=seed).choices[0].message.content for seed in seeds]
    url = f"{server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as each:
        together = await asyncio.gather(*(ask(each, max_tokens=60, seed=seed) for seed in seeds))
    assert [answer.choices[0].message.content for answer in together] == alone


def test_completions_accept_text_and_token_ids(client):
    for prompt in ("one two", [200, 201, 202]):
        answer = client.completions.create(model=None, prompt=prompt, max_tokens=5, seed=0)
        assert answer.usage.completion_tokens == 5
        chunks = client.completions.create(
            model=None, prompt=prompt, max_tokens=5, seed=0, stream=True
        )
        assert "".join(c.choices[0].text for c in chunks) == answer.choices[0].text


def test_the_model_is_listed_and_its_name_is_accepted(client):
    (model,) = client.models.list().data
    assert ask(client, model=model.id, max_tokens=1).model == model.id
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_another_model_name_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="'gpt-9' is not served"):
        ask(client, model="gpt-9")
