"""Sums over the joint batch: counted part by part, known afterwards, and each under its own name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sskd_fast.losses.gradient_share import GradientShare
from sskd_fast.losses.joint_batch import WHOLE, JointBatch


def test_sums_of_parts_are_counted_and_then_known_to_every_part() -> None:
    counted: dict[str, Tensor] = {}
    counting = JointBatch(counted=counted)
    assert counting.total("a", torch.tensor(2.0)).item() == 2 and counting.total("a", torch.tensor(5.0)).item() == 5
    inner = counting.within("sup ").within("layer 0 ")
    inner.total("a", torch.tensor(3.0))
    assert {name: value.item() for name, value in counted.items()} == {"a": 7, "sup layer 0 a": 3}
    known = JointBatch(known=counted)
    assert known.total("a", torch.tensor(2.0)).item() == 7
    assert known.share("a", torch.tensor(2.0)).item() == pytest.approx(2 / 7)
    assert known.within("sup ").within("layer 0 ").total("a", torch.tensor(1.0)).item() == 3
    assert WHOLE.total("a", torch.tensor(4.0)).item() == 4


def test_a_part_without_anything_has_no_share() -> None:
    assert WHOLE.share("a", torch.tensor(0.0)).item() == 0
    assert WHOLE.share("a", torch.tensor(0.25)).item() == 1


def gradients(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """A parameter, a rest with gradient (3, 4) times the scale, and a term with (2, 0) times it."""
    parameter = torch.zeros(2, requires_grad=True)
    return parameter, (parameter * torch.tensor([3.0, 4.0])).sum() * scale, 2 * parameter[0] * scale


def test_a_gradient_share_is_measured_over_all_parts_of_a_step() -> None:
    """Two micro batches: the norms are those of the summed gradients, and the step counts once."""
    share, both = GradientShare(0.2), JointBatch(parts=2, last=False)
    parameter, rest, term = gradients(0.25)
    output = share(rest, term, [parameter], both)
    assert share.weight == 0 and int(share.steps) == 0 and math.isnan(float(output["pxl_gradient_share"]))
    output = share(3 * rest, 3 * term, [parameter], JointBatch(parts=2))
    assert float(share.rest_norm) == pytest.approx(5) and float(share.term_norm) == pytest.approx(2)
    assert int(share.steps) == 1 and float(output["pxl_gradient_share"]) == pytest.approx(0.2)
    parameter, rest, term = gradients(0.01)
    assert float(GradientShare(0.3)(rest, term, [parameter])["pxl_gradient_share"]) == pytest.approx(0.3)


def test_a_step_measured_in_a_pass_of_its_own_reports_the_share_once() -> None:
    share = GradientShare(0.2)
    parameter, rest, term = gradients(1.0)
    share(rest, term, [parameter], JointBatch(learns=False))
    assert share.weight == pytest.approx(0.5) and share.due
    learning = JointBatch(measures=False)
    assert float(share(100 * rest, term, [parameter], learning)["pxl_gradient_share"]) == pytest.approx(0.2)
    assert share.weight == pytest.approx(0.5) and int(share.steps) == 1 and not share.due
    assert math.isnan(float(share(rest, term, [parameter], learning)["pxl_gradient_share"]))
