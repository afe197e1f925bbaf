"""Fixtures of all tests.

A machine with a GPU may have no more than torch, Triton, NumPy, SciPy and pytest: another package is imported by the
fixture that needs it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

# Tests side by side share the processors, and so do the processes they start. PyTorch reads this when it is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

import torch
from on_device import BACKENDS, DEVICE, why_not_interpreted

from sskd_fast import _backend, _build, _env, _native

if TYPE_CHECKING:
    from coco_builder import CocoBuilder

    from sskd_fast.run.models import RunModels

DATA_ROOT = Path(os.environ.get("SSKD_FAST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set by its name; skips the test if it is absent."""

    def folder(name: str) -> Path:
        path = DATA_ROOT / name
        if not path.is_dir():
            pytest.skip(f"data set {name} is not in {DATA_ROOT}; set SSKD_FAST_DATA to the folder that holds it")
        return path

    return folder


@pytest.fixture(scope="session")
def plates_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run whose images are zoomed and stretched; its data lie beside it (trained_run).

    Workers of one session share it, and no test changes it.
    """
    from trained_run import train_on_plates

    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "plates"
    with place.with_suffix(".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():
            shutil.rmtree(place, ignore_errors=True)
            train_on_plates(place)
            lock.write("trained")
    return place / "run"


@pytest.fixture
def untrained_run(tmp_path: Path) -> RunModels:
    """The models of a run on 11 labelled and 4 unlabelled scenes, in which no stage has run."""
    from small_run import models_of_scenes

    return models_of_scenes(tmp_path)


@pytest.fixture(params=["reference", "cpu"])
def each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with every backend of the operators in place of "auto"."""
    monkeypatch.setenv("SSKD_FAST_BACKEND", request.param)
    name: str = request.param
    return name


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Runs a test of tests/gpu_*.py once with every backend for GPUs; skips the test if one cannot run."""
    name: str = request.param
    reason = _backend.why_unavailable(name, DEVICE) or (why_not_interpreted() if DEVICE == "cpu" else None)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture
def on_the_device() -> Iterator[None]:
    """Tensors are made on the device of tests/gpu_*.py.

    Numbers out of range are part of the kernels' arithmetic, as on a GPU: no warning of NumPy's from the interpreter.
    """
    with np.errstate(all="ignore"), torch.device(DEVICE):
        yield


# Threads of the emulated blocks forward, reversed, and shuffled by a seed.
THREAD_ORDERS = (0, 1, 7)


@pytest.fixture(scope="session")
def emulated_library() -> Any:
    """The operators of csrc/cuda as `torch.ops.sskd_fast_emulated`: the same files, built for the CPU."""
    sources = _native.source_folder()
    try:
        compiler, (compiling, linking) = _native.cxx_compiler(), _native.torch_flags()
    except _build.BuildError as error:
        pytest.skip(f"the CUDA operators are not emulated: {error}")
    # Without contraction, so that the result does not depend on the machine.
    flags = ["-std=gnu++20", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-DSSKD_EMULATION"]
    flags += _env.extra_cxx_flags()
    command = [*compiler, *flags, "-Wno-unknown-pragmas", *compiling, "-I", str(sources)]
    recipe = _build.Recipe(
        file="sskd_fast_emulated.so",
        title="the CUDA operators emulated on the CPU",
        takes="about a minute",
        folder=sources,
        sources=(*sorted((sources / "cuda").glob("*.cpp")), *sorted((sources / "cuda").glob("*.cu"))),
        headers=("*.h", "common/*.h", "math/*.h", "cuda/*.h", "emulation/*.h"),
        compilers=(compiler,),
        compile={".cpp": [*command, "-c"], ".cu": [*command, "-x", "c++", "-c"]},
        link=([*compiler, *flags, "-shared"], linking),
    )
    torch.ops.load_library(_build.build(recipe, _env.cache_folder()))
    return torch.ops.sskd_fast_emulated


@pytest.fixture(params=THREAD_ORDERS, ids=("forward", "reversed", "shuffled"))
def emulated(request: pytest.FixtureRequest, emulated_library: Any) -> Any:
    """The emulated operators; the test runs once for each order of the threads."""
    emulated_library.order_threads(request.param)
    return emulated_library


@pytest.fixture(scope="session")
def kernel_list(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The output of `python -m benchmarks.kernel_report` on every kernel for every architecture."""
    pytest.importorskip("triton", reason="Triton is not installed: the kernels are not compiled")
    from filelock import FileLock

    from benchmarks import kernel_report
    from benchmarks.marked import marks

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all tests side by side: the first to come runs the command
    page, list_file = folder / "gpu.md", folder / "kernels.json"
    with FileLock(folder / "kernels.lock"):
        if not list_file.exists():
            page.write_text("\n".join(marks(kernel_report.COMMAND)) + "\n")
            command = [sys.executable, "-m", "benchmarks.kernel_report", "--json", str(list_file), "--page", str(page)]
            subprocess.run(command, cwd=kernel_report.ROOT, check=True)
    found: list[dict[str, Any]] = json.loads(list_file.read_text())
    assert page.read_text().count("\n| ") == len(found) + 1
    assert kernel_report.versions() in page.read_text()  # the command has seen the Triton that the tests see
    return found


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., CocoBuilder]:
    """Builder of a COCO data set below tmp_path: make_coco(name="set", classes={1: "cell"})."""
    from coco_builder import CocoBuilder

    def build(name: str = "set", classes: dict[int, str] | None = None) -> CocoBuilder:
        return CocoBuilder(tmp_path / name, {1: "cell"} if classes is None else classes)

    return build


@pytest.fixture
def box_mask() -> Callable[..., NDArray[np.bool_]]:
    """box_mask(height, width, top, left, bottom, right) -> bool mask of a filled box, bottom and right excluded."""

    def draw(height: int, width: int, top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[top:bottom, left:right] = True
        return mask

    return draw


@pytest.fixture
def encode() -> Callable[[NDArray[np.bool_]], dict[str, Any]]:
    """encode(mask (H, W) bool) -> compressed RLE with ascii counts."""
    from coco_builder import encoded

    return encoded


@pytest.fixture(scope="session")
def tiny_foundation(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders as `save_pretrained` writes them, of tiny models with random weights of transformers' own classes:
    "mm_grounding_dino", "grounding_dino" (each with a tokenizer), "sam2", "sam3" (with a processor), ... of MODELS."""
    pytest.importorskip("transformers")
    from tiny_models import save

    root = tmp_path_factory.mktemp("foundation")

    def folder(name: str) -> Path:
        path = root / name
        if not path.exists():
            save(name, path)
        return path

    return folder
