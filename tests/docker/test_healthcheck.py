"""The image's health check, run against a real server."""

import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docker" / "healthcheck.py"


def check(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=30
    )


def test_a_ready_server_that_listens_as_in_the_image_is_healthy(server):
    answer = check(EASEL_HOST="0.0.0.0", EASEL_PORT=server.url.rpartition(":")[2])
    assert (answer.returncode, answer.stdout) == (0, '200 {"status":"ready"}\n')


def test_a_proxy_in_the_environment_is_not_used(server):
    port = server.url.rpartition(":")[2]
    assert check(EASEL_PORT=port, http_proxy="http://127.0.0.1:9").returncode == 0


def test_a_server_whose_worker_is_not_ready_is_unhealthy(start_server):
    loading = start_server()
    port = loading.url.rpartition(":")[2]
    # Until the worker is ready the server answers with a 503, or does not listen yet.
    assert check(EASEL_PORT=port).returncode == 1
    loading.wait_until_ready()
    assert check(EASEL_PORT=port).returncode == 0


def test_no_server_is_unhealthy_and_the_check_names_the_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, so that no other process takes it, and never listening
        port = free.getsockname()[1]
        answer = check(EASEL_PORT=str(port))
    assert answer.returncode == 1
    assert f"127.0.0.1 port {port}" in answer.stdout
