"""A worker that runs out of memory because the operating system limits its address space."""

import resource
from pathlib import Path

from tests.polling import wait_until

SPARE_BYTES = 4 * 2**20  # enough for a short prompt's passes, too little for 1,900 tokens at once


def address_space(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmSize:"))


def ask(server, prompt, **options):
    body = {"prompt": prompt, "max_tokens": 8, "seed": 1, **options}
    return server.http.post("/v1/completions", json=body)


def test_a_request_that_does_not_fit_fails_and_the_worker_goes_on(start_server):
    server = start_server(EASEL_PREFILL_CHUNK="2048").wait_until_ready()
    short = ask(server, [300] * 20).json()["choices"]
    worker = server.worker_pid()
    limit = address_space(worker) + SPARE_BYTES
    resource.prlimit(worker, resource.RLIMIT_AS, (limit, limit))
    failed = ask(server, [400] * 1900)
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "out_of_memory")
    assert failed.headers["x-should-retry"] == "false"
    event, done = ask(server, [400] * 1900, stream=True).text.strip().split("\n\n")
    assert '"code": "out_of_memory"' in event
    assert done == "data: [DONE]"
    assert ask(server, [300] * 20).json()["choices"] == short
    assert server.worker_pid() == worker
    wait_until(lambda: "kept prefixes are given up" in server.log.read_text())
