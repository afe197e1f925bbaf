"""Fixtures of all tests: real data where they are present, and small COCO data sets drawn on the spot."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from numpy.typing import NDArray
from PIL import Image

from sskd_fast import _build, _env, _native

DATA_ROOT = Path(os.environ.get("SSKD_FAST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set by its name; skips the test where it is absent."""

    def folder(name: str) -> Path:
        path = DATA_ROOT / name
        if not path.is_dir():
            pytest.skip(f"data set {name} is not in {DATA_ROOT}; set SSKD_FAST_DATA to the folder that holds it")
        return path

    return folder


@pytest.fixture(params=["reference", "cpu"])
def each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with every backend of the operators in place of "auto"."""
    monkeypatch.setenv("SSKD_FAST_BACKEND", request.param)
    name: str = request.param
    return name


# Threads of the emulated blocks forward, reversed, and shuffled by a seed.
THREAD_ORDERS = (0, 1, 7)


@pytest.fixture(scope="session")
def emulated_library() -> Any:
    """The operators of csrc/cuda as `torch.ops.sskd_fast_emulated`: the same files, built for the CPU."""
    import torch

    sources = _native.source_folder()
    try:
        compiler, (compiling, linking) = _native.cxx_compiler(), _native.torch_flags()
    except _build.BuildError as error:
        pytest.skip(f"the CUDA operators are not emulated: {error}")
    # Without contraction, so that the result does not depend on the machine.
    flags = ["-std=gnu++20", "-O1", "-fPIC", "-ffp-contract=off", "-DSSKD_EMULATION", *_env.extra_cxx_flags()]
    command = [*compiler, *flags, "-Wno-unknown-pragmas", *compiling, "-I", str(sources)]
    recipe = _build.Recipe(
        file="sskd_fast_emulated.so",
        title="the CUDA operators emulated on the CPU",
        takes="about a minute",
        folder=sources,
        sources=(*sorted((sources / "cuda").glob("*.cpp")), *sorted((sources / "cuda").glob("*.cu"))),
        headers=("schemas.h", "common/*.h", "math/*.h", "cuda/*.h", "emulation/*.h"),
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


class CocoBuilder:
    """A COCO instance data set in a folder, put together image by image; `content` may be edited before `write`."""

    def __init__(self, folder: Path, classes: dict[int, str]) -> None:
        self.images = folder / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        self.file = folder / "instances.json"
        categories = [{"id": category_id, "name": name} for category_id, name in classes.items()]
        self.content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}

    def image(self, pixels: NDArray[Any] | tuple[int, int], *, image_id: int | None = None, **fields: Any) -> int:
        """Adds an image, given its pixels or its (height, width) for one of random pixels; returns its id."""
        image_id = len(self.content["images"]) + 1 if image_id is None else image_id
        if isinstance(pixels, tuple):
            pixels = np.random.default_rng(image_id).integers(0, 256, (*pixels, 3), dtype=np.uint8)
        name = fields.pop("file_name", f"{image_id}.png")
        Image.fromarray(pixels).save(self.images / name)
        record = {"id": image_id, "file_name": name, "height": pixels.shape[0], "width": pixels.shape[1], **fields}
        self.content["images"].append(record)
        return image_id

    def instance(self, image_id: int, segmentation: Any, *, category_id: int = 1, **fields: Any) -> int:
        """Adds an instance, given its segmentation or its mask (H, W) bool; returns the annotation's id."""
        if isinstance(segmentation, np.ndarray):
            segmentation = encoded(segmentation)
        annotation_id = len(self.content["annotations"]) + 1
        record = {"id": annotation_id, "image_id": image_id, "category_id": category_id, "segmentation": segmentation}
        self.content["annotations"].append({**record, "iscrowd": 0, **fields})
        return annotation_id

    def write(self) -> Path:
        """Writes the annotation file; returns its path."""
        self.file.write_text(json.dumps(self.content), encoding="utf-8")
        return self.file


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., CocoBuilder]:
    """Builder of a COCO data set below tmp_path: make_coco(name="set", classes={1: "cell"})."""

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


def encoded(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask as compressed RLE with ascii counts."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


@pytest.fixture
def encode() -> Callable[[NDArray[np.bool_]], dict[str, Any]]:
    """encode(mask (H, W) bool) -> compressed RLE with ascii counts."""
    return encoded
