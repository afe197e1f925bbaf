"""Photographs: their preset, whole images, a teacher fitted to someone else's predictions."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sskd_fast.data.photographs import are_photographs
from sskd_fast.method import FITTED, STAGE, dependents, stages_of
from sskd_fast.models.augmented import augmentations
from sskd_fast.models.checkpoint import Origin
from sskd_fast.models.inference import InferenceConfig, predict
from sskd_fast.models.packaged import PACKAGED
from sskd_fast.models.pretrained import FoundationError
from sskd_fast.models.results import to_results
from sskd_fast.models.results_file import ResultsFile
from sskd_fast.models.segmenter import Predictions, Segmenter
from sskd_fast.models.settings import ModelConfig
from sskd_fast.rle import rle_of_box
from sskd_fast.run.command_line import parser, resolve
from sskd_fast.run.models import RunModels
from sskd_fast.run.source_classes import best_classes
from sskd_fast.settings import check_settings
from sskd_fast.typed_settings import ConfigError
from sskd_fast.yaml_settings import load_config


def picture(path: Path, colour: bool, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).integers(0, 255, (40, 50, 3 if colour else 1), dtype=np.uint8)
    small = Image.fromarray(np.broadcast_to(values, (40, 50, 3)).copy()).resize((10, 8))
    small.resize((50, 40)).save(path)
    return path


def test_photographs_are_jpeg_files_in_colour(tmp_path: Path) -> None:
    colour = [picture(tmp_path / f"{i}.jpg", True, i) for i in range(10)]
    grey = [picture(tmp_path / f"grey{i}.jpg", False, i) for i in range(10)]
    png = [picture(tmp_path / f"{i}.png", True, i) for i in range(10)]
    assert are_photographs(colour) and are_photographs([*colour[:9], grey[0]])
    assert not are_photographs(grey) and not are_photographs(png) and not are_photographs([])
    assert not are_photographs([*colour[:8], *grey[:2]])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    assert not are_photographs([broken])


def arguments(folder: Path, *more: str) -> argparse.Namespace:
    files = ["--labeled", str(folder / "l.json"), "--images", str(folder / "images"), "--val", str(folder / "v.json")]
    return parser().parse_intermixed_args([*files, "--labeled-fraction", "0.5", "--output", str(folder / "o"), *more])


def test_own_photographs_choose_their_preset_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for i in range(4):
        picture(tmp_path / "images" / f"{i}.jpg", True, i)
    config = resolve(arguments(tmp_path))
    assert config.student.kind == config.teacher.kind == "dense" and config.views.fit and config.predict.fit
    assert not config.views.vflip and not config.views.rot90 and config.data.labeled_fraction == 0.5
    assert "--preset photos (--preset default to refuse)" in capsys.readouterr().err
    assert resolve(arguments(tmp_path, "--preset", "default")).student.kind == "mask_transformer"
    for i in range(4):
        picture(tmp_path / "images" / f"{i}.png", True, i)
    assert resolve(arguments(tmp_path)).student.kind == "mask_transformer"


class Whole(Segmenter):
    """Sees one object everywhere, and records the sizes it was shown."""

    stride, max_stride = 1.0, 1

    def __init__(self) -> None:
        super().__init__()
        self.config, self.weight, self.seen = ModelConfig(), torch.nn.Parameter(torch.zeros(1)), []

    def forward(self, images: torch.Tensor) -> Predictions:
        self.seen += [tuple(int(image.abs().sum(d).gt(0).sum()) for d in ((0, 2), (0, 1))) for image in images]
        masks = torch.full((len(images), 1, *images.shape[-2:]), 5.0)
        return Predictions(masks, torch.tensor([[[5.0, 0.0]]]).expand(len(images), -1, -1), masks)


def test_whole_images_of_any_size_fit_into_one_tile() -> None:
    config, model = InferenceConfig(tile=(32, 64), overlap=8, fit=True, zoom=0.1), Whole()
    images = [torch.full((3, *size), 200, dtype=torch.uint8) for size in ((128, 64), (16, 16), (100, 400))]
    found = predict(model, images, config)
    assert model.seen == [(32, 16), (32, 32), (16, 64)]
    for image, detections in zip(images, found, strict=True):
        size = (image.shape[1], image.shape[2])
        result = to_results(detections, 1, size, [1], config.zoom_of(size))[0]
        assert result["segmentation"]["size"] == list(size)
        assert result["segmentation"]["counts"] == rle_of_box(np.ones(size, dtype=bool), 0, 0, *size)["counts"].decode()


def test_few_flips_come_again_at_other_zooms() -> None:
    views = augmentations(4, [1.0, 1.5], hflip=True, vflip=False, rot90=False)
    assert [(v.mirrored, v.zoom) for v in views] == [(False, 1.0), (True, 1.5), (False, 1.5), (True, 1.0)]
    assert len(augmentations(9, [1.0, 1.5], hflip=True, vflip=False, rot90=False)) == 4


def result(image_id: int, box: tuple[int, int, int, int], score: float, seen_as: object, category: int = 1) -> Any:
    mask = np.zeros((20, 20), dtype=bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    code = rle_of_box(mask, 0, 0, 20, 20)
    segmentation = {"size": [20, 20], "counts": code["counts"].decode()}
    return {"image_id": image_id, "category_id": category, "segmentation": segmentation, "score": score, "as": seen_as}


A, B = (0, 0, 8, 8), (10, 10, 18, 18)


def truth() -> dict[str, Any]:
    fields = ("image_id", "category_id", "segmentation")
    shown = [result(1, A, 1, ""), result(1, B, 1, ""), result(2, A, 1, "")]
    annotations = [{k: r[k] for k in fields} | {"id": i, "iscrowd": 0} for i, r in enumerate(shown, 1)]
    images = [{"id": i, "height": 20, "width": 20, "file_name": f"{i}.jpg"} for i in (1, 2)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}


def test_source_classes_are_added_while_they_raise_ap() -> None:
    results = [
        result(1, A, 0.9, "cat"),
        result(2, A, 0.8, "cat"),
        result(1, B, 0.7, 21),
        result(1, (0, 12, 4, 20), 0.99, "cup"),
    ]
    classes, ap = best_classes(results, truth(), "as", 100)
    assert classes == ("cat", "21") and ap == pytest.approx(100)


def test_results_of_several_files_keep_the_wanted_source_classes(tmp_path: Path) -> None:
    files = (tmp_path / "a.json", tmp_path / "b.json")
    files[0].write_text(json.dumps([result(1, A, 0.9, 17), result(1, B, 0.8, "cup")]))
    files[1].write_text(json.dumps([result(2, A, 0.7, "17")]))
    settings = f"teacher.foundation.results=[{files[0]},{files[1]}]"
    config = load_config([], ["teacher.kind=results", settings, "teacher.foundation.source_key=as",
                              "teacher.foundation.source_classes=[17]"]).teacher  # fmt: skip
    model = ResultsFile(config)
    assert [r["score"] for r in model.results_of(1, "")] == [0.9] and [r["score"] for r in model.results_of(2, "")] == [
        0.7
    ]
    assert set(model.results_of(1, "")[0]) == {"category_id", "segmentation", "score"}
    files[1].write_text(json.dumps([{k: v for k, v in result(2, A, 0.7, 17).items() if k != "as"}]))
    with pytest.raises(FoundationError, match=r"b\.json: result 0 lacks as"):
        ResultsFile(config)


def test_settings_of_predictions_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.foundation: source_classes=\['17'\]: name the field"):
        load_config([], ["teacher.foundation.source_classes=[17]"])
    with pytest.raises(ConfigError, match=r'teacher: warm_start="results": name a file of predictions'):
        load_config([], ["teacher.warm_start=results"])


def test_packaged_weights_bring_their_licence_into_checkpoints() -> None:
    def backbone(*overrides: str) -> Origin:
        config = load_config([], overrides, "photos")
        return RunModels(config, None, None, torch.device("cpu")).origins.backbone  # type: ignore[arg-type]

    weights = PACKAGED["efficientnet_lite0"]
    assert backbone() == Origin(weights.licence, weights.source)
    assert backbone("origins.backbone.licence=MIT") == Origin("MIT")  # what is stated stays
    assert backbone("student.backbone_checkpoint=") == Origin()


def test_a_fitted_teacher_stands_before_all_that_builds_on_it() -> None:
    names = [stage.name for stage in stages_of("adapt", fitted=True)]
    assert names == ["zero_shot_teacher", FITTED, "supervised_teacher", "adapted_teacher"]
    assert FITTED not in [stage.name for stage in stages_of("all")]
    assert {"supervised_teacher", "adapted_teacher", "distilled_student", "refined_student"} <= dependents(
        STAGE[FITTED]
    )
    assert FITTED not in dependents(STAGE["supervised_teacher"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec(PACKAGED["efficientnet_lite0"].module) is None,
    reason="needs pip install 'sskd_fast[photos]'",
)
def test_the_whole_chain_from_someone_elses_predictions(tmp_path: Path) -> None:
    from sskd_fast.data.embedded import write_scenes
    from sskd_fast.run.__main__ import main

    sets = {}
    for seed, (name, count) in enumerate({"train": 24, "val": 8}.items()):
        path = write_scenes(tmp_path, name, "target", count, seed=seed)
        sets[name] = json.loads(path.read_text())
    for offset, (name, content) in enumerate(sets.items()):  # ids of both sets in one file of predictions
        for entry in (*content["images"], *content["annotations"]):
            key = "id" if "file_name" in entry else "image_id"
            entry[key] += 1000 * offset
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    fields = ("image_id", "category_id", "segmentation")
    every = [a for content in sets.values() for a in content["annotations"]]
    results = [{k: a[k] for k in fields} | {"score": 0.9, "as": "thing"} for a in every]
    results += [r | {"score": 0.95, "as": "noise", "category_id": 1} for r in results if r["category_id"] != 1]
    (tmp_path / "results.json").write_text(json.dumps(results))
    command = [
        "--preset", "photos", "--labeled", str(tmp_path / "train.json"), "--images", str(tmp_path / "train"),
        "--val", str(tmp_path / "val.json"), "--val-images", str(tmp_path / "val"), "--labeled-fraction", "0.25",
        "--output", str(tmp_path / "run"), "--max-steps", "2", "teacher.warm_start=results",
        f"teacher.foundation.results={tmp_path / 'results.json'}", "teacher.foundation.source_key=as",
        "views.size=64", "views.paste=0.5", "teacher.width=16", "student.width=16", "student.backbone_levels=3",
        "train.threads=1",
    ]  # fmt: skip
    assert main(command) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]}
    assert rows["zero_shot_teacher"]["ap"] == pytest.approx(100)  # the noise is left out
    assert {FITTED, "supervised_teacher", "adapted_teacher", "distilled_student", "refined_student"} <= set(rows)
    kept = load_config([tmp_path / "run" / "config.yaml"])
    assert kept.teacher.foundation.source_classes == ("thing",)
    folds = {path.name for path in (tmp_path / "run" / "checkpoints" / "folds").glob("*.safetensors")}
    teachers = (FITTED, "supervised_teacher", "adapted_teacher")
    assert folds == {f"{teacher}_fold_{n}_of_3.safetensors" for teacher in teachers for n in (1, 2, 3)}
    labels = json.loads((tmp_path / "run" / "label_statistics.json").read_text())
    assert labels["zero_shot_teacher"]["precision"] == 1.0 and labels["zero_shot_teacher"]["recall"] == 1.0


def test_photographs_on_a_gpu_see_ten_times_the_images_with_the_same_models() -> None:
    small = load_config([], preset="photos")
    large = load_config([Path(__file__).resolve().parent.parent / "configs" / "photos_large.yaml"])
    check_settings(large)
    for stage in ("fitted_teacher", "supervised_teacher", "distilled_student", "refined_student", "supervised_student"):
        budgets = [getattr(config.stages, stage) for config in (small, large)]
        seen = [budget.steps * (budget.labeled_batch + budget.unlabeled_batch) for budget in budgets]
        assert seen[1] == 10 * seen[0], stage
    assert large.student == small.student and large.views.size == 448 and large.views.fit
