"""Declared metadata, and the content of a built wheel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import sskd_fast
from sskd_fast import kernels
from sskd_fast.models import pretrained

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {".py", ".safetensors", ".json", ".yaml", ".typed"}


def declared() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return project


def files_to_ship() -> set[str]:
    """The names in a wheel of every source, C++ and Triton ones included, weight file and preset of the checkout."""
    package = {path.relative_to(ROOT) for path in (ROOT / "sskd_fast").rglob("*") if path.suffix in SHIPPED}
    sources = {path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu"}}
    sources |= set((ROOT / "kernels").glob("*.py"))
    return {path.as_posix() for path in package | {"sskd_fast" / path.relative_to(ROOT) for path in sources}}


def test_one_version_everywhere() -> None:
    version = declared()["version"]
    assert sskd_fast.__version__ == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def requirements() -> list[Requirement]:
    """Every requirement of the package and of its extras."""
    project = declared()
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(each) for requirements in lists for each in requirements]


def floor(requirement: Requirement) -> Version:
    """The oldest version that a requirement allows."""
    (oldest,) = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    return oldest


def test_every_requirement_has_one_floor() -> None:
    """`nox -s oldest` takes the lowest version that is allowed: without a floor that is the first one ever released."""
    floors: dict[str, set[Version]] = {}
    for each in requirements():
        floors.setdefault(each.name, set()).add(floor(each))
    assert {"torch", "torchvision", "accelerate", "transformers", "peft", "timm"} <= floors.keys()
    assert {name: found for name, found in floors.items() if len(found) != 1} == {}


def test_supported_versions_are_told_as_declared() -> None:
    floors = {each.name: floor(each) for each in requirements()}
    page = (ROOT / "docs" / "developing.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| (\S+) and later \|", page, re.MULTILINE))
    floors["triton"] = Version(".".join(map(str, kernels.OLDEST_TRITON)))
    assert rows.keys() == {"torch", "torchvision", "triton", "accelerate", "transformers", "peft", "timm"}
    assert {name: Version(text) for name, text in rows.items()} == {name: floors[name] for name in rows}


def test_a_missing_class_of_transformers_asks_for_the_version_that_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    (oldest,) = {floor(each) for each in requirements() if each.name == "transformers"}
    monkeypatch.setattr(pretrained, "transformers", lambda: SimpleNamespace(__version__="5.0.0"))
    with pytest.raises(pretrained.FoundationError, match=rf"no AutoNone, expected {oldest} or later: .*>={oldest}'$"):
        pretrained.load("AutoNone", "any", "teacher.kind", weights=False)


def test_pythons_are_the_same_everywhere() -> None:
    """Classifiers, noxfile.py and the workflow name the same versions of Python, from the oldest that is allowed."""
    project = declared()
    prefix = "Programming Language :: Python :: 3."
    pythons = [each.removeprefix(prefix[:-2]) for each in project["classifiers"] if each.startswith(prefix)]
    assert project["requires-python"] == f">={pythons[0]}"
    assert f"\nPYTHONS = {json.dumps(pythons)}\n" in (ROOT / "noxfile.py").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"matrix: \{python: (\[.*\])\}", workflow)) == {json.dumps(pythons)}


def test_setup_does_not_import_torch() -> None:
    script = """
import runpy, sys
sys.argv = ["setup.py", "--name"]
runpy.run_path("setup.py")
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "sskd_fast"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the checkout, so that no stale build folder gets into it or stays behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skip)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_a_wheel_holds_code_weights_and_presets(wheel: Path) -> None:
    expected = files_to_ship()
    assert {Path(name).suffix for name in expected} >= {".py", ".safetensors", ".yaml"}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.startswith("sskd_fast-")}
        metadata = {Path(name).name for name in archive.namelist()} - {Path(name).name for name in held}
    assert held == expected
    assert {"METADATA", "LICENSE"} <= metadata


@pytest.mark.slow
def test_an_unpacked_wheel_imports_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = "import sskd_fast; print(sskd_fast.__file__); [getattr(sskd_fast, name) for name in sskd_fast.__all__]"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(site)


def as_another_user() -> list[str]:
    """A prefix that runs a command as an ordinary user; skips the test if root has no such prefix."""
    if os.geteuid() != 0:
        return []
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--user", "true"]).returncode != 0:
        pytest.skip("root cannot become another user here (unshare --user)")
    return ["unshare", "--user"]


@pytest.mark.slow
def test_a_wheel_runs_as_strangers_run_it(wheel: Path, tmp_path: Path) -> None:
    """Away from the checkout, as another user than root, with a home that is read-only, without TensorBoard and a
    compiler's cache, with deprecations as errors."""
    site, home, away = tmp_path / "site", tmp_path / "home", tmp_path / "away"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "tensorboard.py").write_text("raise ModuleNotFoundError('no TensorBoard', name='tensorboard')\n")
    home.mkdir(mode=0o500)
    away.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSKD_FAST_", "XDG_", "PYTHON"))}
    environment = {
        **kept,
        "HOME": str(home),
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "error::DeprecationWarning",
    }

    def sskd(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*as_another_user(), sys.executable, "-m", "sskd_fast", *words]
        done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    few = ["embedded_labeled=6", "embedded_unlabeled=4", "embedded_val=3"]
    settings = [*(f"data.{each}" for each in few), "pseudo_labels.views=1", "pseudo_labels.folds=2", "train.threads=1"]
    done = sskd("train", "--preset", "smoke", "--max-steps", "1", *settings)
    assert "since tensorboard is missing: pip install tensorboard" in done.stderr
    run = away / "runs" / "embedded"
    assert (run / "report.html").is_file() and not (run / "tensorboard").exists()
    sskd("predict", str(run), str(run / "data" / "val"), "--output", "found")
    assert (away / "found" / "predictions.json").is_file()
    assert not list(home.iterdir())
