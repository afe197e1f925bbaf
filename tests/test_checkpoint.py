"""Weights and training states: what is written is read back, whole or not at all."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sskd_fast.data.instances import Batch, Instances
from sskd_fast.files import remove_partial, write_atomically, write_json, write_text
from sskd_fast.losses.contrast import InstancePixelContrast
from sskd_fast.losses.gradient_share import GradientShare
from sskd_fast.losses.objective import Objective
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig
from sskd_fast.models.checkpoint import (
    CheckpointError,
    describe_again,
    load_checkpoint,
    load_weights,
    read_description,
    read_metadata,
)
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.settings import ModelConfig
from sskd_fast.train.checkpoint import PieceOver, TrainingState, end_piece
from sskd_fast.train.cost import Cost
from sskd_fast.train.loop import build_optimizer, train
from sskd_fast.train.moving_average import update_average
from sskd_fast.train.progress import Log, Progress
from sskd_fast.train.schedule import Schedule, StageConfig, TrainConfig
from tests.described import save_described

TINY = ModelConfig(
    channels=(8, 12), blocks=(1, 1), width=12, mask_width=6, layers=1, heads=2, feedforward=16, num_queries=4,
    embedding=6,
)  # fmt: skip


def model(classes: int = 3, seed: int = 0, **changes: object) -> MaskTransformer:
    torch.manual_seed(seed)
    net = MaskTransformer(dataclasses.replace(TINY, **changes), classes)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# Atomic writes


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]

    def tear(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, tear)
    assert path.read_text() == '{"a": 1}'
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_names_that_are_no_utf_8_are_written_as_escapes_that_json_reads_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    write_text(tmp_path / "a.json", f'{{"name": "{name}"}}')
    assert (tmp_path / "a.json").read_bytes() == rb'{"name": "caf\udce9.png"}'
    assert json.loads((tmp_path / "a.json").read_text()) == {"name": name}


def test_a_reader_never_sees_a_part_of_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    seen = []

    def write(partial: Path) -> None:
        partial.write_text("ne")
        seen.append(path.read_text())
        partial.write_text("new")

    write_atomically(path, write)
    assert (seen, path.read_text()) == (["old"], "new")


def test_only_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "model.state.pt"
    script = (
        "import os, signal, sys; from pathlib import Path; from sskd_fast.files import write_atomically\n"
        "def write(partial): partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), write)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -signal.SIGKILL
    labelling = tmp_path / "cache" / "teacher.json.partial"  # goes on after an interruption
    write_json(labelling, {})
    assert len(list(path.parent.iterdir())) == 1 and not path.exists()
    remove_partial(tmp_path)
    assert list(path.parent.iterdir()) == [] and labelling.exists()


# Weights


def test_weights_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "student.safetensors"
    written, read = model(seed=1), model(seed=2)
    save_described(path, written, ["a", "b", "c"], stage="x", steps=3)
    load_weights(read, path, ["a", "b", "c"])
    assert same(read, written)
    metadata = read_metadata(path)
    assert metadata["class_names"] == ["a", "b", "c"] and metadata["facts"] == {"stage": "x", "steps": 3}
    assert metadata["model"]["num_queries"] == 4
    assert [p.name for p in path.parent.iterdir()] == ["student.safetensors"]


def test_a_checkpoint_describes_its_model(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    written = model(classes=2, seed=1, layers=2)
    save_described(path, written, ["a", "b"])
    read, description = load_checkpoint(path)
    assert description.class_names == ("a", "b") and description.category_ids == (1, 2) and not read.training
    mean, std = (getattr(written, name).flatten().tolist() for name in ("mean", "std"))
    assert read.config == dataclasses.replace(written.config, mean=tuple(mean), std=tuple(std))
    assert same(read, written) and torch.equal(read.mean, written.mean) and torch.equal(read.std, written.std)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(read(images).mask_logits, written.eval()(images).mask_logits)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    written = model(seed=1)
    save_described(path, written, ["disc", "ring", "cross"])
    read = model(classes=4, seed=2)
    load_weights(read, path, ["cross", "cell", "disc", "wing"])
    for name in ("weight", "bias"):
        theirs: Tensor = getattr(written.decoder.head.classes, name)
        ours: Tensor = getattr(read.decoder.head.classes, name)
        mean = theirs[:3].mean(0)
        torch.testing.assert_close(ours, torch.stack([theirs[2], mean, theirs[0], mean, theirs[3]]))
    others = {n: t for n, t in read.state_dict().items() if "classes" not in n}
    assert all(torch.equal(t, written.state_dict()[n]) for n, t in others.items())


def test_parts_of_the_weights_leave_the_rest_alone(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    written, read = model(seed=1), model(classes=5, seed=2)
    before = copy.deepcopy(read)
    save_described(path, written, ["a", "b", "c"])
    load_weights(read, path, ["v", "w", "x", "y", "z"], parts=("backbone.", "pixel_decoder."))
    for name, tensor in read.state_dict().items():
        source = written if name.startswith(("backbone.", "pixel_decoder.")) else before
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_described(path, model(), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"student\.safetensors: .*(12|16).*the model has"):
        load_weights(model(width=16, mask_width=8), path, ["a", "b", "c"])
    with pytest.raises(
        ValueError, match=r"student\.safetensors: lacks decoder\.layers\.1\..* and \d+ more of the model"
    ):
        load_weights(model(layers=2), path, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"decoder\.layers\.0\..* the model has no such tensor"):
        load_weights(model(layers=0), path, ["a", "b", "c"])


def test_a_torn_weight_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_described(path, model(), ["a", "b", "c"])
    path.write_bytes(path.read_bytes()[:100])
    for read in (lambda: read_metadata(path), lambda: load_weights(model(), path, ["a", "b", "c"])):
        with pytest.raises(
            ValueError, match=r"student\.safetensors: not a readable safetensors file, or cut off .* run the stage"
        ):
            read()


def test_a_description_is_changed_without_touching_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    written = model(seed=1)
    save_described(path, written, ["a", "b", "c"], stage="x")
    size = int.from_bytes(path.read_bytes()[:8], "little")
    before, weights = read_description(path), path.read_bytes()[8 + size :]
    describe_again(path, figures={"ap": 12.5, "rows": [{"name": "x"}]})
    after, size = read_description(path), int.from_bytes(path.read_bytes()[:8], "little")
    assert after == dataclasses.replace(before, figures={"ap": 12.5, "rows": [{"name": "x"}]})
    assert path.read_bytes()[8 + size :] == weights and size % 8 == 0
    assert same(load_checkpoint(path)[0], written)


def test_an_old_or_foreign_file_is_refused_with_its_missing_fields(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    metadata = {"model": json.dumps(dataclasses.asdict(TINY)), "class_names": '["a"]', "facts": "{}"}
    save_file({"x": torch.zeros(1)}, str(path), metadata=metadata)
    with pytest.raises(CheckpointError, match=r"lacks category_ids, inference, stretch: .*--stage evaluate"):
        read_description(path)
    save_file({"x": torch.zeros(1)}, str(path))
    with pytest.raises(CheckpointError, match=r"lacks model, class_names, category_ids, .*: it is not a"):
        read_description(path)


def test_a_file_of_a_later_version_says_which_to_install(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    save_file({"x": torch.zeros(1)}, str(path), metadata={"layout": "3", "version": '"9.1"'})
    with pytest.raises(CheckpointError, match=r"written by sskd_fast 9\.1 in layout 3, expected at most 2: install"):
        read_metadata(path)


# Training states


def batch(step: int) -> Batch:
    """The batch of a step, a pure function of it."""
    generator = torch.Generator().manual_seed(100 + step)
    targets = []
    for _ in range(2):
        masks = torch.zeros((2, 32, 32), dtype=torch.bool)
        top, left = torch.randint(0, 12, (2,), generator=generator).tolist()
        masks[0, top : top + 10, left : left + 8], masks[1, 20:30, 16:30] = True, True
        targets.append(Instances(masks, torch.tensor([0, 2]), torch.ones(2), torch.zeros(2, dtype=torch.bool)))
    weak, strong = torch.rand((2, 2, 3, 32, 32), generator=generator)
    return Batch(weak, strong, torch.ones((2, 32, 32), dtype=torch.bool), targets, [1, 2])


class Interrupted(Exception):
    """Stands for a crash in the middle of a stage."""


def run(
    tmp_path: Path,
    state: TrainingState,
    *,
    fail_at: int | None = None,
    masks: str = "points",
    steps: int = 6,
    bank: int = 64,
    precision: str = "float32",
    kind: str = "",
) -> tuple[MaskTransformer, list[int]]:
    net = model(seed=3, precision=precision).to(memory_format=torch.channels_last)
    torch.manual_seed(4)
    settings = TrainConfig(lr=1e-2, backbone_lr=0.5, warmup=2, ema=0.9, save_every=3, evaluations=2)
    if kind:
        net.config = dataclasses.replace(net.config, kind=kind)
        settings = dataclasses.replace(settings, compile="eager")
    schedule = Schedule(settings, StageConfig(steps=steps))
    contrast = InstancePixelContrast(num_negatives=6, max_anchors=8, memory_bank=bank)
    config = SetLossConfig(masks=masks, points=60)  # type: ignore[arg-type]
    drawn: list[int] = []

    def draw(start: int) -> Iterator[tuple[Batch, Batch | None]]:
        for step in range(start, steps):
            if step == fail_at:
                raise Interrupted
            drawn.append(step)
            yield batch(step), batch(1000 + step)

    log = Log(tmp_path)
    progress = Progress(log, "stage", "stage", 2, {})
    try:
        share = None if precision == "float16" else GradientShare(0.15)
        objective = Objective(SetLoss(config), contrast, 1.0, 0.1, gradient_share=share)
        average = train(net, objective, draw, schedule, state, progress, lambda m: {"ap": 1.0, "ap50": 2.0}, seed=5)
    finally:
        progress.end()
        log.close()
    return average, drawn


def test_an_interrupted_stage_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    """Bit by bit, with points drawn from the global generator, a memory bank, and a weight by its gradient's share."""
    straight, drawn = run(tmp_path / "a", TrainingState(tmp_path / "a" / "state.pt", "k", False))
    assert drawn == [0, 1, 2, 3, 4, 5]
    path = tmp_path / "b" / "state.pt"
    with pytest.raises(Interrupted):
        run(tmp_path / "b", TrainingState(path, "k", True), fail_at=5)
    state = TrainingState(path, "k", True)
    resumed, drawn = run(tmp_path / "b", state)
    assert drawn == [3, 4, 5]
    assert same(resumed, straight)
    assert state.cost.seconds > 0 and state.cost.cpu_seconds > 0
    counts = state.cost.steps, state.cost.labeled_seen, state.cost.unlabeled_seen
    assert counts == (3, 6, 6)  # the two steps after the saved one were made again


def test_a_resumed_stage_in_float16_has_the_scale_of_the_loss(tmp_path: Path) -> None:
    """The first steps overflow and halve the scale; a resumed stage that began with the first one would skip more."""
    straight, _ = run(tmp_path / "a", TrainingState(tmp_path / "a" / "state.pt", "k", False), precision="float16")
    path = tmp_path / "b" / "state.pt"
    with pytest.raises(Interrupted):
        run(tmp_path / "b", TrainingState(path, "k", True), fail_at=5, precision="float16")
    assert torch.load(path, weights_only=True)["modules"]["scaler"]["scale"] < 2.0**16
    resumed, drawn = run(tmp_path / "b", TrainingState(path, "k", True), precision="float16")
    assert drawn == [3, 4, 5] and same(resumed, straight)


def test_a_piece_ends_once_its_state_is_saved_and_the_next_one_goes_on(tmp_path: Path) -> None:
    straight, _ = run(tmp_path / "a", TrainingState(tmp_path / "a" / "state.pt", "k", False))
    path = tmp_path / "b" / "state.pt"
    with pytest.raises(PieceOver):
        run(tmp_path / "b", TrainingState(path, "k", True, deadline=-math.inf))
    resumed, drawn = run(tmp_path / "b", TrainingState(path, "k", True))
    assert drawn == [3, 4, 5] and same(resumed, straight)


def test_no_piece_begins_after_the_deadline() -> None:
    end_piece(math.inf)
    end_piece(time.monotonic() + 1000)
    with pytest.raises(PieceOver):
        end_piece(time.monotonic() - 1)


def test_a_model_that_is_not_compiled_is_named_and_trained_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "  train.compile: a model of kind sam3 is not compiled\n"
    plain, _ = run(tmp_path / "a", TrainingState(tmp_path / "a" / "state.pt", "k", False), steps=2)
    assert said not in capsys.readouterr().err
    stayed, _ = run(tmp_path / "b", TrainingState(tmp_path / "b" / "state.pt", "k", False), steps=2, kind="sam3")
    assert said in capsys.readouterr().err and same(stayed, plain)


def test_without_resume_or_under_another_key_a_stage_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        run(tmp_path, TrainingState(path, "k", False), fail_at=4)
    for state in (TrainingState(path, "other", True), TrainingState(path, "k", False)):
        net = model(seed=7)
        before = copy.deepcopy(net)
        optimizer = torch.optim.AdamW(net.parameters())
        assert state.restore({"model": net, "average": copy.deepcopy(net), "contrast": None}, optimizer) == 0
        assert same(net, before) and not optimizer.state and state.cost == Cost()
    assert TrainingState(tmp_path / "absent.pt", "k", True).restore({}, torch.optim.SGD([torch.zeros(1)])) == 0


def test_costs_of_all_sessions_add_up(tmp_path: Path) -> None:
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters())
    path = tmp_path / "state.pt"
    for total in (10.0, 20.0, 30.0):
        state = TrainingState(path, "k", True)
        state.restore({"model": net}, optimizer)
        state.save(1, {"model": net}, optimizer, Cost(steps=2, labeled_seen=16, seconds=10.0))
        again = TrainingState(path, "k", True)
        again.restore({"model": net}, optimizer)
        assert again.cost == Cost(steps=int(total) // 5, labeled_seen=8 * int(total) // 5, seconds=total)


def test_a_finished_stage_leaves_no_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    state = TrainingState(path, "k", False)
    run(tmp_path, state)
    assert path.exists()
    state.clear()
    state.clear()
    assert not path.exists() and not list(tmp_path.glob(".*"))


# The loop around them


def test_average_follows_the_model_and_takes_its_buffers() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = copy.deepcopy(net)
    old, new = net.state_dict()["0.weight"].clone(), torch.randn(2, 2)
    net.load_state_dict({"0.weight": new}, strict=False)
    net(torch.randn(8, 2) + 3)
    update_average(average, net, 0.75)
    kept, current = average.state_dict(), net.state_dict()
    torch.testing.assert_close(kept["0.weight"], 0.75 * old + 0.25 * new)
    assert torch.equal(kept["1.running_mean"], current["1.running_mean"])
    assert kept["1.num_batches_tracked"] == 1


def schedule(steps: int = 100, **changes: object) -> Schedule:
    base = TrainConfig(lr=0.1, backbone_lr=0.1, weight_decay=0.2, warmup=10, ema=0.9, save_every=50, evaluations=1)
    return Schedule(dataclasses.replace(base, **changes), StageConfig(steps=steps))  # type: ignore[arg-type]


def test_learning_rate_rises_then_falls() -> None:
    cosine = [schedule().factor(step) for step in range(100)]
    assert cosine[0] == pytest.approx(0.1 * (0.02 + 0.98))
    assert max(range(100), key=cosine.__getitem__) == 9
    assert all(a > b for a, b in itertools.pairwise(cosine[9:]))
    assert cosine[50] == pytest.approx(0.02 + 0.49) and schedule().factor(100) == pytest.approx(0.02)
    poly = schedule(schedule="poly")
    assert poly.factor(50) == pytest.approx(0.5**0.9) and poly.factor(100) == 0
    assert schedule(steps=8).factor(1) == pytest.approx(schedule(steps=8, warmup=0).factor(1))  # a quarter at most


def test_optimizer_groups() -> None:
    net = model()
    optimizer = build_optimizer(net, schedule())
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        group = group_of[id(parameter)]
        assert group["base_lr"] == pytest.approx(0.01 if name.startswith("backbone.") else 0.1), name
        assert group["weight_decay"] == (0.2 if parameter.ndim > 1 else 0.0), name


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    net = model(seed=3)
    objective = Objective(SetLoss(SetLossConfig()), None, 0.0, 0.0)

    def draw(step: int) -> Iterator[tuple[Batch, Batch | None]]:
        while True:
            yield batch(0), None

    def loss(m: MaskTransformer) -> float:
        return objective(m, batch(0), None, progress=0.0, seed=0).loss.item()

    before = loss(net)
    log = Log(tmp_path)
    plan = schedule(steps=40, lr=1e-2, backbone_lr=1.0, evaluations=0)
    state = TrainingState(tmp_path / "state.pt", "k", False)
    progress = Progress(log, "s", "s", 10, {})
    average = train(net, objective, draw, plan, state, progress, None, seed=0)
    log.close()
    assert (progress.cost.steps, progress.cost.labeled_seen, progress.cost.unlabeled_seen) == (40, 80, 0)
    assert loss(average) < 0.6 * before
    assert not any(p.requires_grad for p in average.parameters())
