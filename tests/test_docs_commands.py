"""The commands of the package in docs/ run to their end, a page's one after the other, on data with the names there.

Trainings take one step per stage; otherwise a command is run as it is written.  Of new runs that differ in places and
numbers alone, one is trained, and the others' folders are copies of a finished run.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.label_sets import FILES, write_images, write_yolo_root
from tests.official_layouts import write_cityscapes
from tests.test_docs import PAGES, ROOT, command_lines, programs

# One step of every stage; no preset of its own if the command or its file names one.
SHORT = ["--max-steps", "1", "train.threads=1", "pseudo_labels.views=1", "pseudo_labels.folds=2", "views.size=64"]
# Words of commands that are not run, and what stands in the way, or the test that runs them.
NOT_RUN = {
    "data.decoded=FOLDER": "downloads the paper's models; tests/test_paper_configs.py runs it with small ones",
    "--preset paper": "downloads the paper's models",
    "--dry-run": "tests/test_docs.py checks it, tests/test_foundation_run.py runs it",
    "--gpus 1": "needs GPUs; tests/test_shard_labels.py runs Ray",
    "teacher.warm_start=results": "tests/test_photos.py runs it",
    "--seeds 0,1,2": "three runs; tests/test_seeds.py runs two seeds",
    "--stage all": "`.ci/run` runs it, and the other commands of README.md",
    "README": "`.ci/run` runs it",
    "TABLE": "tests/test_study.py runs every table",
    "results python": "takes hours; tests/test_study.py runs every table",
    "nuclei python": "takes an hour; tests/test_run.py runs it on fewer images",
    "--stage pretrain": "takes hours; tests/test_embedded.py holds its result to its figures",
    "runs/large": "goes on with a run on many GPUs; tests/test_ranks.py runs torchrun",
    "--precision int8": "needs a trained model; tests/test_export_command.py runs it with one",
    "sskd demo": "a server; tests/test_demo.py opens it in a browser",
}
# Options that make a new run of these data; without them a command goes on with a run that is there.
OF_NEW_RUNS = {"--labeled", "--root"}


def package_commands(page: Path) -> list[list[str]]:
    """The words of the page's commands of this package: module, then arguments as they are written."""
    found = []
    for line in command_lines(page):
        for words in programs(line):
            if words[0].startswith("sskd_fast.") and not not_run(page, line):
                found.append(words)
    return found


def not_run(page: Path, line: str) -> str | None:
    """The reason why a line is not run, or None."""
    return next((name for name in NOT_RUN if name in f"{page.stem} {' '.join(line.split())}"), None)


PAGES_WITH_COMMANDS = [page for page in PAGES if package_commands(page)]


@pytest.fixture(scope="module")
def place(plates_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """(page) -> a folder in which everything lies that its commands name, as far as they do not make it."""
    from trained_run import write_plates

    data = tmp_path_factory.mktemp("named")
    for part, count, seed in (("train", 40, 5), ("val", 4, 6), ("plain", 4, 7)):
        write_plates(data / "DIR" / part, count, seed, labels=data / f"{part}.json")
        content = json.loads((data / f"{part}.json").read_text())
        for image in content["images"]:
            image |= {
                "file_name": f"{part}/{image['file_name']}",
                "group": f"{part} {image['id'] % 4}",
                "modality": "any",
            }
        (data / f"{part}.json").write_text(json.dumps(content))
    links = {name: "train.json" for name in ("labels.json", "all.json", "joined.json")}
    links |= {name: "DIR" for name in ("labelled", "val", "all_images", "train")}
    links |= {name: "DIR/plain" for name in ("unlabelled", "shots", "photos")}

    def made(page: str) -> Path:
        folder = tmp_path_factory.mktemp(page)
        shutil.copytree(data, folder, dirs_exist_ok=True)
        for name, target in links.items():
            (folder / name).symlink_to(folder / target)
        (folder / "configs").symlink_to(ROOT / "configs")
        for name in ("NAME", "cells", "embedded", *(("first", "second") if page == "verdict" else ())):
            shutil.copytree(plates_run, folder / "runs" / name)
        write_cityscapes(folder / "cityscapes")
        write_yolo_root(folder / "yolo")
        FILES["labelme"](folder / "labelme", "train")
        FILES["labelme"](folder / "labelme", "val")
        write_images(folder / "labelme" / "images")
        return folder

    return made


def new_run(words: list[str]) -> bool:
    return words[0] == "sskd_fast.run" and bool(OF_NEW_RUNS & set(words))


def as_run(words: list[str]) -> list[str]:
    """The words with places in place of what a reader replaces, and shortened if a run begins."""
    kind = words[words.index("--format") + 1] if "--format" in words and words[0] != "sskd_fast.export" else ""
    of_format = {"LABELS": "labelme/train", "DIR": "labelme/images"} if kind == "labelme" else {"DIR": kind or "DIR"}
    found = [of_format.get(word, word) for word in words]
    if kind and "--unlabeled" in found:
        found[found.index("--unlabeled") + 1] = "unlabelled"
    if kind == "labelme":
        found[found.index("--val") + 1] = "labelme/val"
    if new_run(words):
        found += SHORT + ([] if {"--preset", "--config"} & set(words) else ["--preset", "smoke"])
    return found


@pytest.fixture(scope="module")
def trained() -> set[tuple[str, ...]]:
    """The runs so far, by `kind_of_run`."""
    return set()


def kind_of_run(words: list[str]) -> tuple[str, ...]:
    """Options of a new run without their values, apart from names of presets, formats and configurations."""
    named = [words[words.index(option) + 1] for option in ("--preset", "--format", "--config") if option in words]
    options = [word.partition("=")[0] for word in words if word.startswith("--") or "=" in word]
    return *sorted({*options} - {"--output", "--val-images"}), *named


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_one_after_the_other(
    place: Callable[[str], Path], trained: set[tuple[str, ...]], plates_run: Path, page: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = place(page.stem)
    monkeypatch.chdir(folder)
    for words in package_commands(page):
        module, *arguments = as_run(words)
        if new_run(words):
            if kind_of_run(arguments) in trained:
                if "--output" in words:
                    shutil.copytree(plates_run, folder / words[words.index("--output") + 1])
                continue
            trained.add(kind_of_run(arguments))
        package = importlib.import_module(module)
        main = importlib.import_module(f"{module}.__main__" if hasattr(package, "__path__") else module).main
        assert main(arguments) == 0, f"{' '.join(words)}:\n{capfd.readouterr().err[-3000:]}"
    assert list(folder.rglob("*.partial")) == []


def test_what_is_not_run_is_named_and_is_there() -> None:
    lines = [f"{page.stem} {' '.join(line.split())}" for page in PAGES for line in command_lines(page)]
    assert [name for name in NOT_RUN if not any(name in line for line in lines)] == []
    assert len(PAGES_WITH_COMMANDS) >= 12 and sum(len(package_commands(page)) for page in PAGES) >= 35


@pytest.mark.slow
def test_a_line_for_the_compiler_runs_as_the_page_has_it() -> None:
    page = (ROOT / "docs" / "developing.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith("echo '#include") and "-fsyntax-only" in line]
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
