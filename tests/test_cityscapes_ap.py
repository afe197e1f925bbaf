"""Cityscapes AP: equal to the official evaluation of files, and compared with COCO AP."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image

from sskd_fast.data.ade20k import Ade20k
from sskd_fast.data.cityscapes import CLASSES, Cityscapes
from sskd_fast.data.official_titles import OFFICIAL_TITLES
from sskd_fast.evaluation import evaluate_cityscapes, evaluate_masks, official_figures, require_official
from sskd_fast.evaluation.cityscapes_ap import official_evaluation
from sskd_fast.evaluation.official import JUDGES
from sskd_fast.report.table import OFFICIAL
from tests.official_layouts import EGO_VEHICLE, Scene, write_ade20k, write_cityscapes

SIZE = (64, 128)


def result(image_id: int, category_id: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    segmentation = {"size": list(mask.shape), "counts": code["counts"].decode("ascii")}
    return {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, "score": score}


def perfect(scenes: list[Scene], score: float = 0.5) -> list[dict[str, Any]]:
    """A result with the mask of every instance, image ids from 1."""
    return [
        result(number, int(value) // 1000, scene.codes == value, score)
        for number, scene in enumerate(scenes, 1)
        for value in np.unique(scene.codes)
        if value // 1000 in CLASSES.values()
    ]


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation", None)
    with pytest.raises(ImportError, match=r"cityscapesscripts, which is not installed: pip install 'sskd_fast\[city"):
        official_evaluation()


@pytest.fixture
def val(tmp_path: Path) -> tuple[Cityscapes, list[Scene]]:
    """Three pictures with two cars, a person, a rider, a bicycle, a group of cars and a caravan each."""
    scenes = write_cityscapes(tmp_path, size=SIZE)["val"]
    return Cityscapes(tmp_path, "val"), scenes


def both(source: Cityscapes, results: list[dict[str, Any]]) -> tuple[float, float]:
    """Cityscapes AP and COCO AP."""
    return evaluate_cityscapes(source.label_files, results).ap, evaluate_masks(source.ground_truth(), results).ap


def test_the_instances_themselves_reach_a_hundred(val: tuple[Cityscapes, list[Scene]]) -> None:
    source, scenes = val
    measured = evaluate_cityscapes(source.label_files, perfect(scenes))
    assert (measured.ap, measured.ap50) == (100.0, 100.0)
    assert measured.per_class == dict.fromkeys(("person", "rider", "car", "bicycle"), 100.0)
    assert evaluate_masks(source.ground_truth(), perfect(scenes)).ap == pytest.approx(100.0)


def test_no_prediction_reaches_nothing(val: tuple[Cityscapes, list[Scene]]) -> None:
    assert both(val[0], []) == (0.0, 0.0)


def test_half_of_the_cars_count_a_half_there_and_51_of_101_recalls_here(val: tuple[Cityscapes, list[Scene]]) -> None:
    source, scenes = val
    results = [r for r in perfect(scenes) if r["category_id"] == CLASSES["car"]][::2]
    measured = evaluate_cityscapes(source.label_files, results)
    assert measured.per_class["car"] == pytest.approx(50.0) and measured.ap == pytest.approx(12.5)
    assert evaluate_masks(source.ground_truth(), results).per_class["car"] == pytest.approx(100 * 51 / 101)


def test_predictions_on_groups_and_void_pixels_are_ignored(val: tuple[Cityscapes, list[Scene]]) -> None:
    """COCO ignores the group too but has no void, so the confident mistake on void halves the precision."""
    source, scenes = val
    right = perfect(scenes)
    group = [result(n, CLASSES["car"], s.codes == CLASSES["car"], 0.9) for n, s in enumerate(scenes, 1)]
    assert both(source, right + group) == (pytest.approx(100.0), pytest.approx(100.0))
    void = [result(n, CLASSES["person"], s.codes == EGO_VEHICLE, 0.9) for n, s in enumerate(scenes, 1)]
    assert both(source, right + void) == (pytest.approx(100.0), pytest.approx(100 * (3 + 0.5) / 4))


def test_a_single_caravan_is_no_void_for_the_official_evaluation(val: tuple[Cityscapes, list[Scene]]) -> None:
    """It looks for label ids, and instances have other values; COCO has no void at all."""
    source, scenes = val
    mistakes = [result(n, CLASSES["person"], s.codes == 29000, 0.9) for n, s in enumerate(scenes, 1)]
    assert evaluate_cityscapes(source.label_files, perfect(scenes) + mistakes).per_class["person"] < 50.0


def test_a_sure_mistake_on_the_road_halves_the_precision_of_its_class(val: tuple[Cityscapes, list[Scene]]) -> None:
    source, scenes = val
    road = np.zeros(SIZE, dtype=bool)
    road[52:58, 100:126] = True
    mistakes = [result(n, CLASSES["person"], road, 0.9) for n in range(1, len(scenes) + 1)]
    measured = evaluate_cityscapes(source.label_files, perfect(scenes) + mistakes)
    # Precision 1/2 at recall 1 and 0 where the mistakes come first: the official integration weighs them alike.
    assert measured.per_class["person"] == pytest.approx(25.0)
    assert measured.ap == pytest.approx((100 + 100 + 100 + 25) / 4)


def test_instances_under_a_hundred_pixels_do_not_count(tmp_path: Path) -> None:
    things = ((24000, 4, 4, 8, 8), (24001, 4, 20, 6, 22))
    scenes = write_cityscapes(tmp_path, size=SIZE, objects=things)["val"]
    source = Cityscapes(tmp_path, "val")
    assert (scenes[0].codes == 24001).sum() == 64
    results = [r for r in perfect(scenes) if coco_mask.area(r["segmentation"]) > 100]
    assert both(source, results) == (100.0, pytest.approx(100 * 51 / 101))


def test_without_any_instance_there_is_nothing_to_measure(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, size=SIZE, objects=())
    measured = evaluate_cityscapes(Cityscapes(tmp_path, "val").label_files, [])
    assert math.isnan(measured.ap) and measured.per_class == {}


def test_a_result_on_another_image_is_refused(val: tuple[Cityscapes, list[Scene]]) -> None:
    stray = result(9, 26, np.ones(SIZE, dtype=bool), 0.5)
    with pytest.raises(ValueError, match="result 0 is on image 9; expected one of 3 images"):
        evaluate_cityscapes(val[0].label_files, [stray])


def test_a_data_set_is_judged_by_its_own_evaluation_and_no_other(
    val: tuple[Cityscapes, list[Scene]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, scenes = val
    write_ade20k(tmp_path)
    others = Ade20k(tmp_path, "val")
    figures = official_figures(source, perfect(scenes))
    assert list(figures) == ["cityscapes"] and figures["cityscapes"]["ap"] == 100.0
    assert official_figures(others, []) == {}
    require_official(source)
    monkeypatch.setitem(sys.modules, "cityscapesscripts.evaluation", None)
    require_official(others)
    with pytest.raises(ImportError, match="cityscapesscripts"):
        require_official(source)


def test_every_judge_gives_the_figures_that_have_titles(val: tuple[Cityscapes, list[Scene]]) -> None:
    assert set(JUDGES) == set(OFFICIAL_TITLES) == {"cityscapes"}
    assert set(OFFICIAL_TITLES["cityscapes"]) <= set(official_figures(val[0], [])["cityscapes"])
    assert OFFICIAL == {"cityscapes_ap": "Cityscapes AP", "cityscapes_ap50": "Cityscapes AP50"}


def official_files(folder: Path, source: Cityscapes, results: list[dict[str, Any]]) -> list[str]:
    """The files that the official evaluation reads: a text file an image, a picture a prediction."""
    lists = []
    for image_id in source.image_ids:
        lines = []
        for number, r in enumerate(r for r in results if r["image_id"] == image_id):
            name = f"{image_id}_{number}.png"
            Image.fromarray(coco_mask.decode(r["segmentation"]) * 255).save(folder / name)
            lines.append(f"{name} {r['category_id']} {r['score']!r}\n")
        (folder / f"{image_id}.txt").write_text("".join(lines))
        lists.append(str(folder / f"{image_id}.txt"))
    return lists


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_official_evaluation_of_files(
    val: tuple[Cityscapes, list[Scene]], tmp_path: Path, seed: int
) -> None:
    """Instances shifted, cut, duplicated and misclassified, over groups and void, some with equal scores."""
    source, scenes = val
    rng, results = np.random.default_rng(seed), []
    for number, scene in enumerate(scenes, 1):
        for value in np.unique(scene.codes):
            for _ in range(int(rng.integers(0, 4))):
                mask = np.roll(scene.codes == value, rng.integers(-3, 4, 2), (0, 1))
                mask &= rng.random(SIZE) < rng.choice([1.0, 0.9, 0.6])
                label = (
                    int(value) // 1000 if value >= 1000 and rng.random() < 0.8 else int(rng.choice([24, 25, 26, 33]))
                )
                results.append(result(number, label, mask, float(rng.choice([0.1, 0.3, 0.31, 0.8, 0.95]))))
    results.append(result(1, 26, np.zeros(SIZE, dtype=bool), 0.7))
    folder = tmp_path / "predictions"
    folder.mkdir()
    official = official_evaluation()
    settings = official.CArgs()
    vars(settings).update(
        vars(official.args), quiet=True, predictionPath=str(folder), gtInstancesFile=str(folder / "gtInstances.json")
    )
    truth = [str(source.label_files[image_id]) for image_id in source.image_ids]
    # evaluateImgLists without its last words: what it writes to matches.json is no JSON with newer versions of NumPy.
    official.setInstanceLabels(settings)
    instances = official.getGtInstances(truth, settings)
    matches = official.matchGtWithPreds(official_files(folder, source, results), truth, instances, settings)
    expected = official.computeAverages(official.evaluateMatches(matches, settings), settings)
    measured = evaluate_cityscapes(source.label_files, results)
    assert 0 < measured.ap < 100 and measured.ap == 100 * expected["allAp"]
    assert measured.ap50 == 100 * expected["allAp50%"]
    for name, value in measured.per_class.items():
        assert value == 100 * expected["classes"][name]["ap"]
