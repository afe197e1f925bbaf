"""The data path at paper scale: images per second of one worker, evaluations, and the matching in a step.

Everything runs on one thread, like a data-loader worker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks.streets import write_streets
from sskd_fast.data.cityscapes import Cityscapes
from sskd_fast.data.instances import Batch
from sskd_fast.data.views import Views, draw_views
from sskd_fast.evaluation import evaluate_cityscapes, evaluate_masks
from sskd_fast.evaluation.cityscapes_ap import official_evaluation
from sskd_fast.losses.objective import Objective
from sskd_fast.losses.set_loss import SetLoss, SetLossConfig
from sskd_fast.models.mask_transformer import MaskTransformer
from sskd_fast.models.settings import ModelConfig

IMAGES, CROP, DETECTIONS = 4, (512, 1024), 100
VIEWS = Views(CROP, scale=(0.5, 2.0), vflip=False, rot90=False, weak_color=0.0, min_pixels=8)


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    write_streets(root, IMAGES)
    return root


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    torch.set_num_threads(1)


def timed(benchmark: Any, step: Callable[[], object], group: str, contender: str, images: int, rounds: int) -> None:
    benchmark.group = group
    benchmark.extra_info.update(operator=group, contender=contender, images=images)
    benchmark.pedantic(step, rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize("kept", ["files", "decoded", "memory"])
def test_views(benchmark: Any, streets: Path, tmp_path: Path, kept: str) -> None:
    """Decode, crop, both views and targets of the same 8 draws; kept: nothing, decoded files, or all in memory."""
    source = Cityscapes(streets, "val", cache_bytes=1 << 30 if kept == "memory" else 0)
    source.decoded = tmp_path if kept == "decoded" else None

    def step() -> None:
        for seed in range(8):
            draw_views(source, seed % IMAGES, VIEWS, seed)

    timed(benchmark, step, "views", kept, 8, 7)


def test_views_of_torchvision(benchmark: Any, streets: Path) -> None:
    """The same transforms by torchvision's classes, masks beside the image, all in memory."""
    source = Cityscapes(streets, "val")
    samples = [source[index] for index in range(IMAGES)]
    geometry = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ScaleJitter((1024, 2048), (0.5, 2.0), antialias=True),
            v2.RandomCrop(CROP, pad_if_needed=True),
        ]
    )
    colors = v2.Compose(
        [v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))])]
    )

    def step() -> None:
        torch.manual_seed(0)
        for number in range(8):
            sample = samples[number % IMAGES]
            assert sample.instances is not None
            image, masks = geometry(tv_tensors.Image(sample.image), tv_tensors.Mask(sample.instances.masks))
            weak = v2.functional.to_dtype(image, torch.float32, scale=True)
            _ = weak, colors(weak), masks[masks.flatten(1).sum(1) >= VIEWS.min_pixels]

    timed(benchmark, step, "views", "torchvision", 8, 5)


@pytest.mark.parametrize("part", ["image", "labels"])
def test_decoding(benchmark: Any, streets: Path, part: str) -> None:
    source = Cityscapes(streets, "val", cache_bytes=0)
    read: Callable[[int], object] = source.pixels if part == "image" else source.mask_layers

    def step() -> None:
        for index in range(IMAGES):
            read(index)

    timed(benchmark, step, "decoding", part, IMAGES, 7)


def detections(source: Cityscapes) -> list[dict[str, Any]]:
    """A hundred detections for each image: its instances, shifted by a few pixels, with random scores."""
    rng, results = np.random.default_rng(0), []
    for index, image_id in enumerate(source.image_ids):
        instances = source[index].instances
        assert instances is not None
        for number in range(DETECTIONS):
            chosen = number % len(instances)
            moved: NDArray[np.bool_] = np.roll(instances.masks[chosen].numpy(), rng.integers(-9, 10, 2), (0, 1))
            code = rle.encode(np.asfortranarray(moved, dtype=np.uint8))
            segmentation = {"size": code["size"], "counts": code["counts"].decode("ascii")}
            category = source.category_ids[int(instances.labels[chosen])]
            score = float(rng.random())
            results.append(
                {"image_id": image_id, "category_id": category, "segmentation": segmentation, "score": score}
            )
    return results


@pytest.mark.parametrize("contender", ["ours", "pycocotools"])
def test_coco_evaluation(benchmark: Any, streets: Path, contender: str) -> None:
    source = Cityscapes(streets, "val")
    truth, results = source.ground_truth(), detections(source)

    def plain() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO()
            known.dataset = truth
            known.createIndex()
            evaluation = COCOeval(known, known.loadRes([dict(result) for result in results]), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()

    step = plain if contender == "pycocotools" else lambda: evaluate_masks(truth, results)
    timed(benchmark, step, "COCO evaluation", contender, IMAGES, 5)


@pytest.mark.parametrize("contender", ["ours", "cityscapesscripts"])
def test_cityscapes_evaluation(benchmark: Any, streets: Path, tmp_path: Path, contender: str) -> None:
    """The official code on predictions in memory, and on files in its own format (written beforehand)."""
    source = Cityscapes(streets, "val")
    label_files = {image_id: source.label_files[image_id] for image_id in source.image_ids[:2]}
    results = [result for result in detections(source) if result["image_id"] in label_files]
    official = official_evaluation()

    def of_files() -> None:
        settings = official.CArgs()
        vars(settings).update(vars(official.args), quiet=True, predictionPath=str(tmp_path))
        official.setInstanceLabels(settings)
        truth = [str(path) for path in label_files.values()]
        lists = [str(tmp_path / f"{image_id}.txt") for image_id in label_files]
        matches = official.matchGtWithPreds(lists, truth, official.instances2dict(truth), settings)
        official.computeAverages(official.evaluateMatches(matches, settings), settings)

    if contender == "cityscapesscripts":
        write_official(tmp_path, results)
    step = of_files if contender == "cityscapesscripts" else lambda: evaluate_cityscapes(label_files, results)
    timed(benchmark, step, "Cityscapes evaluation", contender, len(label_files), 2)


def write_official(folder: Path, results: list[dict[str, Any]]) -> None:
    """Write one text file for each image and one picture for each prediction."""
    lines: dict[int, list[str]] = {}
    for number, result in enumerate(results):
        Image.fromarray(rle.decode(result["segmentation"]) * np.uint8(255)).save(folder / f"{number}.png")
        line = f"{number}.png {result['category_id']} {result['score']!r}\n"
        lines.setdefault(result["image_id"], []).append(line)
    for image_id, of_image in lines.items():
        (folder / f"{image_id}.txt").write_text("".join(of_image))


def test_matching(benchmark: Any, streets: Path) -> None:
    """A supervised step on two crops: the paper's decoder (100 queries, 9 layers, 12544 points), a small backbone.

    The matching is timed too; its share is smaller with a larger backbone.
    """
    source = Cityscapes(streets, "val")
    drawn = [
        draw_views(source, index, dataclasses.replace(VIEWS, size=(256, 512), scale=(0.5, 0.5)), index)
        for index in range(2)
    ]
    weak, strong, valid, targets = zip(*drawn, strict=True)
    batch = Batch(torch.stack(weak), torch.stack(strong), torch.stack(valid), list(targets), [1, 2])
    model = MaskTransformer(
        ModelConfig(channels=(64, 128, 256), blocks=(1, 2, 2), width=256, mask_width=256, mask_level=1, layers=9,
                    heads=8, feedforward=2048, queries="learned", num_queries=100),
        len(source.class_names),
    )  # fmt: skip
    objective = Objective(SetLoss(SetLossConfig(masks="points", normalizer="pixels")), None, 0.0, 0.0)
    shares: list[float] = []
    seeds: Iterator[int] = itertools.count()

    def step() -> None:
        output = objective(model, batch, None, progress=0.0, seed=next(seeds))
        output.loss.backward()
        shares.append(output.seconds["matching"])

    timed(benchmark, step, "matching", "step", 2, 3)
    benchmark.extra_info["matching_seconds"] = float(np.median(shares))
