"""A training step of the paper's student, 52 M parameters in bfloat16: with and without the contrastive loss.

Weights and images are random; the training loop is the real one. The times of the parts come from a second process that
waits for every launch (CUDA_LAUNCH_BLOCKING=1), so they add up to more than a step.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.gpu_steps.record import ROOT, Record, reason
from benchmarks.timed_steps import PARTS, timed_steps
from sskd_fast.data.instances import Batch, Instances
from sskd_fast.losses.contrast_settings import ContrastConfig
from sskd_fast.losses.objective import Objective
from sskd_fast.losses.set_loss import SetLossConfig
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.settings import ModelConfig
from sskd_fast.train.progress import Log
from sskd_fast.train.schedule import Schedule, StageConfig, TrainConfig
from sskd_fast.typed_settings import build, overlay

_PRESETS = ROOT / "sskd_fast" / "presets"
_CLASSES, _INSTANCES = 8, 10
_WARM_UP, _STEPS, _WATCHED_STEPS = 3, 10, 2
VARIANTS = {"contrast on": 0.1, "contrast off": 0.0}


def measure(record: Record) -> None:
    """Records for each variant: milliseconds per step and part, waits of the host by line of code, peak memory."""
    failures: list[str] = []
    for blocking in (False, True):
        for variant in VARIANTS:
            command = [sys.executable, "-m", "benchmarks.gpu_steps.training", variant, *["--dry"] * record.dry]
            environment = {**os.environ, **({"CUDA_LAUNCH_BLOCKING": "1"} if blocking else {})}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
            if done.returncode != 0:
                record.put(**{f"{variant} failed": done.stderr[-3000:]})
                failures += [variant] * (variant not in failures)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            parts = found.pop("ms_by_part")
            if blocking or record.dry:  # otherwise these are only the times of the launches
                found = record.found.get(variant, found) | {"ms_by_part": parts}
            record.put(**{variant: found})
    if failures:
        raise RuntimeError(f"{' and '.join(failures)}: failed; see the record for the reason")


@dataclass(frozen=True)
class Settings:
    """The part of a run's settings that a step of the student needs."""

    student: ModelConfig = field(default_factory=ModelConfig)
    loss: SetLossConfig = field(default_factory=SetLossConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    budget: StageConfig = field(default_factory=StageConfig)
    size: int = 64
    num_queries: int = 8


def settings(dry: bool) -> Settings:
    """The paper's preset, or the smallest student on the CPU.

    Read from the presets directly, since `settings.Config` imports packages that need pycocotools.
    """
    tree: dict[str, Any] = {}
    for name in ["default"] if dry else ["default", "paper"]:
        tree = overlay(tree, yaml.safe_load((_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")))
    kept = {name: tree[name] for name in ("student", "loss", "contrast", "train") if name in tree}
    budget = tree["stages"]["distilled_student"] | ({"labeled_batch": 1, "unlabeled_batch": 1} if dry else {})
    sizes = {} if dry else {"size": tree["views"]["size"], "num_queries": tree["num_queries"]}
    return build(Settings, kept | sizes | {"budget": budget}, "")


def batch(count: int, size: int, device: torch.device) -> Batch:
    """Random images with random boxes as instances: the time of a step does not depend on their content."""
    generator = torch.Generator().manual_seed(count)
    weak, strong = (torch.rand(count, 3, size, size, generator=generator).to(device) for _ in range(2))
    targets = []
    for _ in range(count):
        masks = torch.zeros(_INSTANCES, size, size, dtype=torch.bool)
        corners = torch.randint(0, size * 3 // 4, (_INSTANCES, 2), generator=generator).tolist()
        for mask, (y, x) in zip(masks, corners, strict=True):
            mask[y : y + size // 4, x : x + size // 4] = True
        labels = torch.randint(0, _CLASSES, (_INSTANCES,), generator=generator)
        targets.append(Instances(masks, labels, torch.ones(_INSTANCES), torch.zeros(_INSTANCES, dtype=torch.bool)))
    valid = torch.ones(count, size, size, dtype=torch.bool, device=device)
    return Batch(weak, strong, valid, targets, list(range(count)))


def one_variant(variant: str, dry: bool) -> dict[str, Any]:
    """The measurements of a variant, made in this process."""
    device, config = torch.device("cpu" if dry else "cuda"), settings(dry)
    student = dataclasses.replace(config.student, num_queries=config.num_queries)
    torch.manual_seed(0)
    model = build_segmenter(student, [f"class{i}" for i in range(_CLASSES)], weights=False).to(device)
    objective = Objective.of(config.loss, config.contrast, lam_semi=1.0, lam_pxl=VARIANTS[variant])
    budget, size = config.budget, config.size
    labeled, unlabeled = (batch(count, size, device) for count in (budget.labeled_batch, budget.unlabeled_batch))

    def draw(step: int) -> Iterator[tuple[Batch, Batch | None]]:
        while True:
            yield labeled, unlabeled

    def steps(count: int) -> dict[str, float]:
        shared = dataclasses.replace(config.train, evaluations=0)
        plan = Schedule(shared, dataclasses.replace(budget, steps=count))
        with tempfile.TemporaryDirectory() as folder:
            return timed_steps(model, objective, draw, plan, Log(Path(folder)), Path(folder))

    warm_up, counted, watched = (1, 1, 1) if dry else (_WARM_UP, _STEPS, _WATCHED_STEPS)
    steps(warm_up)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found = steps(counted)
    return {
        "parameters": model.parameter_count(),
        "precision": student.precision,
        "crop": size,
        "images": [budget.labeled_batch, budget.unlabeled_batch],
        "steps": counted,
        "ms": round(found["wall"], 3),
        "ms_by_part": {part: round(found[part], 3) for part in PARTS},
        "peak_mb": round(torch.cuda.max_memory_allocated(device) / 2**20) if device.type == "cuda" else None,
        **waits(lambda: steps(watched), watched, device),
    }


def waits(run: Any, count: int, device: torch.device) -> dict[str, Any]:
    """Waits of the host for the device in a step, by the line that waits; empty without a GPU."""
    if device.type != "cuda":
        return {"waits_a_step": None, "waits": []}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    except Exception as error:
        return {"waits_failed": reason(error)}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
    rows = [{"line": p.removeprefix(f"{ROOT}/")[-90:], "a_step": n / count} for p, n in places.most_common(30)]
    return {"waits_a_step": sum(places.values()) / count, "waits": rows}


if __name__ == "__main__":
    print(json.dumps(one_variant(sys.argv[1], "--dry" in sys.argv)))
