"""The one command for ten minutes on a GPU: dry, with steps that fail or take too long, and the page made of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_call, gpu_page
from benchmarks.cases import DTYPES
from benchmarks.gpu_steps import STEPS, Step, ncu, sanitize
from benchmarks.gpu_steps.tools import kill_tree, side_by_side
from benchmarks.marked import marks

# What a bare machine with a GPU lacks: whatever imports one of these is refused, in child processes too.
HIDDEN = ("pycocotools", "cityscapesscripts", "transformers", "peft", "pytorch_metric_learning")


def call(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_call", *options]
    return subprocess.run(
        command, cwd=gpu_call.ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def without(folder: Path) -> dict[str, str]:
    """A path on which what a bare machine lacks cannot be imported."""
    folder.mkdir()
    for name in HIDDEN:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} is not on a bare machine')\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_a_dry_call_tries_every_step_with_what_a_bare_machine_has(tmp_path):
    done = call("--out", str(tmp_path / "out"), "--dry", **without(tmp_path / "hidden"))
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    contents = {}
    for step in STEPS:
        file = tmp_path / "out" / f"{step.name}.json"
        assert file.stat().st_size < gpu_call.LARGEST_FILE
        contents[step.name] = json.loads(file.read_text())
        assert contents[step.name]["status"] == "passed" and contents[step.name]["dry"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{step.name}.json" for step in STEPS}
    rows = contents["times"]["found"]["steps"]
    contenders = ("triton", "dense", "dense-compiled", "reference")
    assert [row["contender"] for row in rows] == [contender for contender in contenders for _ in DTYPES]
    assert all(row["ms"] > 0 for row in rows)
    operators = contents["times"]["found"]["operators"]
    assert {row["operator"] for row in operators} == {
        "score_fusion",
        "negative_sampling",
        "hardest_negatives",
        "pixel_contrast",
        "expected_pixel_contrast",
    }
    assert contents["correct"]["found"]["outcomes"] == {"passed": 3}
    assert contents["sanitize"]["found"]["checks"][0]["outcome"] == "clean"
    on, off = (contents["training"]["found"][f"contrast {x}"]["ms_by_part"]["contrast"] for x in ("on", "off"))
    assert on > 10 * off
    page = tmp_path / "gpu.md"
    page.write_text("before\n" + "\n".join(marks(gpu_page.COMMAND)) + "\nafter\n")
    assert gpu_page.main([str(tmp_path / "out"), "--page", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "no GPU (a dry run on a CPU)" in text and f"sources {gpu_call.source_digest()}" in text
    assert (
        text.count("| passed |") == len(STEPS) and "| negative_sampling | forward | 1x4 | bfloat16 | triton |" in text
    )


@pytest.mark.parametrize("step", [step.name for step in STEPS])
def test_a_step_can_be_imported_on_a_bare_machine(tmp_path, step):
    environment = {**os.environ, **without(tmp_path / "hidden")}
    command = [sys.executable, "-c", f"import benchmarks.gpu_steps.{step}"]
    done = subprocess.run(command, cwd=gpu_call.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_step_leaves_its_file_alone(tmp_path):
    done = call("--out", str(tmp_path), "--dry", "--only", "machine")
    assert done.returncode == 0 and "machine: passed" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["machine.json"]
    content = json.loads((tmp_path / "machine.json").read_text())
    assert content["place"]["torch"] == torch.__version__ and content["found"]["launch_us"] > 0
    assert content["place"]["sources"] == gpu_call.source_digest()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_way_out_is_named(tmp_path):
    done = call("--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "torch sees no GPU; --dry tries everything" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_step_that_fails_is_recorded_and_one_that_takes_too_long_is_stopped(tmp_path):
    nothing: dict[str, Any] = {}
    missing = Step("missing", 1, "no such step")
    assert gpu_call.run_step(missing, tmp_path, nothing, limit=60, dry=True) == "failed"
    content = json.loads((tmp_path / "missing.json").read_text())
    assert "invalid choice: 'missing'" in content["log_end"] and content["found"] == {}
    start = time.monotonic()
    times = next(step for step in STEPS if step.name == "times")
    assert gpu_call.run_step(times, tmp_path, nothing, limit=0.3, dry=True) == "stopped at its limit"
    assert time.monotonic() < start + 20
    assert json.loads((tmp_path / "times.json").read_text())["status"] == "stopped at its limit"


def test_a_stopped_step_leaves_no_process_behind(tmp_path):
    """A shell that starts another in a session of its own."""
    script = (
        f"import subprocess, sys, time; p = subprocess.Popen(['sleep', '600'], start_new_session=True); "
        f"open('{tmp_path}/pid', 'w').write(str(p.pid)); print('up', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        kill_tree(process.pid)
    child = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_commands_side_by_side_report_as_they_end():
    commands = {"good": ["echo", "fine"], "bad": ["sh", "-c", "echo wrong; exit 3"], "slow": ["sleep", "600"]}
    found = {name: (status, output) for name, status, _, output in side_by_side(commands, 1.0, {})}
    assert found == {"good": (0, "fine\n"), "bad": (3, "wrong\n"), "slow": (None, "")}


def test_a_file_at_its_size_limit_names_the_findings_left_out(tmp_path):
    content = {"step": "times", "found": {"small": 1, "large": "x" * 300_000}}
    fitted = gpu_call.fitting(content)
    assert fitted["found"] == {"small": 1} and fitted["left_out"] == ["large"]


SANITIZED = """triton odd: ran
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at negative_sampling_race_kernel+0x1b0
========= ERROR SUMMARY: 1 error
"""


def test_a_sanitizers_report_is_kept():
    assert sanitize.outcome(0, "triton odd: ran\n========= ERROR SUMMARY: 0 errors\n") == "clean"
    assert sanitize.outcome(0, "========= ERROR SUMMARY: 0 errors\n") == "ended with 0"  # the program did not run
    assert sanitize.outcome(99, SANITIZED) == "errors found" and sanitize.outcome(None, "") == "stopped at the limit"
    found = sanitize.details(99, SANITIZED)
    assert found["summary"] == ["ERROR SUMMARY: 1 error"] and "negative_sampling_race_kernel+0x1b0" in found["said"]
    assert sanitize.details(1, "Traceback\nImportError: x")["said"].endswith("ImportError: x")


PROFILED = """==PROF== Connected to process 7
triton 8x703: ran
"ID","Process ID","Kernel Name","Device","gpu__time_duration.sum","dram__bytes.sum","smsp__inst_executed.sum"
"","","","","nsecond","byte","inst"
"0","7","score_fusion_forward_kernel","0","12,300","4,096","1,000"
"2","7","score_fusion_forward_kernel","0","1","1","1"
"3","7","void sskd_fast::cuda::expected_rows_kernel<float>(Rows)","0","2000","n/a","7"
"""


def test_the_counters_of_our_kernels_are_read():
    fusion, rows = ncu.kernel_rows(PROFILED)
    assert fusion["kernel"] == "score_fusion_forward_kernel"
    assert (fusion["us"], fusion["dram bytes"], fusion["instructions"]) == (12.3, 4096, 1000)
    assert rows["kernel"].startswith("sskd_fast::cuda::expected_rows_kernel") and rows["us"] == 2
    assert rows["dram bytes"] is None and rows["registers"] is None
    assert ncu.kernel_rows("==ERROR== no permission") == []
    pattern = re.compile(ncu.ours("triton")[-1].removeprefix("regex:"))
    assert pattern.search("expected_pixel_contrast_backward_kernel") and not pattern.search("elementwise_kernel")


def timed_rows(**ms: float) -> list[dict[str, Any]]:
    row = {"case": "8x703", "dtype": "float32", "fastest": 1, "slowest": 9}
    passes = [("pixel_contrast", "forward"), ("pixel_contrast", "backward"), ("negative_sampling", "forward")]
    return [row | {"contender": b, "operator": o, "mode": m, "ms": t} for b, t in ms.items() for o, m in passes]


def gpu_files(folder: Path, **place: str) -> None:
    """The files that a call on a GPU leaves for two steps."""
    where = {"card": "Some GPU", "capability": "9.0", "driver": ["580.1"], "date": "2026-01-02 03:04 UTC"}
    where |= {"python": "3.12.3", "torch": "2.11.0", "triton": "3.6.0", "cuda": "13.0", "commit": "abc", "sources": "s"}
    rows = timed_rows(triton=2.0, cuda=1.5)
    rows += [rows[0] | {"operator": "score_fusion", "contender": "triton"}]
    for name, found in (
        ("times", {"steps": [], "operators": rows}),
        ("correct", {"outcomes": {"failed": 1}, "summaries": ["FAILED a::b - no"]}),
    ):
        content = {"status": "passed", "dry": False, "seconds": 1.5, "place": where | place, "found": found}
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_measured_times_choose_the_backend_and_the_page_names_their_origin(tmp_path):
    gpu_files(tmp_path)
    found = gpu_page.read(tmp_path)
    text = gpu_page.page(found)
    assert text.startswith("Measured on Some GPU, driver 580.1, 2026-01-02 03:04 UTC; python 3.12.3, torch 2.11.0")
    assert "commit abc, sources s" in text and "- `FAILED a::b - no`" in text
    assert "| machine | not run | - |" in text and "| times | passed | 1.5 |" in text
    costs = tmp_path / "costs.json"
    costs.write_text('{"measured": {}, "counted": {"source": "none"}}')
    assert gpu_page.write_costs(found, costs)
    measured = json.loads(costs.read_text())["measured"]["9.0"]
    assert "Some GPU, 2026-01-02" in measured.pop("source")
    # Score fusion has one backend, and so one time, which decides nothing.
    assert measured["negative_sampling"] == {"triton": 2.0, "cuda": 1.5}
    assert measured["pixel_contrast"] == {"triton": 4.0, "cuda": 3.0} and len(measured) == 2


def test_a_page_of_nothing_of_a_mixture_or_of_a_dry_run_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"found no file of a step, expected what benchmarks.gpu_call --out wrote"):
        gpu_page.read(tmp_path)
    gpu_files(tmp_path)
    file = tmp_path / "correct.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"place": content["place"] | {"card": "Other GPU"}}))
    with pytest.raises(ValueError, match="the files differ in card: Other GPU, Some GPU"):
        gpu_page.read(tmp_path)
    file.write_text(json.dumps(content | {"dry": True}))
    with pytest.raises(SystemExit):
        gpu_page.main([str(tmp_path)])
    assert "a dry run, which has no figures of a GPU" in capsys.readouterr().err
