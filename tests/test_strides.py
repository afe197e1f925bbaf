"""Strides of masks where whole images are scaled into a tile: of rows, of comparisons, and of perfect masks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import RESULTS
from test_seeds import GOOD, REFINED, seeds_in

from sskd_fast.evaluation import at_stride, compare_masks, stride_ceiling
from sskd_fast.method import STAGE
from sskd_fast.report.summary import write_summary
from sskd_fast.run.in_folder import results_header
from sskd_fast.run.made_with import measured_with
from sskd_fast.run.measure import compare_students, mask_stride
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import Row


def whole_images(models: RunModels, tile: tuple[int, int] = (0, 0)) -> RunModels:
    """The run with whole images in its crops of 64 x 64; tile: the student's own."""
    config = models.config
    predict = dataclasses.replace(config.predict, fit=True)
    student = dataclasses.replace(config.student, tile=tile)
    return dataclasses.replace(models, config=dataclasses.replace(config, predict=predict, student=student))


@pytest.mark.parametrize(("tile", "share"), [((0, 0), 1), ((128, 128), 2), ((64, 128), 1), ((32, 32), 0.5)])
def test_a_stride_counts_in_pixels_of_the_image_in_a_training_crop(
    untrained_run: RunModels, tile: tuple[int, int], share: float
) -> None:
    """In a tile twice as large, the whole image is twice as large, and so a cell half as large a part of it."""
    assert untrained_run.sources.views.size == (64, 64)
    fitted = whole_images(untrained_run, tile)
    student = fitted.start(STAGE["matched_student"])
    assert mask_stride(fitted, student) == student.stride / share
    assert mask_stride(untrained_run, student) == student.stride


def test_perfect_masks_are_drawn_at_the_scale_of_each_image(untrained_run: RunModels) -> None:
    """Validation images of 64 x 64 pixels fit a crop of 32 x 32 at a zoom of 1/2."""
    fitted = whole_images(untrained_run)
    sources = dataclasses.replace(fitted.sources, views=dataclasses.replace(fitted.sources.views, size=(32, 32)))
    fitted = dataclasses.replace(fitted, sources=sources)
    assert results_header(fitted.config, sources)["fit"] == [32, 32]
    assert "fit" not in results_header(untrained_run.config, untrained_run.sources)
    truth = sources.val.ground_truth()
    for models, zoom in ((untrained_run, 1.0), (fitted, 0.5)):
        models.results.add_row(Row("refined_student", 1.0, 1.0, 1, 4.0, {}, measured_with=measured_with(models).key))
        compare_students(models)
        found = models.results.details["ceilings"]
        assert found == {"4": pytest.approx(stride_ceiling(truth, 4.0, zoom), abs=1e-3)}
    assert stride_ceiling(truth, 4.0, 0.5) < stride_ceiling(truth, 4.0, 1.0)


@pytest.mark.parametrize(("facts", "zoom"), [({}, 1.0), ({"zoom": 0.5}, 0.5), ({"zoom": 0.5, "fit": [12, 16]}, 0.25)])
def test_a_summary_compares_seeds_at_the_scale_of_their_images(
    tmp_path: Path, facts: dict[str, Any], zoom: float
) -> None:
    folder = seeds_in(tmp_path, [24.0, 26.0], **facts)
    gains = {(g["model"], g["against"], g["stride"]): g for g in write_summary(folder, [0, 1])["gains"]}
    truth = json.loads((folder / "seed-0" / "ground_truth.json").read_text())
    expected = compare_masks(truth, at_stride(GOOD, 4.0, zoom), RESULTS)
    found = gains[REFINED, "adapted_teacher", 4.0]
    assert found["by_seed"] == [pytest.approx(expected.ap, abs=1e-3)] * 2
