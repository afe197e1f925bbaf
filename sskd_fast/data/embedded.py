"""The embedded data set: procedural scenes from a seed, in a generic source and a shifted target domain.

Four classes are shapes (disc, triangle, cross, ring). In the source domain they are placed freely, with colours,
textures and rims that mostly identify the class. The teacher and the student backbone are pretrained on it, as
foundation models are on web images. The target domain shows chains of touching and overlapping instances of one class.
Its colours identify only a pair of classes, and it adds unlabelled clutter, stripes, blur, light gradients and noise.
Scenes are stored as PNG files and COCO instances, like a user's data, so that the rest of the code treats them alike.
"""

from __future__ import annotations

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from sskd_fast.files import write_json

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Domain = Literal["source", "target"]

CLASS_NAMES = ("disc", "triangle", "cross", "ring")
CLASS_HUES = (0.02, 0.28, 0.53, 0.78)
SIZE = 64
MIN_VISIBLE = 16
SCENE_VERSION = 1


@dataclass(frozen=True)
class Scene:
    """image: (64, 64, 3) uint8; masks: n visible parts, (64, 64) bool; labels: n class indices."""

    image: NDArray[np.uint8]
    masks: list[Bools]
    labels: list[int]


@dataclass(frozen=True)
class Shape:
    """An instance before it is drawn: class index, centre and radius in pixels, rotation, aspect and wobble."""

    label: int
    x: float
    y: float
    radius: float
    angle: float
    aspect: float
    wobble: float
    phase: float


_YY, _XX = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)


def draw_scene(rng: np.random.Generator, domain: Domain) -> Scene:
    """Draws one scene of the domain; a pure function of the generator's state."""
    shapes = _source_layout(rng) if domain == "source" else _target_layout(rng)
    image = _background(rng, domain)
    owner = np.full((SIZE, SIZE), -1, dtype=np.int64)
    pair_swap = rng.random() < 0.5
    for index, shape in enumerate(shapes):
        u, v, depth = _shape_field(shape)
        inside = depth > 0
        color = _source_color(rng, shape.label) if domain == "source" else _target_color(rng, shape.label, pair_swap)
        texture = 0.6 if domain == "source" else 0.25
        rim = 0.7 if domain == "source" else 0.35
        _paint(rng, image, inside, depth, u, v, shape, color, texture, rim)
        owner[inside] = index
    if domain == "target":
        _streaks(rng, image, owner)
    image = _camera(rng, image, domain)
    masks, labels = [], []
    for index, shape in enumerate(shapes):
        visible = owner == index
        if int(visible.sum()) >= MIN_VISIBLE:
            masks.append(visible)
            labels.append(shape.label)
    return Scene((np.clip(image, 0, 1) * 255).astype(np.uint8), masks, labels)


def _source_layout(rng: np.random.Generator) -> list[Shape]:
    shapes = []
    for _ in range(int(rng.integers(2, 9))):
        label = int(rng.integers(4))
        x, y = rng.uniform(4, SIZE - 4, 2)
        shapes.append(Shape(label, x, y, rng.uniform(6, 14), rng.uniform(0, 2 * np.pi), 1.0, 0.0, 0.0))
    return shapes


def _target_layout(rng: np.random.Generator) -> list[Shape]:
    shapes = []
    for _ in range(int(rng.integers(1, 4))):
        label, radius = int(rng.integers(4)), rng.uniform(6, 11)
        x, y = rng.uniform(6, SIZE - 6, 2)
        heading = rng.uniform(0, 2 * np.pi)
        for _ in range(int(rng.integers(1, 5))):
            size = radius * rng.uniform(0.85, 1.15)
            shapes.append(
                Shape(
                    label,
                    x,
                    y,
                    size,
                    rng.uniform(0, 2 * np.pi),
                    rng.uniform(0.75, 1.25),
                    rng.uniform(0, 0.12),
                    rng.uniform(0, 6.28),
                )
            )
            heading += rng.uniform(-0.8, 0.8)
            step = size * rng.uniform(1.3, 1.9)
            x, y = x + step * np.cos(heading), y + step * np.sin(heading)
            if not (2 < x < SIZE - 2 and 2 < y < SIZE - 2):
                break
    return shapes


def _shape_field(shape: Shape) -> tuple[Floats, Floats, Floats]:
    """Coordinates in the shape's frame and the depth below its outline in pixels (positive inside)."""
    c, s = np.cos(shape.angle), np.sin(shape.angle)
    dx, dy = _XX - shape.x, _YY - shape.y
    stretch = np.sqrt(shape.aspect)
    u, v = (c * dx + s * dy) * stretch, (-s * dx + c * dy) / stretch
    r = np.sqrt(u * u + v * v)
    theta = np.arctan2(v, u)
    radius = shape.radius * (1 + shape.wobble * np.sin(3 * theta + shape.phase))
    if shape.label == 1:
        radius = radius * 0.62 / np.cos((theta + np.pi / 3) % (2 * np.pi / 3) - np.pi / 3)
    elif shape.label == 2:
        folded = np.abs((theta + np.pi / 4) % (np.pi / 2) - np.pi / 4)
        radius = radius * np.minimum(1.05 / np.cos(folded), 0.36 / np.maximum(np.sin(folded), 1e-3))
    depth = radius - r
    if shape.label == 3:
        depth = np.minimum(depth, r - 0.48 * radius)
    return u.astype(np.float32), v.astype(np.float32), depth.astype(np.float32)


def _source_color(rng: np.random.Generator, label: int) -> Floats:
    hue = CLASS_HUES[label] + rng.uniform(-0.07, 0.07) if rng.random() < 0.65 else rng.random()
    return _rgb(hue, rng.uniform(0.5, 1), rng.uniform(0.5, 1))


def _target_color(rng: np.random.Generator, label: int, swap: bool) -> Floats:
    """Classes (0, 1) share one hue and (2, 3) another: colour gives the pair, and only the outline the class."""
    pair = label // 2
    hue = (0.12 if pair == 0 else 0.62) + rng.uniform(-0.08, 0.08) + (0.04 if swap else 0.0)
    return _rgb(hue, rng.uniform(0.25, 0.7), rng.uniform(0.35, 0.85))


def _rgb(hue: float, saturation: float, value: float) -> Floats:
    return np.asarray(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def _paint(
    rng: np.random.Generator, image: Floats, inside: Bools, depth: Floats, u: Floats, v: Floats, shape: Shape,
    color: Floats, texture: float, rim: float,
) -> None:  # fmt: skip
    shade = np.ones((SIZE, SIZE), dtype=np.float32)
    if rng.random() < texture:
        period = rng.uniform(3, 6)
        if shape.label == 1:
            shade += 0.25 * np.sign(np.sin(2 * np.pi * u / period))
        elif shape.label == 2:
            shade += 0.25 * np.sign(np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period))
        elif shape.label == 3:
            shade += 0.25 * np.sin(2 * np.pi * np.sqrt(u * u + v * v) / period)
        else:
            shade += 0.25 * (u / shape.radius)
    if rng.random() < rim:
        shade = np.where(depth < 1.3, shade * 0.45, shade)
    image[inside] = (shade[..., None] * color)[inside]


def _background(rng: np.random.Generator, domain: Domain) -> Floats:
    base = _rgb(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.15, 0.9))
    if domain == "source":
        tilt = rng.uniform(-0.25, 0.25, 2)
        field = tilt[0] * (_XX / SIZE - 0.5) + tilt[1] * (_YY / SIZE - 0.5)
        return (base + field[..., None]).astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    stripes = np.sin(2 * np.pi * (np.cos(angle) * _XX + np.sin(angle) * _YY) / period + rng.uniform(0, 6.28))
    coarse = rng.normal(0, 0.08, (8, 8, 3)).astype(np.float32)
    cloud = np.asarray(
        [np.asarray(Image.fromarray(coarse[..., k]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for k in range(3)]
    ).transpose(1, 2, 0)
    return (base + rng.uniform(0.04, 0.14) * stripes[..., None] + cloud).astype(np.float32)


def _streaks(rng: np.random.Generator, image: Floats, owner: NDArray[np.int64]) -> None:
    """Draws two to six thin unlabelled strokes as clutter, behind the instances or, one time in three, across them."""
    for _ in range(int(rng.integers(2, 7))):
        x, y = rng.uniform(0, SIZE, 2)
        angle, length, width = rng.uniform(0, np.pi), rng.uniform(10, 40), rng.uniform(0.6, 1.4)
        along = np.cos(angle) * (_XX - x) + np.sin(angle) * (_YY - y)
        across = -np.sin(angle) * (_XX - x) + np.cos(angle) * (_YY - y)
        stroke = (np.abs(across) < width) & (np.abs(along) < length / 2)
        if rng.random() > 1 / 3:
            stroke &= owner < 0
        else:
            owner[stroke] = -1
        image[stroke] = _rgb(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.9))


def _camera(rng: np.random.Generator, image: Floats, domain: Domain) -> Floats:
    if domain == "source":
        return image + rng.normal(0, rng.uniform(0.01, 0.06), image.shape).astype(np.float32)
    light = 1 + rng.uniform(-0.35, 0.35) * (_XX / SIZE - 0.5) + rng.uniform(-0.35, 0.35) * (_YY / SIZE - 0.5)
    image = image * light[..., None]
    if rng.random() < 0.5:
        image = _blur(image, rng.uniform(0.5, 0.9))
    return image + rng.normal(0, rng.uniform(0.03, 0.08), image.shape).astype(np.float32)


def _blur(image: Floats, sigma: float) -> Floats:
    side = np.exp(-0.5 / sigma**2)
    kernel = np.asarray([side, 1.0, side], dtype=np.float32) / (1 + 2 * side)
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        n = image.shape[axis]
        image = sum(k * np.take(padded, range(i, i + n), axis=axis) for i, k in enumerate(kernel))
    return image.astype(np.float32)


def write_scenes(folder: Path, name: str, domain: Domain, count: int, seed: int) -> Path:
    """Writes `count` scenes below `folder` and returns the COCO instances file `<folder>/<name>.json`.

    Images go to `<folder>/<name>/`. Scene i is a pure function of (domain, seed, i). An existing complete file is kept.
    """
    annotations_path = folder / f"{name}.json"
    key = {"version": SCENE_VERSION, "domain": domain, "count": count, "seed": seed}
    if annotations_path.exists() and json.loads(annotations_path.read_text()).get("info") == key:
        return annotations_path
    images = folder / name
    images.mkdir(parents=True, exist_ok=True)
    coco: dict[str, Any] = {
        "info": key,
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": n} for i, n in enumerate(CLASS_NAMES)],
    }
    for i in range(count):
        scene = draw_scene(np.random.default_rng([seed, i, 0 if domain == "source" else 1]), domain)
        file_name = f"{i:05d}.png"
        Image.fromarray(scene.image).save(images / file_name, compress_level=1)
        coco["images"].append({"id": i + 1, "file_name": file_name, "height": SIZE, "width": SIZE})
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            coco["annotations"].append(_annotation(len(coco["annotations"]) + 1, i + 1, mask, label))
    write_json(annotations_path, coco)
    return annotations_path


def _annotation(annotation_id: int, image_id: int, mask: Bools, label: int) -> dict[str, Any]:
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "segmentation": {"size": [SIZE, SIZE], "counts": code["counts"].decode("ascii")},
        "bbox": [float(x) for x in rle.toBbox(code)],
        "area": int(rle.area(code)),
        "iscrowd": 0,
    }
