"""The memory of a step, counted without values, against what PyTorch allocates on the CPU in that step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from sskd_fast._env import without_value_checks
from sskd_fast.data.instances import Batch, Instances
from sskd_fast.losses.contrast_settings import ContrastConfig
from sskd_fast.losses.objective import Objective
from sskd_fast.losses.set_loss import SetLossConfig
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.models.settings import FoundationConfig, ModelConfig
from sskd_fast.run.step_memory import StepMemory, fitting_images, step_memory
from sskd_fast.run.without_values import backward, dropping_values, without_values

Folder = Callable[[str], Path]
SIZE, COUNT = (128, 192), 10
UNIVERSAL = ("mask2former", "maskformer", "eomt", "eomt_dinov3", "rf_detr")
OWN: dict[str, Any] = {"channels": (16, 32, 64), "num_queries": 20}


def settings(folder: Folder | None, kind: str, **changes: Any) -> ModelConfig:
    """A small model of the kind; folder: of those of transformers."""
    if folder is None:
        return ModelConfig(kind=kind, **(OWN if kind == "mask_transformer" else {}), **changes)
    rank = changes.pop("lora_rank", 0)
    if kind in UNIVERSAL:
        foundation = FoundationConfig(universal=str(folder(kind)), pretrained=False, lora_rank=rank)
        return ModelConfig(kind="universal", foundation=foundation, **changes)
    if kind == "sam3":
        foundation = FoundationConfig(sam3=str(folder(kind)), pretrained=False, lora_rank=rank)
        return ModelConfig(kind="sam3", num_queries=5, embedding=6, foundation=foundation, **changes)
    files = {"detector": str(folder(kind)), "masks": str(folder("sam2"))}
    foundation = FoundationConfig(**files, pretrained=False, lora_rank=rank)
    return ModelConfig(kind="grounded_sam", num_queries=5, embedding=6, foundation=foundation, **changes)


def built(config: ModelConfig) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(config, ["disc", "ring", "cross", "cell"], weights=False)


def objective() -> Objective:
    loss, contrast = SetLossConfig(masks="points", points=1024), ContrastConfig(max_anchors=64)
    return Objective.of(loss, contrast, lam_semi=1.0, lam_pxl=0.1)


def estimate(config: ModelConfig, device: Literal["cpu", "cuda"] = "cpu") -> StepMemory:
    with torch.device("meta"), without_value_checks():
        model = built(config).to("meta")
    return step_memory(model, objective(), SIZE, (1, 1), COUNT, device=device)


def batch() -> Batch:
    masks = torch.zeros((COUNT, *SIZE), dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[10 * i : 10 * i + 24, 12 * i : 12 * i + 30] = True
    target = Instances(masks, torch.arange(COUNT) % 4, torch.ones(COUNT), torch.zeros(COUNT, dtype=torch.bool))
    return Batch(
        torch.rand(1, 3, *SIZE), torch.rand(1, 3, *SIZE), torch.ones(1, *SIZE, dtype=torch.bool), [target], [0]
    )


def two_steps(config: ModelConfig) -> None:
    model, goal = built(config).train(), objective()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    labeled, unlabeled = batch(), batch()
    for _ in range(2):
        loss = goal(model, labeled, unlabeled, progress=0.5, seed=0).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    del average


def allocated(work: Callable[[], None]) -> int:
    """The most bytes that PyTorch's allocator for the CPU has handed out at once, all of them within `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    found: list[tuple[int, int]] = []
    events = list(profiled.profiler.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events += event.children
        if type(event.extra_fields).__name__ == "_ExtraFields_Allocation":
            found.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = peak = 0
    for _, size in sorted(found):
        now += size
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mm_grounding_dino", {"gradient_checkpointing": True}),
        ("mm_grounding_dino", {"precision": "bfloat16"}),
        ("mask2former", {"gradient_checkpointing": True}),
        ("eomt", {"precision": "bfloat16"}),
        ("sam3", {"gradient_checkpointing": True}),
        ("rf_detr", {"precision": "bfloat16"}),
        ("maskformer", {}),
        ("eomt_dinov3", {"precision": "bfloat16"}),
    ],
)
def test_models_of_transformers_use_the_counted_memory(
    tiny_foundation: Folder, kind: str, changes: dict[str, Any]
) -> None:
    config = settings(tiny_foundation, kind, **changes)
    two_steps(config)  # what is loaded and kept on first use is no part of a step
    assert estimate(config).peak == pytest.approx(allocated(lambda: two_steps(config)), rel=0.15)


@pytest.mark.parametrize("kind", ["mask_transformer", "dense"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_own_models_use_the_counted_memory(kind: str, precision: str) -> None:
    config = settings(None, kind, precision=precision)
    two_steps(config)
    assert estimate(config).peak == pytest.approx(allocated(lambda: two_steps(config)), rel=0.15)


def test_adapters_use_the_counted_memory(tiny_foundation: Folder) -> None:
    pytest.importorskip("peft")
    config = settings(tiny_foundation, "mm_grounding_dino", lora_rank=2, gradient_checkpointing=True)
    two_steps(config)
    assert estimate(config).peak == pytest.approx(allocated(lambda: two_steps(config)), rel=0.15)


def test_computing_layers_again_keeps_less(tiny_foundation: Folder) -> None:
    every, again = (
        estimate(settings(tiny_foundation, "mm_grounding_dino", gradient_checkpointing=g)) for g in (False, True)
    )
    assert again.kept < 0.75 * every.kept and again.peak < every.peak and again.lasting == every.lasting


def test_lasting_bytes_are_weights_average_and_moments() -> None:
    config = settings(None, "mask_transformer")
    model = built(config)
    of = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    trained = sum(p.numel() * 4 for p in model.parameters())
    found = estimate(config).lasting
    assert 2 * of + 2 * trained <= found < 1.1 * (2 * of + 2 * trained)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_on_cuda_keeps_norms_in_float32(half: torch.dtype) -> None:
    """Unlike on the CPU; also in what is computed again."""
    layer = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    with without_values("cuda"):
        dropping_values(layer)
        seen: list[Tensor] = []

        def run(x: Tensor) -> Tensor:
            seen.append(layer(x))
            return seen[-1]

        with torch.autocast("cpu", half), set_checkpoint_early_stop(False):
            out = checkpoint(run, torch.empty(4, 8), use_reentrant=False)
        backward(out.sum())
    assert [x.dtype for x in seen] == [torch.float32, torch.float32]
    with without_values("cpu"), torch.autocast("cpu", half):
        assert layer(torch.empty(4, 8)).dtype == half


def test_bytes_live_as_long_as_their_storage() -> None:
    with without_values("cuda") as live:
        x = torch.empty(1000)
        view = x[:10]
        assert live.now == 4096
        del x
        assert live.now == 4096
        view.add_(1)
        assert live.now == 4096
        del view
    assert (live.now, live.peak) == (0, 4096)


def test_counts_that_depend_on_values_are_the_largest() -> None:
    with without_values():
        x, mask = torch.empty(3, 4), torch.empty(3, 4, dtype=torch.bool)
        assert mask.nonzero().shape == (12, 2) and x[mask].shape == (12,)
        assert x.unique().shape == (12,) and torch.masked_select(x, mask).shape == (12,)
        assert x.sum().item() == 1.0 and bool(mask.any()) and mask.cpu().numpy().all()


@pytest.mark.parametrize(
    ("one", "every", "gigabytes", "images"),
    [(16e9, 50e9, 80, 8), (16e9, 50e9, 24, 2), (9.5e9, 43e9, 24, 3), (22e9, 50e9, 24, 0), (1e9, 1e9, 24, 8)],
)
def test_images_that_fit_a_gpu(one: float, every: float, gigabytes: int, images: int) -> None:
    """A tenth of it is left to others."""
    assert fitting_images(int(one), int(every), 8, gigabytes) == images
