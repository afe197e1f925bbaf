"""A step with every operator, forward and backward: held in a CUDA graph, without a wait, the same bits every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from on_device import DEVICE
from torch import Tensor

from sskd_fast import ops
from sskd_fast.ops.negative_sampling import SCOPES

pytestmark = pytest.mark.usefixtures("on_the_device")
needs_a_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="torch sees no GPU: nothing is captured, and nothing waits")


@dataclass(frozen=True)
class Size:
    """Two images of height x width pixels, each pixel an anchor and a candidate; embeddings of `depth` numbers."""

    height: int
    width: int
    queries: int
    depth: int
    draws: int

    @property
    def rows(self) -> int:
        return 2 * self.height * self.width

    def inputs(self, seed: int) -> list[Tensor]:
        """Mask and class logits, embeddings of both views, the group of every pixel, a seed; equal for equal seeds."""
        torch.manual_seed(seed)
        sizes = (2, self.queries, self.height, self.width), (2, self.queries, 4), *[(self.rows, self.depth)] * 2
        leaves = [torch.randn(size).requires_grad_() for size in sizes]
        group = torch.randperm(self.rows) % 2
        return [*leaves, group, torch.full((1,), seed)]


# Of "trials" each anchor has more than twice as many candidates as it draws, of "race" at most twice as many. The
# interpreter takes a second for a step of the small ones.
SMALL = Size(2, 3, queries=5, depth=8, draws=2)
SIZES = {
    "race": Size(2, 3, queries=5, depth=8, draws=6),
    "trials": Size(64, 64, queries=100, depth=128, draws=200) if DEVICE == "cuda" else SMALL,
}


def operators(
    masks: Tensor, classes: Tensor, z: Tensor, p: Tensor, group: Tensor, seed: Tensor | int, scope: str, draws: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every operator: scores, drawn negatives, the hardest half of them, loss."""
    scores = ops.fuse_scores(masks, classes, cues="object")
    rows = scores.flatten(0, 1)
    settings = {"anchor_group": group, "candidate_group": group, "scope": scope}
    drawn = ops.sample_negatives(rows, rows, draws, seed=seed, **settings)
    hard = ops.hardest_negatives(z, z, drawn, draws // 2)
    sampled = ops.pixel_contrast(z, p, z, hard, 0.2)
    expected = ops.expected_pixel_contrast(z, p, z, rows, rows, draws, 0.2, **settings)
    return scores, drawn, hard, sampled + expected + scores[..., 0].sum()


def everything(
    masks: Tensor, classes: Tensor, z: Tensor, p: Tensor, group: Tensor, seed: Tensor | int, scope: str, draws: int
) -> Tensor:
    """The loss of a step with every operator."""
    return operators(masks, classes, z, p, group, seed, scope, draws)[-1]


def step(inputs: list[Tensor], seed: int | None, scope: str, draws: int) -> list[Tensor]:
    """Outputs of the operators, and gradients of the loss with respect to logits and embeddings.

    seed: if a number, replaces the seed tensor.
    """
    arguments = inputs if seed is None else [*inputs[:-1], seed]
    results = operators(*arguments, scope, draws)
    return [*(x.detach() for x in results), *torch.autograd.grad(results[-1], inputs[:4])]


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert [torch.equal(x, y) for x, y in zip(found, wanted, strict=True)] == [True] * len(wanted)


def captured(run: Callable[[], list[Tensor]]) -> Callable[[], list[Tensor]]:
    """`run` as a CUDA graph: a function that replays it and returns its results, in the same memory every time."""
    # On a stream of its own first, as PyTorch asks, so that what happens at a first call is not captured.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> list[Tensor]:
        graph.replay()
        return results

    return replay


def check_new_inputs(
    record: Callable[[Callable[[], list[Tensor]]], Callable[[], list[Tensor]]], size: Size, seed: int | None, scope: str
) -> None:
    """A recorded step follows new inputs that are copied into its memory."""
    static = size.inputs(1)
    replay = record(lambda: step(static, seed, scope, size.draws))
    before = [x.clone() for x in replay()]
    assert_equal(before, step(size.inputs(1), seed, scope, size.draws))
    for number in (2, 3) if DEVICE == "cuda" else (2,):
        new = size.inputs(number)
        with torch.no_grad():
            for old, value in zip(static, new, strict=True):
                old.copy_(value)
        found = replay()
        assert_equal(found, step(new, seed, scope, size.draws))
        changed = [not torch.equal(x, y) for x, y in zip(found, before, strict=True)]
        assert changed == [True] * len(changed)


@needs_a_gpu
@pytest.mark.parametrize("seed", [None, 7], ids=["seed in a tensor", "seed as a number"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("path", SIZES)
def test_a_step_captured_in_a_cuda_graph_follows_new_inputs(monkeypatch, backend, path, scope, seed):
    monkeypatch.setenv("SSKD_FAST_BACKEND", backend)
    check_new_inputs(captured, SIZES[path], seed, scope)


@pytest.mark.parametrize(("scope", "seed"), [("all", None), ("other", 7), ("same", None)])
def test_a_step_follows_new_inputs_in_the_memory_of_others(monkeypatch, backend, scope, seed):
    """Without a graph: what the test above does with one."""
    monkeypatch.setenv("SSKD_FAST_BACKEND", backend)
    check_new_inputs(lambda run: run, SMALL, seed, scope)


@needs_a_gpu
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("path", SIZES)
def test_a_step_does_not_wait_for_the_gpu(monkeypatch, backend, path, scope):
    monkeypatch.setenv("SSKD_FAST_BACKEND", backend)
    inputs, draws = SIZES[path].inputs(1), SIZES[path].draws
    wanted = step(inputs, 7, scope, draws)  # kernels are compiled and loaded at the first call, which may wait
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = step(inputs, 7, scope, draws)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert_equal(found, wanted)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("path", SIZES)
def test_every_step_gives_the_same_bits(monkeypatch, backend, path, scope):
    """On a GPU over many blocks, which run in another order every time."""
    monkeypatch.setenv("SSKD_FAST_BACKEND", backend)
    size = SIZES[path]
    inputs = size.inputs(1)
    wanted = step(inputs, None, scope, size.draws)
    candidates = size.rows if scope == "all" else size.rows // 2
    assert (candidates > 2 * size.draws) == (path == "trials")
    for _ in range(3 if DEVICE == "cuda" else 1):
        assert_equal(step(inputs, None, scope, size.draws), wanted)
