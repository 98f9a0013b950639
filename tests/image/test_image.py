"""The image, built and run as a user would, but without a Docker engine: `make image-test`.

This is not part of `make test`, because it takes minutes and needs root and Debian's buildah,
podman, runc and debootstrap. The base image is Debian with its Python, bootstrapped here under the
base image's name, because a registry of images may not be reachable. If PIP_FIND_LINKS names CPU
wheels, the build uses them and stays small. All files are in one folder, which is removed at the
end.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from tests.counting import count, counted
from tests.real_prometheus import running_prometheus

pytestmark = pytest.mark.timeout(3600)

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.12-slim"
# The suite's Python is 3.11, the oldest that Easel supports.
SUITE, PACKAGES = "bookworm", "python3,python3-venv,ca-certificates"
TOOLS = ("debootstrap", "buildah", "podman", "runc", "iptables")
CERTIFICATES = "/etc/ssl/certs"
BRIDGE = Path("/sys/class/net/cni-podman0")
START_S = 120


@dataclass(frozen=True)
class Machine:
    """A folder for all files, and the container tools, which keep their storage in it."""

    folder: Path

    def run(self, *command: str, storage: str) -> str:
        """Run a command with the storage "build" or "run". Returns its standard output.

        Raises AssertionError if the command fails.
        """
        root = self.folder / storage
        root.mkdir(exist_ok=True)
        configuration = root / "storage.conf"
        configuration.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{root}/graph"\nrunroot = "{root}/run"\n'
        )
        variables = {
            "CONTAINERS_STORAGE_CONF": str(configuration),
            "TMPDIR": str(self.folder),  # also used for cache mounts
        }
        done = subprocess.run(
            command, env={**os.environ, **variables}, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def podman(self, *arguments: str) -> str:
        """Run podman. Returns its standard output; without systemd it writes warnings to stderr."""
        return self.run(
            "podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs", *arguments, storage="run"
        )


def limits() -> list[str]:
    """Returns low limits, because without CAP_SYS_RESOURCE root can't set podman's defaults."""
    return ["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def mounts(folder: Path) -> list[str]:
    """Returns the mount points below the folder, in the order of mounting."""
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [point for point in points if point.startswith(f"{folder}/")]


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        pytest.fail(
            f"needs root, and {', '.join(missing) or 'nothing else'}. On Debian: apt-get install "
            "buildah podman runc debootstrap containernetworking-plugins iptables prometheus"
        )
    bridge_was_there = BRIDGE.exists()
    folder = Path(tempfile.mkdtemp(prefix="easel-image-", dir="/var/tmp"))
    machine = Machine(folder)
    try:
        yield machine
    finally:
        machine.podman("rm", "--all", "--force", "--volumes")
        machine.podman("rmi", "--all", "--force")
        machine.run("buildah", "rm", "--all", storage="build")
        for mounted in reversed(mounts(folder)):  # of the storage, or of a step that failed
            subprocess.run(["umount", mounted], check=True)
        shutil.rmtree(folder)
        if BRIDGE.exists() and not bridge_was_there:
            subprocess.run(["ip", "link", "delete", BRIDGE.name], check=True)


@pytest.fixture(scope="session")
def base(machine: Machine) -> str:
    """Debian's Python, in the build storage under the name of the base image."""
    root = machine.folder / "root"
    machine.run(
        "debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root),
        storage="build",
    )  # fmt: skip
    (root / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")
    shutil.rmtree(root / "var" / "cache" / "apt")
    archive = machine.folder / "root.tar"
    machine.run("tar", "-C", str(root), "-cf", str(archive), ".", storage="build")
    shutil.rmtree(root)
    machine.run("podman", "import", "--quiet", str(archive), BASE, storage="build")
    archive.unlink()
    return BASE


@pytest.fixture(scope="session")
def image(machine: Machine, base: str) -> str:
    """The image, built by buildah and loaded into podman as an archive for `docker load`."""
    wheels = os.environ.get("PIP_FIND_LINKS", "")
    mounted = [f"--volume={wheels}:{wheels}:ro"] if Path(wheels).is_dir() and wheels else []
    cpu = ["--build-arg", f"PIP_FIND_LINKS={wheels}", "--build-arg", "C_COMPILER="]
    started = time.monotonic()
    machine.run(
        "buildah", "bud", "--pull-never", "--isolation", "chroot", "--format", "docker", "--layers",
        f"--volume={CERTIFICATES}:{CERTIFICATES}:ro", *mounted, *(cpu if wheels else []),
        "--tag", "easel", ".", storage="build",
    )  # fmt: skip
    archive = machine.folder / "easel.tar"
    machine.run("buildah", "push", "easel", f"docker-archive:{archive}:easel", storage="build")
    print(f"\nbuilt in {time.monotonic() - started:.0f} s, {archive.stat().st_size / 1e6:.0f} MB")
    machine.podman("load", "--quiet", "--input", str(archive))
    archive.unlink()
    return "localhost/easel"


@dataclass(frozen=True)
class Container:
    machine: Machine
    name: str
    url: str

    def logs(self) -> str:
        return (self.machine.folder / "log").read_text()

    def sh(self, script: str) -> str:
        return self.machine.podman("exec", self.name, "sh", "-c", script).strip()


@pytest.fixture(scope="session")
def container(machine: Machine, image: str) -> Container:
    """A running container, started as by docker-compose.yml but without a GPU.

    It has no init process either, as with `docker run`.
    """
    port = free_port()
    machine.podman(
        "run", "--detach", "--name", "easel", *limits(), "--publish", f"127.0.0.1:{port}:8000",
        "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL",
        "--security-opt", "no-new-privileges",
        "--log-driver", "k8s-file", "--log-opt", f"path={machine.folder / 'log'}", image,
    )  # fmt: skip
    running = Container(machine, "easel", f"http://127.0.0.1:{port}")
    deadline = time.monotonic() + START_S
    while not is_ready(running.url):
        assert time.monotonic() < deadline, f"not ready in {START_S} s:\n{running.logs()}"
        time.sleep(0.2)
    return running


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health/ready").status_code == 200
    return False


def test_without_a_gpu_the_log_says_that_the_demo_model_is_served(container):
    assert "there is no GPU to use" in container.logs()
    (model,) = httpx.get(f"{container.url}/v1/models").json()["data"]
    assert model["id"] == "demo"


def test_the_health_check_of_the_image_succeeds(machine, container):
    machine.podman("healthcheck", "run", container.name)
    (state,) = json.loads(machine.podman("inspect", container.name))
    assert state["State"]["Health"]["Status"] == "healthy"


def test_an_answer_is_streamed_out_of_the_container(container):
    with openai.OpenAI(base_url=f"{container.url}/v1", api_key="none", max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": count(2)}], stream=True
            )
        )
    parts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(parts) > 1
    assert "".join(parts) == counted(2)


def test_it_runs_as_an_unprivileged_user_that_can_write_only_the_cache(container):
    assert container.sh("id -u") == "10001"
    assert container.sh("touch /x 2>/dev/null || echo refused") == "refused"
    assert container.sh("touch /cache/x && rm /cache/x && echo written") == "written"


def test_easel_itself_is_process_1(container):
    assert "easel serve" in container.sh("tr '\\0' ' ' < /proc/1/cmdline")


def test_no_build_tool_is_in_the_image(container):
    tools = "pip pip3 make cmake git curl wget hatchling g++ ld"
    if "PIP_FIND_LINKS" in os.environ:
        tools += " cc gcc"  # they are needed for Triton only, which the CPU wheel lacks
    assert container.sh(f"for tool in {tools}; do command -v $tool || true; done") == ""
    assert container.sh("python -m pip --version 2>/dev/null || echo none") == "none"
    assert container.sh("ls -d /source /staged /opt/build 2>/dev/null || echo none") == "none"


def test_any_user_can_write_the_cache(machine, image):
    output = machine.podman(
        "run", "--rm", *limits(), "--user", "4242:4242", "--network", "none",
        "--entrypoint", "python", image,
        "-c", "import os, pathlib; pathlib.Path('/cache/x').touch(); print(os.getuid())",
    )  # fmt: skip
    assert output.strip() == "4242"


def test_commands_other_than_serve_can_be_run(machine, image):
    output = machine.podman("run", "--rm", *limits(), "--network", "none", image, "version")
    assert re.fullmatch(r"\d+\.\d+\.\d+", output.strip())


def test_easel_itself_is_a_small_layer(machine, image):
    history = json.loads(machine.podman("history", "--format", "json", image))
    sizes = [(layer["size"], layer["CreatedBy"]) for layer in history if layer["size"]]
    for size, made_by in sizes:
        print(f"{size / 1e6:10.1f} MB  {made_by[:80]}")
    last, made_by = sizes[0]
    assert "/staged/opt/easel" in made_by or "COPY" in made_by
    assert last < 20e6


def test_prometheus_scrapes_the_container(container, tmp_path):
    httpx.post(
        f"{container.url}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": count(2)}]},
        timeout=60,
    ).raise_for_status()
    with running_prometheus(container.url.partition("//")[2], tmp_path) as prometheus:
        prometheus.wait_for_scrapes(2)
        ((_, up),) = prometheus.query('up{job="easel"}')
        ((_, steps),) = prometheus.query("easel_denoising_steps_total")
    assert (up, steps > 0) == (1, True)


def test_sigterm_ends_the_container_gracefully(machine, container):
    """This must be the last test, because it ends the container."""
    machine.podman("stop", "--time", "45", container.name)
    (state,) = json.loads(machine.podman("inspect", container.name))
    assert state["State"]["ExitCode"] == 0  # it would be 137 if the container had to be killed
    assert state["Config"]["StopSignal"] in (15, "SIGTERM")
