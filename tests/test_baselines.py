"""The baselines of the benchmarks: the dense one computes the right result, on any device."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import dense
from benchmarks.cases import NEGATIVES, TEMPERATURE, Case
from benchmarks.contenders import step_of

SMALL = Case(2, 11, 13)


def test_the_dense_baseline_draws_dissimilar_candidates_without_replacement() -> None:
    """With exactly as many candidates that differ as are drawn, each of them is drawn once."""
    rows = torch.eye(2)
    own, scores = rows[:1], torch.cat([rows[1:].expand(NEGATIVES, 2), rows[:1].expand(100, 2)])
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(NEGATIVES + 102, 8, generator=generator))
    anchor, positive, candidates = unit[:1], unit[1:2], unit[2:]
    logits = torch.cat([anchor @ positive.t(), anchor @ candidates[:NEGATIVES].t()], 1)[0] / TEMPERATURE
    found = dense.image_loss(own, scores, anchor, positive, candidates)
    torch.testing.assert_close(found, logits.logsumexp(0) - logits[0])


def test_the_dense_baseline_keeps_to_the_device_of_its_inputs() -> None:
    """Fake tensors refuse what mixes devices."""
    with FakeTensorMode(), torch.device("cuda"):
        scores, rows = torch.rand(400, 9), torch.rand(400, 8)
        loss = dense.image_loss(scores[:50], scores, rows[:50], rows[:50], rows)
    assert loss.device.type == "cuda" and loss.shape == ()


def test_inputs_are_made_on_the_cpu_and_moved() -> None:
    masks, classes, weak, strong = SMALL.inputs(torch.bfloat16, "meta")
    assert {x.device.type for x in (masks, classes, weak, strong)} == {"meta"}
    assert {x.dtype for x in (masks, classes, weak, strong)} == {torch.bfloat16}
    assert weak.is_leaf and weak.requires_grad and not strong.requires_grad
    here, again = SMALL.inputs(torch.float32), SMALL.inputs(torch.float32, "cpu")
    assert all(torch.equal(x, y) for x, y in zip(here, again, strict=True))


@pytest.mark.parametrize("contender", ["reference", "dense"])
def test_a_step_leaves_its_inputs_as_they_were(contender: str) -> None:
    step = step_of(contender, SMALL, torch.float32)
    assert not isinstance(step, str)
    step()
    step()
