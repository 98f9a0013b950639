"""The metrics before and after an answer."""

from tests.running_server import figures


def read(http):
    response = http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return figures(response.text)


def test_an_answer_is_counted_once_in_every_metric(http, client):
    before = read(http)
    answer = client.chat.completions.create(
        model=None, messages=[{"role": "user", "content": "x"}], max_tokens=40
    )
    after = read(http)

    def rise(*key):
        return after[key] - before.get(key, 0)

    assert rise("easel_requests_total", answer.choices[0].finish_reason) == 1
    assert rise("easel_prompt_tokens_total") == answer.usage.prompt_tokens
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert rise("easel_cached_prompt_tokens_total") == cached
    assert rise("easel_completion_tokens_total") == answer.usage.completion_tokens
    assert rise("easel_blocks_total") == answer.diffusion["blocks"]
    assert rise("easel_denoising_steps_total") == answer.diffusion["denoising_steps"]
    assert rise("easel_time_to_first_block_seconds_count") == 1
    assert rise("easel_block_seconds_count") == answer.diffusion["blocks"]
    assert after[("easel_requests_in_flight",)] == 0
    assert after[("easel_queue_depth",)] == 0


def test_a_request_that_a_stop_string_ends_is_counted_as_stop(http, client):
    options = {"model": None, "messages": [{"role": "user", "content": "x"}], "seed": 1}
    text = client.chat.completions.create(**options, max_tokens=60).choices[0].message.content
    before = read(http)
    client.chat.completions.create(**options, max_tokens=600, stop=text[5:9])
    rise = {key: value - before.get(key, 0) for key, value in read(http).items()}
    assert rise[("easel_requests_total", "stop")] == 1
    assert rise.get(("easel_requests_total", "cancelled"), 0) == 0


def test_a_refused_request_changes_no_metric(http):
    before = read(http)
    assert http.post("/v1/chat/completions", json={"messages": []}).status_code == 400
    assert read(http) == before
