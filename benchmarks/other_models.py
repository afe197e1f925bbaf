"""This package's students beside models of transformers, with random weights on this machine -> docs/benchmarks.md.

`python -m benchmarks.other_models` times a training step of our mask transformer and of Mask2Former, which have the
same backbone, sizes, mask stride, images and targets. It then times one prediction of students and of RF-DETR-Seg, each
at its own resolution. The contenders take turns, so that other work on the machine slows all of them: compare ratios
rather than milliseconds. `pip install -e ".[models,photos]"` installs the libraries that it needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from benchmarks.marked import add_page_option, write_part
from benchmarks.report import table
from sskd_fast.data.instances import Batch, Instances
from sskd_fast.exported.parity import machine
from sskd_fast.losses.contrast_settings import ContrastConfig
from sskd_fast.losses.objective import Objective
from sskd_fast.losses.set_loss import SetLossConfig
from sskd_fast.models import pretrained
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.settings import ModelConfig
from sskd_fast.yaml_settings import load_config

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
COMMAND = "python -m benchmarks.other_models"
# Of the training step: height and width of the images, and their number.
SIDE, IMAGES, INSTANCES, CLASSES = 320, 2, 10, 8
QUERIES, LAYERS, WIDTH, FEEDFORWARD = 100, 9, 256, 2048
BACKBONE, MASK_STRIDE = "resnet50", 4
NAMES = [f"class{i}" for i in range(CLASSES)]
# Name -> side, windows per side of the published sizes.
RF_DETR = {"RF-DETR-Seg nano": (312, 1), "RF-DETR-Seg small": (384, 2)}
Step: TypeAlias = Callable[[int], Tensor]
Found: TypeAlias = dict[str, list[float]]


def our_model() -> nn.Module:
    """Our mask transformer in Mask2Former's sizes: its backbone, decoder layers, queries and stride of the masks."""
    settings = ModelConfig(
        backbone=f"timm/{BACKBONE}", mask_level=1, width=WIDTH, mask_width=WIDTH, layers=LAYERS, heads=8,
        feedforward=FEEDFORWARD, queries="learned", num_queries=QUERIES,
    )  # fmt: skip
    return build_segmenter(settings, NAMES, weights=False)


def mask2former() -> Any:
    """Mask2Former of transformers in its published sizes, with a ResNet-50."""
    transformers = pretrained.transformers()
    backbone = transformers.TimmBackboneConfig(
        backbone=BACKBONE, out_indices=[1, 2, 3, 4], use_pretrained_backbone=False
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, num_labels=CLASSES, num_queries=QUERIES, decoder_layers=LAYERS + 1,
        dim_feedforward=FEEDFORWARD,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


def rf_detr(side: int, windows: int) -> Any:
    """RF-DETR of transformers in a published size for segmentation, without the copies of queries for training."""
    transformers = pretrained.transformers()
    whole = (3, 6, 9)  # backbone layers that attend across windows
    backbone = {
        "model_type": "rf_detr_dinov2", "hidden_size": 384, "num_attention_heads": 6, "image_size": side,
        "patch_size": 12, "num_windows": windows, "out_indices": [*whole, 12],
        "window_block_indexes": [i for i in range(12) if i not in whole],
    }  # fmt: skip
    config = transformers.RfDetrConfig(
        backbone_config=backbone, num_labels=90, num_queries=QUERIES, decoder_layers=4, decoder_n_points=2, group_detr=1
    )
    return transformers.RfDetrForInstanceSegmentation(config)


def random_batch(side: int = SIDE, images: int = IMAGES, instances: int = INSTANCES) -> Batch:
    """Images of noise with rectangles as targets; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(images):
        masks = torch.zeros(instances, side, side, dtype=torch.bool)
        for mask in masks:
            top, left = torch.randint(side * 3 // 4, (2,), generator=generator).tolist()
            mask[top : top + side // 4, left : left + side // 4] = True
        labels = torch.randint(CLASSES, (instances,), generator=generator)
        targets.append(Instances(masks, labels, torch.ones(instances), torch.zeros(instances, dtype=torch.bool)))
    pixels = torch.rand(images, 3, side, side, generator=generator)
    valid = torch.ones(images, side, side, dtype=torch.bool)
    return Batch(pixels, pixels, valid, targets, list(range(images)))


def our_loss(model: Any, batch: Batch, masks: str = "points") -> Step:
    """The supervised loss of a step, with Mask2Former's settings."""
    settings = SetLossConfig(masks=masks, normalizer="pixels")  # type: ignore[arg-type]
    objective = Objective.of(settings, ContrastConfig(), lam_semi=0.0, lam_pxl=0.0)
    return lambda step: objective(model, batch, None, progress=0.0, seed=step).loss


def their_loss(model: Any, batch: Batch) -> Step:
    """The loss that Mask2Former of transformers computes itself."""
    masks = [target.masks.float() for target in batch.targets]
    labels = [target.labels for target in batch.targets]
    return lambda step: model(pixel_values=batch.weak, mask_labels=masks, class_labels=labels).loss


def train_step(model: nn.Module, loss: Step) -> Callable[[int], None]:
    """Forward, loss, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5)

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss(number).backward()
        optimizer.step()

    return step


def timed(contenders: dict[str, Callable[[int], object]], rounds: int) -> Found:
    """Milliseconds of every contender in every round, after one to warm up."""
    times: Found = {name: [] for name in contenders}
    for number in range(1 + rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run(number)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: of_name[1:] for name, of_name in times.items()}


def training(rounds: int) -> str:
    """The table of training steps."""
    batch, ours, theirs = random_batch(), our_model(), mask2former()
    losses = {
        "ours, masks at points": (ours, our_loss(ours, batch)),
        "ours, whole masks": (ours, our_loss(ours, batch, "dense")),
        "Mask2Former of transformers": (theirs, their_loss(theirs, batch)),
    }
    found = timed({name: train_step(*of) for name, of in losses.items()}, rounds)
    details = {name: [f"{parameters(model):.1f}"] for name, (model, _) in losses.items()}
    return rows(["a training step", "parameters, M"], details, found)


def predictors() -> dict[str, tuple[nn.Module, tuple[int, int]]]:
    """Name -> model and the height and width of its images."""
    models: dict[str, tuple[nn.Module, tuple[int, int]]] = {}
    for preset, size in (("default", (64, 64)), ("photos", (320, 320)), ("fast", (384, 384)), ("paper", (512, 1024))):
        config = load_config([], [], preset)
        settings = dataclasses.replace(config.student, precision="float32", num_queries=config.num_queries or QUERIES)
        models[f"student of `--preset {preset}`"] = build_segmenter(settings, NAMES, weights=False), size
    for name, (side, windows) in RF_DETR.items():
        models[name] = rf_detr(side, windows), (side, side)
    return models | {"Mask2Former, ResNet-50": (mask2former(), (384, 384))}


def _predict(model: nn.Module, image: Tensor, _: int) -> object:
    return model(image)


def predictions(rounds: int) -> str:
    """The table of predictions of one image, without reading it and without making masks of its size."""
    runs: dict[str, Callable[[int], object]] = {}
    details = {}
    for name, (model, size) in predictors().items():
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
        runs[name] = partial(_predict, model.eval(), image)
        details[name] = [f"{size[0]} x {size[1]}", f"{parameters(model):.2f}"]
    with torch.inference_mode():
        return rows(["a prediction", "pixels", "parameters, M"], details, timed(runs, rounds))


def parameters(model: nn.Module) -> float:
    """Millions of parameters."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def rows(head: list[str], details: dict[str, list[str]], found: Found) -> str:
    """A table of medians with the range of all rounds, and how many times the first contender's each takes."""
    base = statistics.median(next(iter(found.values())))
    lines = []
    for name, times in found.items():
        middle = statistics.median(times)
        spread = f"{middle:.0f} ({min(times):.0f} to {max(times):.0f})" if middle >= 10 else f"{middle:.1f}"
        lines.append([name, *details[name], spread, f"{middle / base:.2f}"])
    return table([*head, "ms", "times the first"], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes the page; see the module's docstring."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each contender")
    add_page_option(parser, COMMAND, PAGE)
    options = parser.parse_args(arguments)
    tables = training(options.rounds), predictions(options.rounds)
    content = (
        f"Written on {date.today()} on {machine()}, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"transformers {version('transformers')}. Medians of {options.rounds} rounds in turns (fastest to slowest), "
        f"float32.\n\nA step: {IMAGES} images of {SIDE} x {SIDE} with {INSTANCES} instances each; forward, matching "
        "after every layer, losses, backward, AdamW.\n\n" + "\n\n".join(tables)
    )
    print(content)
    write_part(options.page, COMMAND, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
