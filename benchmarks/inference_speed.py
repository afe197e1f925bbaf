"""Latency of the shipped student's network on this CPU: PyTorch, torch.compile, ONNX Runtime and OpenVINO.

`python -m benchmarks.inference_speed` exports the student, times a batch of tiles of the training crop and one larger
tile, and writes a table to docs/export.md.  The contenders take turns, so that other work on the machine slows all of
them: compare ratios rather than milliseconds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.marked import add_page_option, write_part
from benchmarks.report import table
from sskd_fast.data.embedded import CLASS_NAMES, write_scenes
from sskd_fast.data.folder import ImageFolder
from sskd_fast.exported import export_onnx, export_openvino
from sskd_fast.exported.network import Network
from sskd_fast.exported.parity import machine
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import Description, load_weights, read_metadata
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.settings import ModelConfig
from sskd_fast.run.models import SHIPPED
from sskd_fast.typed_settings import build

PAGE = Path(__file__).resolve().parent.parent / "docs" / "export.md"
COMMAND = "python -m benchmarks.inference_speed"
# A batch of training crops, one crop, and one larger tile.
SHAPES = ((32, 3, 64, 64), (1, 3, 64, 64), (1, 3, 256, 256))
WARM_UP = 3
CALIBRATION = 40
Contenders = dict[str, Callable[[Tensor], object]]


def contenders(folder: Path) -> tuple[Contenders, dict[str, str]]:
    """Name -> way to run the student (the first is the base of all ratios), and the versions of the libraries."""
    metadata = read_metadata(SHIPPED / "student.safetensors")
    names, ids = metadata["class_names"], tuple(range(1, len(CLASS_NAMES) + 1))
    model = build_segmenter(build(ModelConfig, metadata["model"], "model"), names).eval()
    load_weights(model, SHIPPED / "student.safetensors", names)
    description = Description(model.config, tuple(names), ids, InferenceConfig((64, 64)))
    write_scenes(folder, "train", "source", CALIBRATION, seed=3)
    images = ImageFolder(folder / "train")
    calibration = [images.image(i) for i in range(len(images))]
    network = Network(model)
    found: Contenders = {"PyTorch": network, "torch.compile": torch.compile(network, dynamic=False)}
    versions = {"torch": str(torch.__version__)}
    for name, export, suffix in (("ONNX Runtime", export_onnx, ".onnx"), ("OpenVINO", export_openvino, ".xml")):
        for precision in ("fp32", "int8"):
            path = folder / f"student.{precision}{suffix}"
            file = export(model, description, path, precision=precision, calibration=calibration)
            found[f"{name}, {precision}"] = file.encode
            runtime, version = file.runtime.split()
            versions[runtime] = version
    return found, versions


@torch.inference_mode()
def measure(found: Contenders, shape: Sequence[int], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every contender in every round, after a warm-up."""
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(WARM_UP + rounds):
        for name, run in found.items():
            start = time.perf_counter()
            run(images)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: of_name[WARM_UP:] for name, of_name in times.items()}


def rows(times: dict[str, list[float]]) -> list[list[str]]:
    """One row for each contender: its median, interquartile range, and speed relative to the first contender."""
    base = statistics.median(next(iter(times.values())))
    found = []
    for name, of_name in times.items():
        low, middle, high = statistics.quantiles(of_name, n=4)
        found.append([name, f"{middle:.1f} ({low:.1f} to {high:.1f})", f"{base / middle:.2f} x"])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes the page; see the module's docstring."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="timed rounds of each contender")
    add_page_option(parser, COMMAND, PAGE)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found, versions = contenders(Path(folder))
        parts = [
            f"Written on {date.today()} on {machine()}, {torch.get_num_threads()} threads; Python "
            f"{platform.python_version()}, {', '.join(' '.join(item) for item in versions.items())}. "
            f"Medians of {options.rounds} rounds in turns, with the range of the middle half, while other work ran on "
            "the machine: compare the ratios."
        ]
        for shape in SHAPES:
            head = [f"{shape[0]} x {shape[2]} x {shape[3]} pixels", "ms", "speed"]
            parts.append(table(head, rows(measure(found, shape, options.rounds))))
            print(parts[-1], flush=True)
    content = "\n\n".join(parts)
    write_part(options.page, COMMAND, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
