"""A run's labels in shards: as in one file, resumed by shards, named failures, workers of Ray that are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from dataclasses import replace

import torch
from safetensors.torch import load_file

from sskd_fast.data.errors import DataError
from sskd_fast.label import main
from sskd_fast.pseudo_labels.shards import LabelShards, shard_files
from sskd_fast.run import __main__ as run
from sskd_fast.run.labels import shard_labeller, sharded_labels, teacher_labels
from sskd_fast.run.models import RunModels
from sskd_fast.run.shard_labels import label_shards, shards_of
from sskd_fast.run.sources import target_sources
from sskd_fast.run.thresholds import kept_selection
from sskd_fast.train.progress import Log

TEACHER = "zero_shot_teacher"
ROOT = Path(__file__).resolve().parent.parent


def in_shards(models: RunModels, size: int) -> RunModels:
    return replace(
        models, config=replace(models.config, pseudo_labels=replace(models.config.pseudo_labels, shard=size))
    )


def test_shards_hold_the_labels_of_the_one_file(untrained_run: RunModels, tmp_path: Path) -> None:
    log = Log(tmp_path)
    listed = teacher_labels(untrained_run, log, TEACHER)
    statistics = json.loads((tmp_path / "label_statistics.json").read_text())[TEACHER]
    found = teacher_labels(in_shards(untrained_run, 32), log, TEACHER)
    assert listed is not None and found is not None and found.cell == listed.cell
    assert isinstance(listed.results, list) and isinstance(found.results, LabelShards)
    ids = untrained_run.sources.unlabeled.image_ids
    for image_id in ids:
        own = [result for result in listed.results if result["image_id"] == image_id]
        assert found.results.of_image(image_id) == own
    assert len(listed.results) > 0 and [image_id for image_id, _ in found.results.by_image()] == ids
    assert json.loads((tmp_path / "label_statistics.json").read_text())[TEACHER] == statistics | {"shards": 1}
    assert not (tmp_path / "pseudo_labels" / f"{TEACHER}.json").exists(), "one form of the labels, not two"


def test_a_torn_shard_is_made_anew_alone(untrained_run: RunModels, tmp_path: Path) -> None:
    models, log, folder = in_shards(untrained_run, 3), Log(tmp_path), tmp_path / "pseudo_labels" / TEACHER
    assert sharded_labels(in_shards(untrained_run, 4), log, TEACHER) is not None
    (other,) = shard_files(folder)
    assert sharded_labels(models, log, TEACHER) is not None
    files = shard_files(folder)
    assert [file.name[:5] for file in files] == ["00000", "00001"] and not other.exists(), "of other shards"
    stamp, labels = files[0].stat().st_mtime_ns, dict(LabelShards(files).by_image())
    files[1].write_bytes(files[1].read_bytes()[:-30])
    assert sharded_labels(models, log, TEACHER) is not None
    assert shard_files(folder) == files and files[0].stat().st_mtime_ns == stamp
    assert dict(LabelShards(files).by_image()) == labels and list(labels) == [1, 2, 3, 4]


def test_a_shard_that_fails_names_its_images_and_the_others_are_kept(untrained_run: RunModels, tmp_path: Path) -> None:
    models = in_shards(untrained_run, 2)
    source, labeller = models.sources.unlabeled, shard_labeller(models, Log(tmp_path), TEACHER)
    shards = shards_of(source, models.unlabeled_digests, 2)
    bad = source.records[1].path
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=rf"shard 0, images 1 \(.*\) to 2 \({bad.name}\): DataError: .*{bad.name}.* again"
    ):
        label_shards(labeller, shards)
    assert [file.name[:5] for file in shard_files(labeller.folder)] == ["00001"]
    bad.write_bytes(whole)
    assert len(label_shards(labeller, shards)) == 4


def anew(models: RunModels) -> RunModels:
    """The same run with its folders read again."""
    return replace(models, sources=target_sources(models.config, models.results.folder))


def test_images_that_come_later_get_shards_of_their_own_with_the_same_thresholds(
    untrained_run: RunModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, log = in_shards(untrained_run, 2), Log(tmp_path)
    folder, plain = tmp_path / "pseudo_labels" / TEACHER, tmp_path / "plain"
    assert sharded_labels(models, log, TEACHER) is not None
    first, thresholds = shard_files(folder), json.loads((folder / "thresholds.json").read_text())
    stamps = [file.stat().st_mtime_ns for file in first]
    assert len(first) == 2 and "stay as they are" not in capsys.readouterr().err

    images = sorted(plain.iterdir())
    for name in ("zz 1.png", "zz 2.png"):
        shutil.copy(images[0], plain / name)
    labels = sharded_labels(anew(models), log, TEACHER)
    assert labels is not None and isinstance(labels.results, LabelShards) and len(labels.results) == 6
    assert [file.stat().st_mtime_ns for file in first] == stamps and len(shard_files(folder)) == 3
    of_first, of_copy = (labels.results.of_image(number) for number in (1, 6))
    assert [r | {"image_id": 1} for r in of_copy] == of_first and len(of_first) > 0
    said = capsys.readouterr().err
    assert f"thresholds of {folder / 'thresholds.json'} stay as they are with other unlabelled images; to" in said
    assert json.loads((folder / "thresholds.json").read_text()) == thresholds

    shutil.copy(images[0], images[1])  # other pixels under the same name
    assert sharded_labels(anew(models), log, TEACHER) is not None
    last = shard_files(folder)
    assert len(last) == 3 and last[0] != first[0] and last[1] == first[1] and first[1].stat().st_mtime_ns == stamps[1]


def test_thresholds_are_calibrated_anew_for_other_labels_settings_and_weights(
    untrained_run: RunModels, tmp_path: Path
) -> None:
    models, log, file = in_shards(untrained_run, 2), Log(tmp_path), tmp_path / "pseudo_labels" / TEACHER
    model = models.load(TEACHER)

    def key(models: RunModels) -> str:
        selection = kept_selection(models, log, model, TEACHER)
        kept: dict[str, str] = json.loads((file / "thresholds.json").read_text())
        assert kept_selection(models, log, model, TEACHER) == selection, "as kept, to the last bit"
        return kept["key"]

    keys = [key(models)]
    stricter = replace(models.config.pseudo_labels, target_precision=0.99)
    keys.append(key(replace(models, config=replace(models.config, pseudo_labels=stricter))))
    truth = json.loads((tmp_path / "train.json").read_text())
    truth["annotations"] = truth["annotations"][1:]
    (tmp_path / "train.json").write_text(json.dumps(truth))
    keys.append(key(anew(models)))
    with torch.no_grad():
        next(iter(model.parameters())).add_(1e-3)
    keys.append(key(anew(models)))
    assert len(set(keys)) == 4
    assert key(in_shards(anew(models), 3)) == keys[-1], "whatever the number of images in a shard"


def test_the_command_wants_a_run_whose_teacher_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    expected = "none: not the folder of a run, has no config.yaml; give a run whose teacher is trained"
    assert expected in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("pseudo_labels: {truth: true}")
    assert main([str(tmp_path)]) == 2
    assert "its pseudo-labels do not come from a teacher" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_from_shards_ends_with_the_weights_of_one_without(tmp_path: Path) -> None:
    common = [
        "--preset", "smoke", "--max-steps", "4", "data.embedded_labeled=12", "data.embedded_unlabeled=40",
        "data.embedded_val=8", "train.threads=1",
    ]  # fmt: skip
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    for folder, stages, more in (
        (whole, ("all",), []),
        (shards, ("adapt", "distill", "refine"), ["pseudo_labels.shard=32"]),
    ):
        for number, stage in enumerate(stages):
            assert run.main(["--stage", stage, "--output", str(folder), *([] if number else [*common, *more])]) == 0
            if stage == "adapt":
                assert main([str(folder)]) == 0
                files = shard_files(folder / "pseudo_labels" / "adapted_teacher")
                stamps = {path: path.stat().st_mtime_ns for path in files}
    assert len(stamps) == 2 and stamps == {path: path.stat().st_mtime_ns for path in stamps}
    for name in ("distilled_student", "refined_student"):
        expected, found = (load_file(f / "checkpoints" / f"{name}.safetensors") for f in (whole, shards))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name
    expected, found = ((f / "predictions" / "refined_student.json").read_text() for f in (whole, shards))
    assert found == expected


@pytest.mark.slow
def test_a_killed_driver_and_a_killed_worker_lose_the_shards_in_their_hands_alone(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from benchmarks.labelling_scale import write_tars

    write_tars(tmp_path / "images", 240, 40)
    size: list[str] = ["--images", "240", "--shard", "40", "--ray", "2"]
    command = [sys.executable, "-m", "benchmarks.labelling_scale", str(tmp_path), *size]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    done = subprocess.run(
        [*command, "--kill", "driver"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    killed, again = (json.loads(line) for line in done.stdout.splitlines())
    assert killed["status"] == -signal.SIGKILL and again["status"] == 0, again
    assert killed["shards_before"] == 0 and 2 <= again["shards_before"] <= 6
    assert again["rewritten"] == 0 and again["shards_after"] == 6 and again["images"] == 240
    shutil.rmtree(tmp_path / "labels")
    done = subprocess.run(
        [*command, "--kill", "worker"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    row = json.loads(done.stdout)
    assert row["status"] == 0 and row["shards_after"] == 6 and row["images"] == 240, row
