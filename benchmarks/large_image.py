"""Peak memory of one large image: decoded, predicted by tiles, and cropped for training, each in its own process.

`python -m benchmarks.large_image` draws scenes on 13400 x 13400 pixels. It predicts them with the shipped student
at a zoom of 0.3 and takes training crops; docs/own_data.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sskd_fast.data.embedded import CLASS_NAMES, write_scenes
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.checkpoint import Description, load_weights, read_metadata, save_checkpoint
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.settings import ModelConfig
from sskd_fast.run.models import SHIPPED
from sskd_fast.typed_settings import build

ZOOM = 0.3
DECODED = """
import sys; from pathlib import Path; from sskd_fast.data.pixels import read_pixels
print(read_pixels(Path(sys.argv[1])).shape)
"""
CROPS = """
import sys; from pathlib import Path; from sskd_fast.data.coco import CocoInstances
source = CocoInstances(Path(sys.argv[2]), Path(sys.argv[1]).parent)
for place in range(0, 10000, 500):
    sample = source.window(0, place, place, 214, 214, size=(64, 64))
"""


def write_student(path: Path) -> None:
    """The shipped student as a checkpoint that predicts at ZOOM."""
    metadata = read_metadata(SHIPPED / "student.safetensors")
    names, ids = metadata["class_names"], tuple(range(1, len(CLASS_NAMES) + 1))
    model = build_segmenter(build(ModelConfig, metadata["model"], "model"), names).eval()
    load_weights(model, SHIPPED / "student.safetensors", names)
    inference = InferenceConfig((64, 64), zoom=ZOOM, max_detections=10_000)
    save_checkpoint(path, model, Description(model.config, tuple(names), ids, inference))


def write_large(folder: Path, side: int) -> tuple[Path, Path]:
    """Write a JPEG file with some dozens of copies of one enlarged scene on grey, and a COCO file with one instance."""
    labels = write_scenes(folder, "scene", "target", 1, seed=3)
    content = json.loads(labels.read_text())
    scene = Image.open(next((folder / "scene").glob("*.png"))).convert("RGB")
    scale = 1 / ZOOM
    scene = scene.resize((round(scene.width * scale), round(scene.height * scale)))
    page = Image.new("RGB", (side, side), (40, 40, 40))
    for place in range(0, side - max(scene.size), side // 7):
        for other in range(0, side - max(scene.size), side // 7):
            page.paste(scene, (place, other))
    path = folder / "large" / "large.jpg"
    path.parent.mkdir()
    page.save(path, quality=90)
    box = {"segmentation": [[10, 10, 300, 10, 300, 300, 10, 300]], "category_id": content["categories"][0]["id"]}
    annotations = [{"id": 1, "image_id": 1, **box, "iscrowd": 0, "area": 84100, "bbox": [10, 10, 290, 290]}]
    images = [{"id": 1, "file_name": path.name, "height": side, "width": side}]
    labels.write_text(json.dumps(content | {"images": images, "annotations": annotations}))
    return path, labels


def peak(command: Sequence[str]) -> float:
    """Peak memory of a command in GB (resident set). Raises CalledProcessError if it fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss * 1024 / 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_image", description=__doc__)
    parser.add_argument("--side", type=int, default=13400, help="pixels (13400)")
    side = parser.parse_args(arguments).side
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        image, labels = write_large(folder, side)
        write_student(folder / "student.safetensors")
        predict = ["-m", "sskd_fast.predict", str(folder / "student.safetensors"), str(image), "--device", "cpu"]
        commands = {
            "a process without an image": ["-c", "import sskd_fast.predict.__main__, sskd_fast.data.coco"],
            "decoded": ["-c", DECODED, str(image)],
            "20 training crops": ["-c", CROPS, str(image), str(labels)],
            "predicted": [*predict, "--no-overlays", "--output", str(folder / "plain")],
            "predicted and drawn": [*predict, "--output", str(folder / "drawn")],
        }
        print(f"{side} x {side} pixels: peak memory in GB")
        for name, command in commands.items():
            print(f"{name:28}{peak([sys.executable, *command]):6.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
