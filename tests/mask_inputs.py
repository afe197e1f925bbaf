"""Segmentations at random, sound and broken, put through all code that reads them: `python -m tests.mask_inputs N`.

Hypothesis draws one input of ten, in 3 ms. The nine others are that input with one place changed, in a tenth of the
time.

Run in a process of its own, so that a crash in C code leaves the input that made it, in the file of the last argument.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sskd_fast.data.lost_masks import Extents
from sskd_fast.data.masks import pack_layers
from sskd_fast.rle import MaskError, box_of_rle, encode_segmentation
from sskd_fast.rle.polygons import flat_polygons

SIDES = st.integers(1, 12)
EXTREMES = (4e8, -4e8, 1e7, 2.0**31, -(2.0**63), 1e308, math.nan, math.inf, 10**400, 0.5, -0.0, 1e-320)
OTHER_TYPES = (True, None, "3", "", [], {})
CHANGED = 9
"""Changed forms of each input that hypothesis draws."""
COORDINATES = st.one_of(
    st.integers(-20, 30),
    st.floats(-20, 30),
    st.floats(),
    st.sampled_from(EXTREMES),
    st.sampled_from(OTHER_TYPES),
)
FLAT = st.lists(COORDINATES, max_size=14)
SOUND = st.lists(st.one_of(st.integers(-20, 30), st.floats(-1e6, 1e6)), min_size=6, max_size=14)
POINTS = st.lists(st.lists(COORDINATES, min_size=1, max_size=3), max_size=6)
SMALL = st.one_of(
    st.integers(0, 30), st.integers(), st.floats(), st.sampled_from([2**31, 2**32, 2**63, 2**64, True, "7"])
)
TEXTS = st.one_of(
    st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20),
    st.text(max_size=10),
    st.binary(max_size=10),
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists of a strategy's values, up to three deep."""
    return st.one_of(st.lists(inner, max_size=3), st.lists(st.lists(inner, max_size=2), max_size=2))


@st.composite
def codes(draw: st.DrawFn, height: int, width: int) -> dict[str, Any]:
    """RLE, compressed or not, of a right or wrong size, whole or damaged."""
    size = draw(st.one_of(st.just([height, width]), st.just([height, width]), st.lists(SMALL, max_size=3), COORDINATES))
    drawn = np.random.default_rng(draw(st.integers(0, 2**20)))
    mask = (drawn.random((height, width)) < drawn.choice([0.0, 0.3, 0.7, 1.0])).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(mask))["counts"]
    counts: Any = draw(
        st.one_of(st.just(text), st.just(text.decode()), st.lists(SMALL, max_size=12), TEXTS, COORDINATES)
    )
    if draw(st.booleans()) and isinstance(counts, str):
        counts += draw(TEXTS.filter(lambda value: isinstance(value, str)))
    return {"size": size, "counts": counts}


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Any, int, int]:
    """A segmentation, and the height and width of its image."""
    height, width = draw(SIDES), draw(SIDES)
    code = codes(height, width)
    forms = (
        st.lists(SOUND, min_size=1, max_size=3), code, nested(FLAT), nested(POINTS), FLAT, POINTS, nested(code),
        COORDINATES, TEXTS, st.dictionaries(st.sampled_from(["size", "counts", "x", "y", "points"]), COORDINATES),
    )  # fmt: skip
    form = draw(st.sampled_from(range(len(forms))))  # one_of would draw from the many parts of a form as often
    return draw(forms[form]), height, width


def changed(value: Any, chance: random.Random) -> Any:
    """A value of JSON with one place in it changed: an item left out, repeated or moved, another number or type."""
    if chance.random() < 0.05:
        return chance.choice(OTHER_TYPES)
    if isinstance(value, dict) and value:
        key = chance.choice(list(value))
        rest = {name: item for name, item in value.items() if name != key}
        return rest if chance.random() < 0.1 else {**rest, key: changed(value[key], chance)}
    if isinstance(value, list | str | bytes) and value:
        at = chance.randrange(len(value))
        before, item, after = value[:at], value[at : at + 1], value[at + 1 :]
        kind = chance.randrange(6) if len(value) > 1 else 5
        if kind < 3:
            return (before + after, before + item * 2 + after, item + before + after)[kind]
        if isinstance(value, list):
            return [*before, changed(value[at], chance), *after]
        other = chr(chance.randrange(32, 128))
        return before + (other if isinstance(value, str) else other.encode()) + after
    if isinstance(value, int | float):
        return chance.choice(EXTREMES) if chance.random() < 0.2 else chance.uniform(-1, 1) * 12 + chance.choice([0, 6])
    return chance.choice(EXTREMES)


def examine(segmentation: Any, height: int, width: int) -> bool:
    """Reads a segmentation as training, checks and evaluation do; True if it is a mask.  AssertionError if it is one
    that does not fit its image."""
    try:
        encoded = encode_segmentation(segmentation, height, width)
    except MaskError:
        return False
    area = int(coco_mask.area(encoded))
    mask, top, left = box_of_rle(encoded)
    decoded = coco_mask.decode(encoded)
    x, y, w, h = coco_mask.toBbox(encoded).tolist()
    assert decoded.shape == (height, width) and 0 <= area <= height * width
    assert area == int(mask.sum()) == int(decoded.sum())
    assert top + mask.shape[0] <= height and left + mask.shape[1] <= width
    assert (x, y, w, h) == (left, top, mask.shape[1], mask.shape[0]) or not area
    extents = Extents.of({"segmentation": segmentation}, area, (height, width))
    assert extents.ringed == (extents.box is not None and has_ring_within(flat_polygons(segmentation)))
    assert len(pack_layers([encoded], [0], [1.0], [False], height, width).labels) == bool(area)
    return True


def has_ring_within(rings: Sequence[NDArray[np.float64]]) -> bool:
    """`has_inner_ring` by its definition, vertex by vertex and edge by edge."""

    def is_inside(x: float, y: float, ring: NDArray[np.float64]) -> bool:
        edges = [(a, b) for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True) if (a[1] > y) != (b[1] > y)]
        return sum(x < a[0] + (y - a[1]) * (b[0] - a[0]) / (b[1] - a[1]) for a, b in edges) % 2 == 1

    def is_around(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> bool:
        boxes = (outer.min(0) < inner.min(0)).all() and (outer.max(0) > inner.max(0)).all()
        return bool(boxes) and all(is_inside(*point, outer) for point in inner)

    return any(is_around(outer, inner) for outer in rings for inner in rings)


def fuzz(count: int, start: int, note: Path) -> int:
    """Examines `count` inputs from a seed; each is written to `note` before it is read.  Returns how many are masks."""
    taken = 0
    chance = random.Random(start)
    with note.open("r+b") as file:

        def read(segmentation: Any, height: int, width: int) -> None:
            nonlocal taken
            file.seek(0)
            file.write(repr((segmentation, height, width)).encode("utf-8", "replace"))
            file.truncate()
            file.flush()
            taken += examine(segmentation, height, width)

        @seed(start)
        @settings(
            max_examples=count // (1 + CHANGED),
            database=None,
            deadline=5000,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs())
        def run(drawn: tuple[Any, int, int]) -> None:
            segmentation, height, width = drawn
            read(segmentation, height, width)
            for _ in range(CHANGED):
                read(changed(segmentation, chance), height, width)

        run()
    return taken


if __name__ == "__main__":
    place = Path(sys.argv[3])
    place.touch()
    print(json.dumps(fuzz(int(sys.argv[1]), int(sys.argv[2]), place)))
