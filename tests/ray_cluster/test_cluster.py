"""Two replicas of the demo model behind one address, on a real Ray. `make cluster-test` runs this.

The replicas are processes, which the tests find by Ray's names for them and kill.
"""

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.counting import count, counted
from tests.polling import wait_until
from tests.running_server import Figures, begun, figures

START_S = 180
KEY = "a-key"
COMMAND = [sys.executable, "-m", "app", "cluster"]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "EASEL_DEVICE": "cpu",
    "EASEL_THREADS": "1",
    "TRITON_INTERPRET": "0",
}
REPLICA = b"ray::ServeReplica:easel:easel"  # how Ray renames the processes of the replicas

pytestmark = pytest.mark.timeout(300)


def free_port() -> int:
    """Returns a port that is free now. Ray Serve cannot choose one itself."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Cluster:
    """`easel cluster` with two replicas of the demo model."""

    def __init__(self, log: Path) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "--replicas", "2", "--port", str(port), "--api-key", KEY],
                env=ENVIRONMENT,
                stdout=output,
                stderr=output,
            )
        headers = {"authorization": f"Bearer {KEY}"}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=120)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0)

    def wait_until_ready(self) -> "Cluster":
        wait_until(self._has_started, START_S)
        return self

    def _has_started(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "Easel listens on" in self.log.read_text()

    def replicas(self) -> list[int]:
        """Returns the process ids of the replicas that Ray of this cluster has started."""
        return [pid for pid in _processes() if _name(pid).startswith(REPLICA) and self._owns(pid)]

    def _owns(self, pid: int) -> bool:
        """Returns whether a process descends from this cluster's."""
        while pid > 1:
            if pid == self.process.pid:
                return True
            pid = _parent(pid)
        return False

    def metrics(self) -> Figures:
        return figures(self.http.get("/metrics").text)

    def answered(self) -> Counter[str]:
        """Returns how many answers of each replica have ended with the reason `stop`."""
        ended = self.http.get("/metrics").text
        return Counter(
            {
                line.partition('replica="')[2].partition('"')[0]: int(float(line.split()[-1]))
                for line in ended.splitlines()
                if line.startswith('easel_requests_total{outcome="stop"')
            }
        )

    def stop(self) -> int:
        """End the cluster with SIGTERM. Returns its exit code."""
        self.http.close()
        self.openai.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def _processes() -> Iterator[int]:
    yield from (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _name(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@contextmanager
def stopped_workers(replicas: Iterable[int]) -> Iterator[None]:
    """Stop the workers of these replicas with SIGSTOP inside the block."""
    workers = [pid for pid in _processes() if _parent(pid) in replicas]
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in workers:
            with suppress(ProcessLookupError):  # it ends with its replica
                os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = Cluster(tmp_path_factory.mktemp("cluster") / "log").wait_until_ready()
    yield running
    assert running.stop() == 0, running.log.read_text()


def ask(cluster: Cluster, *said: str) -> str:
    """Returns the answer to the last message of a conversation."""
    messages: list[ChatCompletionMessageParam] = []
    for turn, text in enumerate(said):
        if turn % 2:
            messages.append({"role": "assistant", "content": text})
        else:
            messages.append({"role": "user", "content": text})
    answer = cluster.openai.chat.completions.create(model="demo", messages=messages)
    return answer.choices[0].message.content or ""


def test_a_stream_arrives_block_by_block(cluster):
    stream = cluster.openai.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": count(2)}], stream=True
    )
    texts = [each.choices[0].delta.content for each in stream if each.choices[0].delta.content]
    assert len(texts) > 1
    assert "".join(texts) == counted(2)


def test_a_conversation_stays_with_one_replica_that_keeps_its_prefix(cluster):
    before = cluster.answered()
    said = ["Count to 7"]
    for turn in range(4):
        said += [ask(cluster, *said), f"Count to {8 + turn}"]
    (count,) = (cluster.answered() - before).values()
    assert count == 4


def test_conversations_are_spread_over_the_replicas(cluster):
    before = cluster.answered()
    for number in range(20):
        ask(cluster, f"Count to {number + 1}")
    assert len(cluster.answered() - before) == 2


def test_a_kept_response_is_found_whatever_replica_has_it(cluster):
    responses = [
        cluster.openai.responses.create(model="demo", input=f"Count to {number}")
        for number in range(3, 9)
    ]
    for response in responses:
        following = cluster.openai.responses.create(
            model="demo", input="Count to 4", previous_response_id=response.id
        )
        assert cluster.openai.responses.retrieve(following.id).id == following.id
        item = {"type": "item_reference", "id": response.output[0].id}
        question = {"role": "user", "content": "Count to 3"}
        assert cluster.openai.responses.create(model="demo", input=[item, question])
        cluster.openai.responses.delete(response.id)
        with pytest.raises(openai.NotFoundError):
            cluster.openai.responses.retrieve(response.id)


def test_a_running_answer_is_found_by_its_id(cluster):
    with stopped_workers(cluster.replicas()):
        stream = cluster.openai.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": count(2)}], stream=True
        )
        body = {"id": next(iter(stream)).id, "action": "reasoning_end"}
        answer = cluster.http.post("/v1/chat/completions/control", json=body).json()
        stream.close()
    assert answer.get("message") != "no active completion for this id"


def test_every_series_names_its_replica(cluster):
    text = cluster.http.get("/metrics").text
    series = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all('replica="' in line for line in series)
    assert len({line.partition('replica="')[2].partition('"')[0] for line in series}) == 2


def test_an_answer_has_one_request_id(cluster):
    response = cluster.http.get("/health", headers={"x-request-id": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]


def test_a_request_needs_the_key_that_the_command_has(cluster):
    wrong = {"authorization": "Bearer another"}
    assert cluster.http.get("/v1/models", headers=wrong).status_code == 401
    assert cluster.http.get("/v1/models").status_code == 200


def test_a_refusal_is_a_replicas_own(cluster):
    response = cluster.http.post("/v1/chat/completions", json={"messages": "none"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


def test_a_body_that_is_too_large_is_refused(cluster):
    response = cluster.http.post("/v1/chat/completions", content=b" " * (33 * 2**20))
    assert response.status_code == 413


def test_an_answer_whose_client_leaves_is_cancelled(cluster):
    body = {"messages": [{"role": "user", "content": count(2)}], "stream": True}
    with stopped_workers(cluster.replicas()):
        with cluster.http.stream("POST", "/v1/chat/completions", json=body) as stream:
            _lines = begun(stream)
        wait_until(lambda: ended(cluster, "cancelled"))


def ended(cluster: Cluster, outcome: str) -> float:
    return sum(
        n for key, n in cluster.metrics().items() if key[:2] == ("easel_requests_total", outcome)
    )


def stream_ends(cluster: Cluster, number: int) -> str:
    """Returns the last event before `[DONE]` of a stream."""
    body = {"messages": [{"role": "user", "content": f"Count to {number}"}], "stream": True}
    with cluster.http.stream("POST", "/v1/chat/completions", json=body) as stream:
        *_, last, done = [line for line in stream.iter_lines() if line]
    assert done == "data: [DONE]"
    return last


def open_and_answered(cluster: Cluster) -> float:
    return sum(
        n
        for key, n in cluster.metrics().items()
        if key[0] == "easel_requests_in_flight" or key[:2] == ("easel_requests_total", "stop")
    )


def test_a_killed_replica_loses_only_the_streams_that_it_has_begun(cluster):
    """Stops one of the two workers, so that what its replica has is open when it is killed."""
    replica, _ = cluster.replicas()
    before = open_and_answered(cluster)
    with stopped_workers([replica]), ThreadPoolExecutor(24) as pool:
        streams = [pool.submit(stream_ends, cluster, n) for n in range(1, 13)]
        wholes = [pool.submit(ask, cluster, f"Count to {n}") for n in range(13, 25)]
        wait_until(lambda: open_and_answered(cluster) == before + 24, 60)
        os.kill(replica, signal.SIGKILL)
        ends = Counter('"error"' in each.result() for each in streams)
        answers = [each.result() for each in wholes]
    assert ends[True] > 0
    assert ends[False] > 0
    assert all(answer.startswith("1, 2") for answer in answers)
    assert ask(cluster, "Count to 5").startswith("1, 2")
    wait_until(lambda: len(cluster.replicas()) == 2, START_S)


def test_the_last_line_says_why_no_replica_can_be_started(tmp_path):
    command = [*COMMAND, "--model", str(tmp_path), "--port", str(free_port())]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("easel: no replica can be started: ")
    assert str(tmp_path) in last
