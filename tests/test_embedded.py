"""The embedded scenes: a pure function of the seed, two domains that differ as described, files like any user's."""

from __future__ import annotations

import colorsys
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sskd_fast.data.coco import CocoInstances
from sskd_fast.data.doctor import check_dataset
from sskd_fast.data.embedded import CLASS_NAMES, MIN_VISIBLE, SIZE, Domain, Scene, draw_scene, write_scenes

DOMAINS: tuple[Domain, Domain] = ("source", "target")


def draw(domain: Domain, count: int, seed: int = 0) -> list[Scene]:
    return [draw_scene(np.random.default_rng([seed, i]), domain) for i in range(count)]


@pytest.fixture(scope="module")
def scenes() -> dict[Domain, list[Scene]]:
    return {domain: draw(domain, 150) for domain in DOMAINS}


@pytest.mark.parametrize("domain", DOMAINS)
def test_scenes_are_a_pure_function_of_the_seed(domain: Domain) -> None:
    for one, two, other in zip(draw(domain, 5), draw(domain, 5), draw(domain, 5, seed=1), strict=True):
        assert np.array_equal(one.image, two.image) and one.labels == two.labels
        assert all(np.array_equal(a, b) for a, b in zip(one.masks, two.masks, strict=True))
        assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("domain", DOMAINS)
def test_masks_are_disjoint_visible_and_of_every_class(domain: Domain, scenes: dict[Domain, list[Scene]]) -> None:
    seen: set[int] = set()
    for scene in scenes[domain]:
        assert scene.image.shape == (SIZE, SIZE, 3) and scene.image.dtype == np.uint8
        assert len(scene.masks) == len(scene.labels)
        for mask in scene.masks:
            assert mask.shape == (SIZE, SIZE) and mask.dtype == np.bool_
            assert int(mask.sum()) >= MIN_VISIBLE
        if scene.masks:
            assert int(np.sum(scene.masks, axis=0).max()) == 1
        seen |= set(scene.labels)
    assert seen == {0, 1, 2, 3}


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and its eight neighbours."""
    padded = np.pad(mask, 1)
    shifts = [padded[1 + y : SIZE + 1 + y, 1 + x : SIZE + 1 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return np.logical_or.reduce(shifts)


def touching_share(scenes: list[Scene], same: bool) -> float:
    """Share of instances that touch another one of their own (or of another) class."""
    touching, total = 0, 0
    for scene in scenes:
        near = [grown(mask) for mask in scene.masks]
        pairs = [p for p in combinations(range(len(near)), 2) if (near[p[0]] & scene.masks[p[1]]).any()]
        pairs = [p for p in pairs if (scene.labels[p[0]] == scene.labels[p[1]]) == same]
        touching += len({i for p in pairs for i in p})
        total += len(near)
    return touching / total


def test_target_instances_form_chains_of_one_class(scenes: dict[Domain, list[Scene]]) -> None:
    target, source = (touching_share(scenes[d], same=True) for d in ("target", "source"))
    assert target > 0.45 and target > 1.5 * source


def hues(scenes: list[Scene]) -> list[list[float]]:
    """Hue of each instance's median colour, by class."""
    found: list[list[float]] = [[] for _ in CLASS_NAMES]
    for scene in scenes:
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            red, green, blue = np.median(scene.image[mask], axis=0) / 255
            found[label].append(colorsys.rgb_to_hsv(float(red), float(green), float(blue))[0])
    return found


def middle(values: list[float]) -> float:
    angle = np.angle(np.mean(np.exp(2j * np.pi * np.asarray(values)))) / (2 * np.pi)
    return float(angle % 1)


def apart(a: float, b: float) -> float:
    return min(abs(a - b), 1 - abs(a - b))


def test_colour_tells_the_class_in_the_source_and_only_a_pair_in_the_target(scenes: dict[Domain, list[Scene]]) -> None:
    source, target = ([middle(h) for h in hues(scenes[d])] for d in ("source", "target"))
    assert min(apart(a, b) for a, b in combinations(source, 2)) > 0.15
    assert apart(target[0], target[1]) < 0.06 and apart(target[2], target[3]) < 0.06
    assert apart(target[0], target[2]) > 0.25


def background_detail(scenes: list[Scene]) -> float:
    """Median over scenes of the spread of the background after its plane is taken out."""
    ys, xs = np.mgrid[0:SIZE, 0:SIZE]
    values = []
    for scene in scenes:
        free = ~np.logical_or.reduce([np.zeros((SIZE, SIZE), bool), *scene.masks])
        plane = np.stack([np.ones(int(free.sum())), xs[free], ys[free]], 1)
        grey = scene.image.mean(-1)[free]
        values.append(float((grey - plane @ np.linalg.lstsq(plane, grey, rcond=None)[0]).std()))
    return float(np.median(values))


def test_target_backgrounds_have_stripes_clutter_and_noise(scenes: dict[Domain, list[Scene]]) -> None:
    assert background_detail(scenes["target"]) > 2 * background_detail(scenes["source"])


# Files


@pytest.mark.parametrize("domain", DOMAINS)
def test_written_scenes_read_back_identically(domain: Domain, tmp_path: Path) -> None:
    path = write_scenes(tmp_path, "labeled", domain, 6, seed=3)
    assert path == tmp_path / "labeled.json"
    data = CocoInstances(path, tmp_path / "labeled")
    assert data.class_names == list(CLASS_NAMES) and len(data) == 6
    for i in range(6):
        scene = draw_scene(np.random.default_rng([3, i, 0 if domain == "source" else 1]), domain)
        sample = data[i]
        assert sample.image_id == i + 1 and sample.instances is not None
        assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), scene.image)
        assert sample.instances.labels.tolist() == scene.labels
        assert len(sample.instances) == len(scene.masks)
        assert all(np.array_equal(a.numpy(), b) for a, b in zip(sample.instances.masks, scene.masks, strict=True))
        assert not sample.instances.crowd.any()


def test_annotations_are_what_a_user_would_bring(tmp_path: Path) -> None:
    train = write_scenes(tmp_path, "train", "target", 5, seed=0)
    warnings = check_dataset(train, tmp_path / "train")
    assert [w for w in warnings if "class" not in w] == []
    content = json.loads(train.read_text())
    assert [c["id"] for c in content["categories"]] == [1, 2, 3, 4]
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    data = CocoInstances(train, tmp_path / "train")
    masks = [m.numpy() for i in range(5) for m in data[i].instances.masks]  # type: ignore[union-attr]
    for annotation, mask in zip(content["annotations"], masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert annotation["bbox"] == box and annotation["area"] == mask.sum()


def test_scenes_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few, many = (write_scenes(tmp_path / str(n), "a", "target", n, seed=5) for n in (2, 4))
    for name in ("00000.png", "00001.png"):
        assert (few.parent / "a" / name).read_bytes() == (many.parent / "a" / name).read_bytes()


def test_a_complete_set_is_kept_and_one_of_another_seed_is_drawn_anew(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, "a", "target", 2, seed=0)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert write_scenes(tmp_path, "a", "target", 2, seed=0) == path
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    write_scenes(tmp_path, "a", "target", 2, seed=1)
    assert path.read_bytes() != before[0]
    scene = draw_scene(np.random.default_rng([1, 0, 1]), "target")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / "00000.png")), scene.image)
    assert not list(tmp_path.glob("*.partial"))


def test_a_set_cut_off_while_it_was_written_is_drawn_anew(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, "a", "source", 3, seed=0)
    whole = path.read_text()
    path.unlink()
    (tmp_path / "a" / "00002.png").unlink()
    assert write_scenes(tmp_path, "a", "source", 3, seed=0).read_text() == whole
    assert (tmp_path / "a" / "00002.png").exists()
