"""The metrics before and after an answer."""

from importlib.metadata import version

from tests.polling import wait_until
from tests.running_server import begun, figures


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
    reasons = [key for key in after if key[0] == "easel_block_ends_total"]
    assert sum(rise(*key) for key in reasons) == answer.diffusion["blocks"]
    assert rise("easel_denoising_steps_total") == answer.diffusion["denoising_steps"]
    assert rise("easel_prefix_hits_total") == (cached > 0)
    assert rise("easel_time_to_first_block_seconds_count") == 1
    assert rise("easel_queue_seconds_count") == 1
    blocks, steps = answer.diffusion["blocks"], answer.diffusion["denoising_steps"]
    assert steps - blocks <= rise("easel_step_seconds_count") <= steps
    assert rise("easel_steps_per_block_count") == rise("easel_tokens_per_step_count") == blocks
    assert rise("easel_steps_per_block_sum") == steps
    assert rise("easel_prompt_length_tokens_sum") == answer.usage.prompt_tokens
    assert rise("easel_completion_length_tokens_sum") == answer.usage.completion_tokens
    assert rise("easel_block_seconds_count") == answer.diffusion["blocks"]
    assert after[("easel_requests_in_flight",)] == 0
    assert after[("easel_queue_depth",)] == 0


def test_the_first_turn_has_no_kept_prefix_and_the_same_prompt_again_has_one(server, http):
    server.wait_until_idle()
    body = {"messages": [{"role": "user", "content": "prefixes are counted"}], "max_tokens": 4}
    hits = [read(http)[("easel_prefix_hits_total",)]]
    for _ in range(2):
        http.post("/v1/chat/completions", json=body).raise_for_status()
        hits.append(read(http)[("easel_prefix_hits_total",)])
    assert hits[2] == hits[1] + 1


def test_the_memory_of_a_running_answer_is_used_until_it_ends(server, http):
    server.wait_until_idle()
    wait_until(lambda: read(http)[("easel_kv_cache_used_bytes",)] == 0)
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2000, "stream": True}

    def while_used():
        metrics = read(http)
        return metrics if metrics[("easel_kv_cache_used_bytes",)] > 0 else None

    with http.stream("POST", "/v1/chat/completions", json=body):
        during = wait_until(while_used)
    used, budget = during[("easel_kv_cache_used_bytes",)], during[("easel_kv_cache_budget_bytes",)]
    assert used < budget
    assert during[("easel_kv_cache_usage_ratio",)] == used / budget
    assert during[("easel_kept_prefix_budget_bytes",)] > 0
    server.wait_until_idle()
    wait_until(lambda: while_used() is None)


def test_the_build_and_the_model_are_named(http):
    exposed = http.get("/metrics").text
    assert f'easel_build_info{{version="{version("easel-server")}"}} 1.0' in exposed
    (model,) = [line for line in exposed.splitlines() if line.startswith("easel_model_info{")]
    assert 'device="cpu' in model
    assert 'dtype="float32"' in model
    assert 'model="random-weights"' in model
    assert read(http)[("easel_worker_up",)] == 1


def test_a_request_that_a_stop_string_ends_is_counted_as_stop(http, client):
    options = {"model": None, "messages": [{"role": "user", "content": "x"}], "seed": 1}
    text = client.chat.completions.create(**options, max_tokens=60).choices[0].message.content
    before = read(http)
    client.chat.completions.create(**options, max_tokens=600, stop=text[5:9])
    rise = {key: value - before.get(key, 0) for key, value in read(http).items()}
    assert rise[("easel_requests_total", "stop")] == 1
    assert rise.get(("easel_requests_total", "cancelled"), 0) == 0


def counted(http):
    """Returns the counters and the histograms' counts, without those of this request."""
    ends = ("_total", "_count")
    metrics = read(http)
    return {k: v for k, v in metrics.items() if k[0].endswith(ends) and "/metrics" not in k}


def rises(http, before):
    return {k: v - before.get(k, 0) for k, v in counted(http).items() if v != before.get(k, 0)}


def test_a_refused_request_is_counted_by_its_status_and_code_and_nowhere_else(server, http):
    server.wait_until_idle()
    before = counted(http)
    good = {"messages": [{"role": "user", "content": "x"}]}
    for body in ({"messages": []}, {**good, "colour": "red"}, {**good, "colour": "blue"}):
        assert http.post("/v1/chat/completions", json=body).status_code == 400
    for number in range(3):
        assert http.get(f"/v1/nope/{number}").status_code == 404
    name = "easel_error_responses_total"
    expected = {
        (name, "invalid_request_error", "400"): 1,
        (name, "unknown_parameter", "400"): 2,
        (name, "not_found", "404"): 3,
    }
    wait_until(lambda: rises(http, before) == expected)


def test_the_time_of_a_request_is_measured_until_its_stream_has_ended(server, http):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 40, "stream": True}
    path = "/v1/chat/completions"
    before = read(http)
    with server.stopped_worker(), http.stream("POST", path, json=body) as streamed:
        _lines = begun(streamed)
        assert rises(http, before).get(("easel_request_seconds_count", path), 0) == 0
    server.wait_until_idle()
    http.post(path, json=body).raise_for_status()
    # The request whose client has left is not measured.
    wait_until(lambda: rises(http, before).get(("easel_request_seconds_count", path)) == 1)
    assert rises(http, before).get(("easel_requests_total", "cancelled")) == 1
    took_s, first_s = (
        read(http)[key] - before.get(key, 0)
        for key in (
            ("easel_request_seconds_sum", path),
            ("easel_time_to_first_block_seconds_sum",),
        )
    )
    assert took_s >= first_s
