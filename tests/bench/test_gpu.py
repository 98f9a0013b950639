"""`easel bench gpu`, run on the CPU in tiny sizes, and its report of made-up rows of a GPU."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.__main__ import main
from bench.gpu import command, stages
from bench.gpu.report import write_report
from bench.gpu.results import described, is_failure, read_rows
from bench.gpu.stages import Stage, planned
from tests.polling import wait_until

ROOT = Path(__file__).parents[2]
FILES = {"results.jsonl", "log.txt", "profile.txt", "server.txt", "report.md"}
PLOTS = {"kernels.png", "steps.png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs every stage. Returns the process that ran them, and its folder."""
    out = tmp_path_factory.mktemp("gpu")
    options = ["--tiny", "--minutes", "30", "--formats", "int4", "--out", str(out)]
    process = subprocess.run(
        ["bash", "bench/gpu_check.sh", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, out


@pytest.fixture(scope="module")
def results(run):
    return read_rows(run[1])


def cases(results, stage):
    return [row["case"] for row in results if row["stage"] == stage]


pytestmark = pytest.mark.timeout(600)  # Triton's interpreter is slow on a busy machine


def test_no_stage_and_no_case_of_a_tiny_run_fails(run, results):
    process, out = run
    assert process.returncode == 0, process.stdout + (out / "log.txt").read_text()[-5000:]
    assert list(filter(is_failure, results)) == []
    assert {file.name for file in out.iterdir()} == FILES | PLOTS
    assert process.stdout.endswith("no failure\n")


def test_each_stage_has_a_row_at_its_end_and_a_line_of_progress_with_the_time_left(run, results):
    ends = [row["stage"] for row in results if row["case"] == "whole stage"]
    assert ends == ["machine", "kernels", "model", "released int4", "server"]
    for stage in ends:
        assert f" left] {stage}: whole stage: " in run[0].stdout


def test_the_machine_is_described_and_its_ceilings_are_measured(results):
    versions, *others = [row for row in results if row["stage"] == "machine"][:-1]
    assert versions["missing"] == []
    assert versions["versions"]["torch"]
    assert [row["case"].removeprefix("small operation: ") for row in others] == [
        "device copy, read and write",
        "device read (amax)",
        "host to device, pageable",
        "product of 64 x 64 in float32",
        "product of 64 x 64 in float8_e4m3fn",
        "add",
        "multiply by a row",
        "rms_norm",
        "cat",
        "topk",
        "argsort",
    ]
    for row in others:
        assert row.get("gb_s") or row.get("tflops") or row["in_graph_us"]


def test_each_kernel_agrees_with_float32_and_is_timed_beside_torch(results):
    kernels = {row["case"]: row for row in results if "ok" in row and row["stage"] == "kernels"}
    products = ("experts gate_up", "experts down", "sliding qkv")
    schemes = ("dense", "int8", "fp8", "int4")
    attentions = {"attention d=32, 64 entries", "attention d=64, 64 entries"}
    assert set(kernels) == {
        *(f"{name}, 24 rows, {scheme}" for name in products for scheme in schemes),
        *attentions,
        "the beginning of a pass",
        "heads of size 16",
        "routing",
        "dispatch",
        "gates of both MLPs",
        "the end of a layer",
        "a block's noise",
        "tail, embedding bf16",
        "tail, embedding int8",
    }
    for case, row in kernels.items():
        assert row["ok"]
        assert row["ms"] > 0
        assert ("torch_ms" in row) == (case.split(", ")[-1] not in schemes[1:])


def test_the_small_model_has_the_same_answers_everywhere(results):
    compared = {row["case"]: row["identical"] for row in results if "identical" in row}
    assert compared == dict.fromkeys(
        [
            "float32: the GPU without graphs against the CPU",
            "float32: graphs against no graphs",
            "bfloat16: graphs against no graphs",
            "int8: graphs against no graphs",
            "int4: graphs against no graphs",
            "fp8, rest int8: graphs against no graphs",
            "float32: speculating against not speculating",
            "demo model's answers",
        ],
        True,
    )
    [evictions] = [row for row in results if row["case"] == "many captures and evictions"]
    assert evictions["captures"] > evictions["rounds"] > 0  # each round needs graphs of its own


def test_the_released_size_is_timed_behind_two_contexts_and_in_parts(results):
    assert cases(results, "released int4") == [
        "random weights made",
        "kernels chosen and compiled, caches and graphs made",
        "step behind 64 tokens",
        "profile of a step behind 64 tokens",
        "profile of a dynamic step",
        "parts of a step",
        "blocks of 8 steps, 1 canvases",
        "step behind 160 tokens",
        "profile of a step behind 160 tokens",
        "memory",
        "whole stage",
    ]


def test_the_server_streams_answers_of_both_models_alone_and_together(results):
    servers = [row for row in results if row["stage"] == "server" and "ready_s" in row]
    assert [row["case"] for row in servers] == [
        "demo model",
        "quantised while loading",
    ]
    for row in servers:
        assert row["first_block_s"] > 0
        assert row["tokens_s"] > 0
        assert row["together"] == len(row["same_together"]) == 10
        assert row["together_tokens_s"] > 0
        assert any(line.startswith("easel_") for line in row["metrics"])


@pytest.fixture
def programs(monkeypatch):
    """Replaces stages by programs. `programs[name]` is the source of a stage's program."""
    sources = {}
    popen = subprocess.Popen

    def start(arguments, **options):
        name = " ".join(arguments[arguments.index("bench.gpu") + 1 :])
        return popen([sys.executable, "-c", sources[name]], **options)

    monkeypatch.setattr(command.subprocess, "Popen", start)
    return sources


HEALTHY = "from bench.gpu.results import write_row; write_row('healthy', case='a', ms=1.5)"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise SystemExit(7)", "ended with exit status 7; "),
        ("import os; os.kill(os.getpid(), 11)", "ended by SIGSEGV; "),
        ("raise SystemExit(3)", "the rest of the stage did not run after an error of CUDA; "),
        ("import time; time.sleep(60)", "stopped after 8 s, its time limit; "),
    ],
)
def test_a_stage_that_fails_or_is_stopped_is_a_row_and_the_next_one_runs(
    programs, tmp_path, source, reason
):
    programs |= {"broken": source, "healthy": HEALTHY}
    lines = []
    run = command.Run(tmp_path / "out", minutes=9, tiny=True, say=lines.append)
    assert not run.stages([Stage("broken", 8), Stage("healthy", 50)])
    broken, healthy, end = read_rows(tmp_path / "out")
    assert (broken["stage"], broken["case"]) == ("broken", "whole stage")
    assert broken["FAILED"].startswith(reason)
    assert (healthy["stage"], healthy["ms"]) == ("healthy", 1.5)
    assert end["case"] == "whole stage"
    assert lines[-1] == "1 failures"
    assert any(line.endswith("left] healthy: a: 1.5 ms") for line in lines)


def test_the_processes_that_a_stopped_stage_has_started_end_with_it(programs, tmp_path):
    child = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True)"
    programs["stuck"] = f"{child}; p.wait()"
    run = command.Run(tmp_path, minutes=9, tiny=True, say=lambda _line: None)
    run.stages([Stage("stuck", 8)])
    state = Path(f"/proc/{(tmp_path / 'log.txt').read_text().split()[-1]}/stat")
    # A killed process ends when it runs next. A zombie has ended.
    wait_until(lambda: not state.exists() or ") Z " in state.read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_an_interrupted_run_ends_its_stage_and_reports_what_was_measured(tmp_path, number):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "gpu", "--tiny", "--stages", "kernels", "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "] kernels: experts" in line:
            break
    process.send_signal(number)
    lines, _ = process.communicate()
    assert process.returncode != 0
    assert lines.splitlines()[-1] == f"the report is {out / 'report.md'}"
    assert "| experts gate_up, 24 rows, dense | yes |" in (out / "report.md").read_text()
    assert not any(str(out).encode() in each for each in environments())


def environments():
    """Yields the environment of each process that has not ended."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            yield file.read_bytes()


def test_a_stage_leaves_time_for_those_behind_it_or_is_skipped(programs, tmp_path):
    programs["last"] = HEALTHY
    run = command.Run(tmp_path, minutes=1, tiny=True, say=lambda _line: None)
    assert run.stages([Stage("long", 500), Stage("last", 400, kept_s=400)])
    skipped, *_, end = read_rows(tmp_path)
    assert (skipped["stage"], skipped["SKIPPED"]) == ("long", "no time was left")
    assert (end["stage"], end["case"]) == ("last", "whole stage")


def test_a_case_that_fails_in_a_stage_is_a_row(tmp_path):
    """The stage needs a GPU, which torch does not see here."""
    out = tmp_path / "out"
    run = command.Run(out, minutes=9, tiny=False, say=lambda _line: None)
    run._variables["CUDA_VISIBLE_DEVICES"] = ""
    assert not run.stages([Stage("machine", 120)])
    failed, end = read_rows(out)
    assert failed["case"] == "whole stage"
    assert failed["FAILED"].startswith("DeviceError: device is 'cuda', but torch ")
    assert "FAILED" not in end


def test_the_stages_are_in_the_order_of_their_value_and_fit_their_names():
    every = list(planned(stages.NAMES, stages.DEFAULT_FORMATS))
    assert [stage.name for stage in every] == [
        "machine",
        "kernels",
        "model",
        *(f"released {each}" for each in ("bf16", "int8", "int4", "int8x", "fp8")),
        "server",
    ]
    assert [stage.name for stage in planned(["server"], ["bf16"])] == ["server"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "NVIDIA's driver reports no GPU on this machine. --tiny runs the same code"),
        (["--tiny", "--stages", "kernels,env"], "'env' is unknown: allowed are machine, kernels"),
        (["--tiny", "--formats", "int5"], "'int5' is unknown: allowed are bf16, int8"),
        (["--report", "/nowhere"], "/nowhere has no results.jsonl"),
        (["--minutes", "0"], "Invalid value for '--minutes'"),
    ],
)
def test_what_cannot_run_is_refused(monkeypatch, arguments, expected):
    monkeypatch.setattr("bench.__main__.first_gpu", lambda: None)
    result = CliRunner().invoke(main, ["gpu", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert expected in result.output


def gpu_rows():
    """Returns rows as an H200 might give them."""
    versions = {"torch": "2.13.0", "triton": "3.7.1", "transformers": "5.24.0"}
    steps = [
        row
        for name, context, step_ms, launches in (
            ("bf16", 8192, 22.0, 400),
            ("bf16", 32768, 29.5, 400),
            ("int4", 8192, 8.4, 390),
        )
        for row in (
            {
                "stage": f"released {name}",
                "case": f"step behind {context:,} tokens",
                "context": context,
                "step_ms": step_ms,
                "roofline_ms": 11.0,
                "roofline_share": 11 / step_ms,
                "tokens_s_at_15": 15 / step_ms * 1e3,
            },
            {
                "stage": f"released {name}",
                "case": f"profile of a step behind {context:,} tokens",
                "context": context,
                "launches": launches,
                "top": [["a|kernel", 30, 4.5]],
            },
        )
    ]
    return [
        {
            "stage": "machine",
            "case": "versions",
            "python": "3.12.3",
            "torch_cuda": "13.0",
            "missing": ["gguf"],
            "versions": versions,
        },
        {
            "stage": "machine",
            "case": "GPU",
            "name": "NVIDIA H200",
            "major": 9,
            "minor": 0,
            "total_gb": 150.1,
            "multi_processor_count": 132,
        },
        {"stage": "machine", "case": "driver", "driver_version": "580.95"},
        {"stage": "machine", "case": "device copy, read and write", "gb_s": 4000.0},
        {
            "stage": "kernels",
            "case": "experts gate_up, 2048 rows, dense",
            "ok": True,
            "error": 2e-3,
            "ms": 0.4,
            "gb_s": 2540.0,
            "torch_ms": 0.5,
        },
        {
            "stage": "kernels",
            "case": "experts down, 2048 rows, int8",
            "ok": False,
            "error": 0.5,
            "ms": 0.2,
            "gb_s": 1200.0,
        },
        {
            "stage": "model",
            "case": "bfloat16: graphs against no graphs",
            "identical": False,
            "first_difference": {"0": 17},
        },
        *steps,
        {
            "stage": "released fp8",
            "case": "memory",
            "SKIPPED": "it needs 30 GB, and 24 GB are free",
        },
        {"stage": "server", "case": "demo model", "FAILED": "RuntimeError: not\nready"},
    ]


@pytest.fixture
def made(tmp_path):
    """A folder with the rows of a GPU, without a report."""
    lines = [json.dumps({"at_s": 1.0, **row}) for row in gpu_rows()]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + '\n{"stage": "server", "ca')
    return tmp_path


def test_the_report_is_made_again_from_rows_of_which_the_last_was_cut_off(made):
    result = CliRunner().invoke(main, ["gpu", "--report", str(made)])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(made / "report.md")
    assert {file.name for file in made.iterdir()} == {"results.jsonl", "report.md"} | PLOTS
    report = (made / "report.md").read_text()
    assert report.startswith("# Easel on NVIDIA H200\n")
    for line in (
        "| kernels | experts down, 2048 rows, int8 | a wrong result |",
        "| server | demo model | RuntimeError: not ready |",
        "| compute capability | 9.0 |",
        "| driver_version | 580.95 |",
        "| missing libraries | gguf |",
        "| experts gate_up, 2048 rows, dense | yes | 2.0e-03 | 0.4 | 2,540 | 64% | 0.5 | 1.25 |",
        "| bfloat16: graphs against no graphs | **different**, from {'0': 17} |",
        "| bf16 | 8,192 | 22 | 11 | 50% | 682 | 400 |",
        "| bf16 | 32,768 | 29.5 | 11 | 37% | 508 | 400 |",
        "| bf16 | `a\\|kernel` | 30 | 4.5 |",
        "| released fp8 | skipped, because it needs 30 GB, and 24 GB are free |",
    ):
        assert line in report
    assert "## A small model's answers" in report
    assert "![kernels](kernels.png)" in report


def test_without_matplotlib_the_report_has_no_plots_and_says_so(made, monkeypatch):
    monkeypatch.setattr("bench.gpu.report.find_spec", lambda _name: None)
    report = write_report(made).read_text()
    assert "There are no plots, because matplotlib is not installed" in report
    assert ".png" not in report
    assert not any((made / plot).exists() for plot in PLOTS)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"case": "a", "ms": 0.2134, "gb_s": 2412.3, "ok": True},
            "kernels: a: 0.213 ms, 2,412 GB/s",
        ),
        ({"case": "a", "ok": False, "error": 0.5}, "kernels: a: WRONG, error 5.0e-01"),
        ({"case": "a", "FAILED": "no\nway"}, "kernels: a: FAILED: no way"),
        ({"case": "a", "identical": False}, "kernels: a: different"),
        ({"case": "a", "SKIPPED": "no"}, "kernels: a: skipped, because no"),
    ],
)
def test_a_line_of_progress_says_what_a_row_holds(row, expected):
    assert described({"stage": "kernels", **row}) == expected
