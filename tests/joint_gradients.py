"""The gradients of a step by the ranks that torchrun starts: joint_gradients.py FOLDER.

Also what one process with the joint batch has; tests/test_ranks.py compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sskd_fast import _env, ranks
from sskd_fast.data.instances import Batch, Instances
from sskd_fast.losses.contrast_settings import ContrastConfig
from sskd_fast.losses.dense_loss import DenseLossConfig
from sskd_fast.losses.objective import Objective
from sskd_fast.losses.set_loss import SetLossConfig
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.settings import FoundationConfig, ModelConfig
from sskd_fast.train.engine import Engine
from sskd_fast.train.sharding import whole

TINY: dict[str, Any] = {
    "channels": (8, 12, 16), "blocks": (1, 1, 1), "width": 16, "mask_width": 8, "layers": 1, "heads": 2,
    "feedforward": 24, "num_queries": 5, "embedding": 8,
}  # fmt: skip
# Terms and forms of J whose every sum is one of the joint batch, or of the anchor's own image.
FORMS: dict[str, dict[str, Any]] = {
    "paper": {"scope": "same", "form": "expected"},
    "boundary": {"scope": "same", "form": "boundary", "reach": 6},
    "prototypes": {"form": "prototypes"},
    "ownership": {"form": "ownership"},
}
IMAGES = 6


def joint_batch(seed: int) -> Batch:
    """IMAGES images with one to three instances of different scores, parts of them neither object nor background."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for number in range(IMAGES):
        masks = torch.zeros((1 + number % 3, 32, 32), dtype=torch.bool)
        for mask in masks:
            top, left, height, width = torch.randint(2, 16, (4,), generator=generator).tolist()
            mask[top : top + height, left : left + width] = True
        scores = torch.randint(1, 9, (len(masks),), generator=generator) / 8
        labels = torch.randint(0, 3, (len(masks),), generator=generator)
        targets.append(Instances(masks, labels, scores, torch.zeros(len(masks), dtype=torch.bool)))
    weak, strong = torch.rand((2, IMAGES, 3, 32, 32), generator=generator)
    valid = torch.ones((IMAGES, 32, 32), dtype=torch.bool)
    valid[::2, :, 20:] = False
    return Batch(weak, strong, valid, targets, list(range(IMAGES)))


def gradients(kind: str, form: str, *, micro_batch: int = 0, share: float = 0.15, **contrast: Any) -> dict[str, Tensor]:
    """Loss, parts of J and gradients by name, of the images of this rank and of all others."""
    return of_step(*model_and_objective(kind, form, share, **contrast), micro_batch)


def of_step(model: Segmenter, objective: Objective, micro_batch: int = 0) -> dict[str, Tensor]:
    """Loss, parts of J and gradients of a step, by name."""
    engine = Engine(model, objective, torch.optim.SGD(model.parameters(), lr=0.1), micro_batch)
    output = engine.gradients(images_of_step(0), 0.4, 3)
    found = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    terms = {name: value for name, value in output.parts.items() if name not in output.means or name == "pxl_weight"}
    return {"loss": output.loss} | terms | found


def model_and_objective(kind: str, form: str, share: float = 0.15, **contrast: Any) -> tuple[Segmenter, Objective]:
    """A tiny model, the same at every call, and J."""
    torch.manual_seed(0)
    model: Segmenter = build_segmenter(ModelConfig(kind=kind, **TINY), ["a", "b", "c"])  # type: ignore[arg-type]
    settings = ContrastConfig(**{"max_anchors": 10, "num_negatives": 8, **FORMS[form], **contrast})
    # Ranks draw cells of their own: here all of them.
    terms = SetLossConfig(dense=DenseLossConfig(masks_an_instance=1000, masks_an_image=1000))
    return model, Objective.of(terms, settings, lam_semi=0.7, lam_pxl=0.1, pxl_gradient_share=share)


def images_of_step(step: int) -> tuple[Batch, Batch]:
    """This rank's labelled and unlabelled images of a step."""
    labeled, unlabeled = (joint_batch(seed).part(ranks.share(IMAGES)) for seed in (2 * step + 1, 2 * step + 2))
    return labeled, unlabeled


def short_of_memory(model: Segmenter, most: int) -> None:
    """Has the model run out of memory for more images than `most`."""
    encode = model.encode

    def bounded(images: Tensor) -> Any:
        if len(images) > most:
            raise torch.OutOfMemoryError(f"no memory for {len(images)} images")
        return encode(images)

    model.encode = bounded  # type: ignore[method-assign]


def agreed_micro_batch() -> Tensor:
    """The micro batch that the ranks agree on if the second one has memory for two images only."""
    model, objective = model_and_objective("mask_transformer", "paper")
    if ranks.number() == 1:
        short_of_memory(model, 2)
    engine = Engine(model, objective, torch.optim.SGD(model.parameters(), lr=0.1))
    engine.find_micro_batch(images_of_step(0), 0.4, 3)
    return torch.tensor(engine.micro_batch)


def teacher_gradients(kind: str, files: Mapping[str, str], folder: Path) -> None:
    """Writes a training step of a teacher of transformers in float64, of the joint batch of all ranks.

    files: settings of its folders, by name.  Box jitter is a draw of each process, so there is none; trained boxes are
    drawn for the joint batch, two of an image's one to three.
    """
    torch.set_default_dtype(torch.float64)
    if _env.world_size() > 1:
        ranks.meet(cuda=False)
    torch.manual_seed(0)
    foundation = FoundationConfig(**files, box_jitter=0.0)  # type: ignore[arg-type]
    config = ModelConfig(kind=kind, num_queries=5, embedding=8, foundation=foundation)  # type: ignore[arg-type]
    model = build_segmenter(config, ["disc", "ring", "cell"]).double().train()
    with torch.no_grad():
        # SAM 2's masks are flat otherwise: pixels would differ by no more than rounding, and L_pxl divides by that.
        for name, parameter in model.named_parameters():
            if "hypernetworks" in name:
                parameter.mul_(20)
    contrast = ContrastConfig(max_anchors=10, num_negatives=8, **FORMS["paper"])
    objective = Objective.of(SetLossConfig(trained_boxes=2), contrast, lam_semi=0.7, lam_pxl=0.1)
    torch.save(of_step(model, objective), folder / f"{ranks.number() if _env.world_size() > 1 else 'alone'}.pt")


CASES: dict[str, dict[str, Any]] = {
    **{form: {"kind": "mask_transformer", "form": form} for form in FORMS},
    "dense": {"kind": "dense", "form": "paper"},
    "in micro batches": {"kind": "mask_transformer", "form": "paper", "micro_batch": 1},
    "few strong views": {"kind": "mask_transformer", "form": "paper", "micro_batch": 1, "strong_every": 4},
}


def main(folder: Path) -> None:
    """Writes every rank's results of all CASES to the folder."""
    torch.set_default_dtype(torch.float64)
    if _env.world_size() > 1:
        ranks.meet(cuda=False)
    found = {name: gradients(**case) for name, case in CASES.items()}
    negatives = {"scope": "all", "all_ranks": True}
    found["negatives of all ranks"] = gradients("mask_transformer", "paper", **negatives)
    found["micro batch"] = {"agreed": agreed_micro_batch()}
    torch.save(found, folder / f"{ranks.number()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
