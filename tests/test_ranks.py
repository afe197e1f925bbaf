"""Many ranks train as one process with the joint batch: real processes that meet by gloo."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import joint_gradients
import pytest
import torch
from forked_ranks import ranks_of
from killed_rank import run_until_killed
from safetensors.torch import load_file
from torch import Tensor

from sskd_fast.data.embedded import write_scenes
from sskd_fast.run.__main__ import main
from sskd_fast.source_prediction import IMAGES_AT_ONCE


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """The results of one process with the joint batch."""
    folder = tmp_path_factory.mktemp("alone")
    before = torch.get_default_dtype()
    try:
        joint_gradients.main(folder)
    finally:
        torch.set_default_dtype(before)
    return torch.load(folder / "0.pt")  # type: ignore[no-any-return]


def differences(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference of each tensor, relative to the largest value there."""
    assert set(found) == set(expected)
    return {
        name: float((found[name] - value).abs().max() / value.abs().max().clamp(min=1.0))
        for name, value in expected.items()
    }


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_have_the_loss_and_gradients_of_one_process(
    count: int, alone: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    """To 1e-10 in float64, for every form of L_pxl that sums over the joint batch, and with a gradient share."""
    done = ranks_of(count, joint_gradients.main, tmp_path, log=tmp_path / "stderr.txt")
    assert done.statuses == [0] * count, done.stderr[-3000:]
    for number in range(count):
        found = torch.load(tmp_path / f"{number}.pt")
        for case in joint_gradients.CASES:
            worst = differences(found[case], alone[case])
            assert max(worst.values()) < 1e-10, (case, {n: d for n, d in worst.items() if d > 1e-10})
        assert int(found["micro batch"]["agreed"]) == 2 and int(alone["micro batch"]["agreed"]) == 0
        # With candidates of other ranks, L_pxl is the one process's; their rows have no gradient.
        case = "negatives of all ranks"
        assert float(found[case]["pxl"]) == pytest.approx(float(alone[case]["pxl"]), rel=1e-10)
        assert max(differences(found[case], alone[case]).values()) > 1e-6


@pytest.mark.parametrize(
    ("form", "size"),
    [
        ("paper", 5),
        ("boundary", 1),
        ("boundary", 5),
        ("ownership", 1),
        ("ownership", 2),
        ("ownership", 5),
        ("prototypes", 5),
    ],
)
def test_micro_batches_have_the_gradients_of_the_whole(
    form: str, size: int, alone: dict[str, dict[str, Tensor]]
) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = joint_gradients.gradients("mask_transformer", form, micro_batch=size)
    finally:
        torch.set_default_dtype(before)
    worst = differences(found, alone[form])
    assert max(worst.values()) < 1e-10, {n: d for n, d in worst.items() if d > 1e-10}


@pytest.mark.slow
def test_ranks_of_torchrun_have_the_gradients_of_one_process(
    alone: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    script = [str(Path(joint_gradients.__file__)), str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *script]
    paths = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-3000:]
    for number in (0, 1):
        found = torch.load(tmp_path / f"{number}.pt")
        assert max(differences(found["paper"], alone["paper"]).values()) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sam3", "grounded_sam"])
def test_a_teachers_step_is_that_of_one_process(
    kind: str, tiny_foundation: Callable[[str], Path], tmp_path: Path
) -> None:
    """To 1e-10 in float64, trained boxes included, without dropout, which every process draws for itself."""
    of_kind = {"sam3": {"sam3": "sam3"}, "grounded_sam": {"detector": "mm_grounding_dino", "masks": "sam2"}}[kind]
    files = {part: str(without_dropout(tiny_foundation(name), tmp_path / name)) for part, name in of_kind.items()}
    before = torch.get_default_dtype()
    try:
        joint_gradients.teacher_gradients(kind, files, tmp_path)
    finally:
        torch.set_default_dtype(before)
    expected = torch.load(tmp_path / "alone.pt")
    done = ranks_of(2, joint_gradients.teacher_gradients, kind, files, tmp_path, log=tmp_path / "stderr.txt")
    assert done.statuses == [0, 0], done.stderr[-3000:]
    assert {"loss", "sup_mask", "semi_mask", "pxl"} < set(expected) and expected["loss"].dtype == torch.float64
    for number in (0, 1):
        worst = differences(torch.load(tmp_path / f"{number}.pt"), expected)
        assert max(worst.values()) < 1e-10, {n: d for n, d in worst.items() if d > 1e-10}


def without_dropout(model: Path, copy: Path) -> Path:
    """A copy of the model's folder, with every dropout and drop path of its configuration set to 0."""

    def changed(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        return {k: 0.0 if "drop" in k else changed(value) for k, value in part.items()}

    shutil.copytree(model, copy)
    config = copy / "config.json"
    config.write_text(json.dumps(changed(json.loads(config.read_text()))))
    return copy


def adaptation_of_scenes(folder: Path, *, val: int) -> list[str]:
    """Arguments of a short run that adapts the teacher: 4 labelled, `val` validation and 3 unlabelled scenes."""
    for seed, (name, count) in enumerate((("train", 4), ("val", val), ("plain", 3))):
        write_scenes(folder, name, "target", count, seed=30 + seed)
    data = [f"--labeled={folder / 'train.json'}", f"--images={folder / 'train'}", f"--unlabeled={folder / 'plain'}"]
    data += [f"--val={folder / 'val.json'}", f"--val-images={folder / 'val'}", "--stage=adapt", "--device=cpu"]
    return [*data, "--preset=smoke", "pseudo_labels.folds=2", "train.threads=1"]


@pytest.mark.slow
def test_splits_and_figures_of_a_model_that_is_not_trained_are_those_of_one_process(tmp_path: Path) -> None:
    """Byte by byte, if each of three ranks predicts a group of the validation images."""
    data = [*adaptation_of_scenes(tmp_path, val=2 * IMAGES_AT_ONCE + 1), "--max-steps=1"]
    data += ["stages.supervised_teacher.labeled_batch=6", "stages.adapted_teacher.labeled_batch=6"]
    data += ["stages.adapted_teacher.unlabeled_batch=6"]
    name, splits, rows = "zero_shot_teacher", {}, {}
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        done = ranks_of(count, main, [*data, f"--output={folder}"], log=tmp_path / "stderr.txt")
        assert done.statuses == [0] * count, done.stderr[-3000:]
        splits[count] = {path.name: path.read_bytes() for path in folder.glob("splits/*.txt")}
        rows[count] = {row["name"]: row for row in json.loads((folder / "metrics.json").read_text())["rows"]}
    assert {"labeled.txt", "val.txt", "unlabeled.txt", "fold_1_of_2.txt", "fold_2_of_2.txt"} == set(splits[1])
    assert 0 < rows[1][name]["ap"] < rows[1][name]["ap50"] < 100
    predictions = [(tmp_path / str(count) / "predictions" / f"{name}.json").read_bytes() for count in (1, 2, 3)]
    assert len({result["image_id"] for result in json.loads(predictions[0])}) > 2 * IMAGES_AT_ONCE - 5
    for count in (2, 3):
        assert splits[count] == splits[1]
        assert predictions[count - 1] == predictions[0]
        for figure in ("ap", "ap50"):
            assert rows[count][name][figure] == rows[1][name][figure]


@pytest.mark.slow
def test_a_job_that_lost_a_rank_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """Bit by bit those of a job that nobody killed."""
    data = [*adaptation_of_scenes(tmp_path, val=3), "--max-steps=3", "train.save_every=2"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    log = tmp_path / "stderr.txt"
    done = ranks_of(2, main, [*data, f"--output={straight}"], log=log)
    assert done.statuses == [0, 0], done.stderr[-3000:]
    state = killed / "checkpoints" / "supervised_teacher.state.pt"
    done = ranks_of(2, run_until_killed, state, [*data, f"--output={killed}"], log=log)
    assert done.statuses == [1, -signal.SIGKILL]
    words = "another process of the job has ended; the same command with --resume goes on from the last saved step"
    assert f"error: {words}" in done.stderr
    done = ranks_of(2, main, [*data, f"--output={killed}", "--resume"], log=log)
    assert done.statuses == [0, 0], done.stderr[-3000:]
    for name in ("supervised_teacher", "adapted_teacher"):
        expected, found = (load_file(f / "checkpoints" / f"{name}.safetensors") for f in (straight, killed))
        assert all(torch.equal(found[key], value) for key, value in expected.items())
