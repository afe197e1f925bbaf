"""The command `sskd` as a user types it: commands by name, loaded on call."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sskd_fast
from sskd_fast.__main__ import COMMANDS, main, wanted
from tests.test_imports import imported_names

ROOT = Path(__file__).resolve().parent.parent


def sskd(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sskd_fast", *arguments], cwd=ROOT, capture_output=True, text=True)


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)


def test_alone_it_says_what_to_type() -> None:
    done = sskd()
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and done.stderr == "" and len(lines) == 1 + len(COMMANDS)
    assert [line.split()[1] for line in lines[1:]] == list(COMMANDS)
    assert all(len(line) <= 80 for line in lines)


def test_the_version_is_that_of_the_package() -> None:
    done = sskd("--version")
    assert (done.returncode, done.stdout) == (0, f"sskd_fast {sskd_fast.__version__}\n")


def test_an_unknown_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predcit", "x"]) == 2
    known = "expected one of train, label, predict, evaluate, export, check, rank, study, report, demo, info"
    assert capsys.readouterr().err == f"error: predcit: no such command; did you mean predict? {known}\n"
    assert main(["zzz"]) == 2
    assert capsys.readouterr().err == f"error: zzz: no such command; {known}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_ends_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    options, example = capsys.readouterr().out.rsplit("\nexample", 1)
    assert "--help" in options
    commands = [line for line in example.splitlines() if line.strip("s:")]
    assert commands and all("python -m sskd_fast." in line for line in commands)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict m i --score abc", "--score: found 'abc', expected a number from 0 to 1"),
        ("predict m i --score nan", "--score: found 'nan', expected a number from 0 to 1"),
        ("rank r i --score 1.5", "--score: found '1.5', expected a number from 0 to 1"),
        ("demo r --port 0", "--port: found '0', expected a whole number from 1 to 65535"),
        ("predict m i --every 0", "--every: found '0', expected a whole number of at least 1"),
        ("rank r i --top 1.5", "--top: found '1.5', expected a whole number of at least 1"),
        ("evaluate m --val v --batch x", "--batch: found 'x', expected a whole number of at least 1"),
    ],
)
def test_numbers_out_of_range_are_named_with_the_range(
    command: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {message}\n")


def test_a_command_has_the_exit_status_of_its_module() -> None:
    done = sskd("train", "--labeled", "missing.json")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert sskd("info", "--unknown").returncode == 2


def test_nothing_heavy_is_loaded_for_the_list_of_commands() -> None:
    done = python("import sys\nfrom sskd_fast.__main__ import main\nmain([])\nprint('torch' in sys.modules)")
    assert done.stdout.splitlines()[-1] == "False"


def test_threads_of_training_are_set_up_before_torch() -> None:
    done = python("""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("spins", os.environ.get("GOMP_SPINCOUNT"))
sys.meta_path.insert(0, Watch())
os.environ.pop("GOMP_SPINCOUNT", None)
os.environ.pop("OMP_WAIT_POLICY", None)
from sskd_fast.__main__ import main
main(["train", "--help"])
""")
    assert done.returncode == 0 and done.stdout.startswith("spins 10000\nusage: python -m sskd_fast.run")


SETS_UP_THREADS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("sskd_fast", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if re.search("import .*_process .*(noqa|isort: split)", path.read_text())
)


@pytest.mark.parametrize("module", SETS_UP_THREADS)
def test_modules_that_train_set_up_threads_before_torch(module: str) -> None:
    done = python(f"""
import importlib, os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("spins", os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
os.environ.pop("GOMP_SPINCOUNT", None)
os.environ.pop("OMP_WAIT_POLICY", None)
importlib.import_module({module!r})
""")
    assert done.stdout == "spins 10000\n", done.stderr


def test_a_missing_package_is_named_with_its_cure() -> None:
    done = python("""
import sys
sys.modules["pycocotools"] = None
from sskd_fast.__main__ import main
sys.exit(main(["train", "--help"]))
""")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: sskd train needs the package pycocotools: pip install pycocotools\n"
    assert wanted("timm") == "'sskd_fast[models]'" and wanted("nowhere_else") == "nowhere_else"


def test_every_package_that_is_imported_can_be_installed_by_the_name_given() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {f"'sskd_fast[{extra}]'" for extra in project["optional-dependencies"]}
    installable = {re.split(r"[<>=]", requirement)[0] for requirement in project["dependencies"]} | extras
    trees = [ast.parse(path.read_text()) for path in (ROOT / "sskd_fast").rglob("*.py")]
    named = {name for tree in trees for _, name, _ in imported_names(tree, "sskd_fast", is_package=True)}
    foreign = {name.partition(".")[0] for name in named} - sys.stdlib_module_names - {"sskd_fast", "triton"}
    assert {"PIL", "yaml", "cv2", "torch"} <= foreign
    assert {module: wanted(module) for module in foreign if wanted(module) not in installable} == {}
    assert [wanted(module) for module in ("PIL", "yaml", "cv2")] == ["pillow", "pyyaml", "'sskd_fast[video]'"]


def test_the_console_script_calls_the_same_function() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, name = scripts["sskd"].split(":")
    assert getattr(importlib.import_module(module), name) is main


def test_a_reader_that_ends_early_is_no_fault() -> None:
    """As `sskd --help | head -1`."""
    command = f"{sys.executable} -m sskd_fast --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 141) and done.stderr == ""
