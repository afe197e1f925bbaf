"""Checks of the operators' arguments: the ends of ranges, types, and what backends are handed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sskd_fast.ops import _arguments as arguments
from sskd_fast.ops._embeddings import compute_dtype, distinct, reduced, stored
from sskd_fast.ops._gradients import wanted_gradients

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("found", "expected"),
    [(5, 5), (-1, -1), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 + 5, 5), (-(2**63) - 1, 2**63 - 1)],
)
def test_a_seed_is_taken_modulo_two_to_the_64(found: int, expected: int) -> None:
    key = arguments.check_seed(found, CPU)
    assert key.tolist() == [expected] and key.dtype == torch.int64
    assert arguments.check_seed(torch.tensor([[expected]]), CPU).tolist() == [expected]


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (True, TypeError, "seed: expected an int or a one-element int64 tensor, found bool"),
        (1.0, TypeError, "seed: expected an int or a one-element int64 tensor, found float"),
        (torch.tensor([1, 2]), ValueError, r"seed: a tensor must have one element, found shape \(2,\)"),
    ],
)
def test_wrong_seeds_are_named(seed: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        arguments.check_seed(seed, CPU)


def test_shapes_match_in_number_and_size_and_letters_stand_for_any() -> None:
    tensor = torch.zeros(2, 3)
    assert arguments.check_tensor("x", tensor, ("A", 3)) is tensor
    for shape in ((2,), ("A", 3, 1), ("A", 4), (3, "D")):
        with pytest.raises(ValueError, match=r"x: found shape \(2, 3\), expected \("):
            arguments.check_tensor("x", tensor, shape)


def test_indices_lie_between_minus_one_and_the_last() -> None:
    arguments.check_index_values("x", torch.tensor([[-1, 4]]), 5)
    arguments.check_index_values("x", torch.zeros(0, 3, dtype=torch.int32), 0)
    for value in (-2, 5):
        with pytest.raises(ValueError, match=rf"x: found values in \[{min(value, 0)}, {max(value, 0)}\], expected -1"):
            arguments.check_index_values("x", torch.tensor([[0, value]]), 5)
    for dtype in (torch.int16, torch.uint8, torch.bool):
        with pytest.raises(TypeError, match="x: expected int32 or int64, found"):
            arguments.check_indices("x", torch.zeros(2, dtype=dtype), ("A",))


def test_rows_may_be_off_by_a_hundredth_and_entries_by_a_millionth() -> None:
    row = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    below = torch.tensor([[0.0, 0.0, 1e-6]], dtype=torch.float64)
    for right in (row * 1.0099, row * 0.9901, row - 0.9 * below, row[:0]):
        arguments.check_unit_rows("y", right)
    for wrong, norm in ((row * 1.0101, "1.01"), (row * 0.9899, "0.9899")):
        with pytest.raises(ValueError, match=f"y: row 1 has norm {norm}, expected rows of unit norm"):
            arguments.check_unit_rows("y", torch.cat([row, wrong, wrong]))
    with pytest.raises(ValueError, match=r"y: row 1 has entries down to -1\.1e-06, expected non-negative rows"):
        arguments.check_unit_rows("y", torch.cat([row, row - 1.1 * below, row - below]))


def test_tensors_share_a_device_and_embeddings_a_type_too() -> None:
    here, away = torch.ones(2), torch.ones(2, device="meta")
    arguments.check_device("a", here, b=None, c=here.double())
    arguments.check_same("a", here, b=here.clone())
    for check in (arguments.check_device, arguments.check_same):
        with pytest.raises(ValueError, match="c: on meta, expected cpu as a"):
            check("a", here, b=here, c=away)
    with pytest.raises(ValueError, match=r"c: dtype torch\.float64, expected torch\.float32 as a"):
        arguments.check_same("a", here, b=here, c=here.double())


def test_weights_and_groups() -> None:
    arguments.check_weight_values(torch.tensor([0.0, 1e30]))
    for weight in (-1e-9, math.inf, math.nan):
        with pytest.raises(ValueError, match="candidate_weight: found negative or non-finite values"):
            arguments.check_weight_values(torch.tensor([1.0, weight]))
    assert arguments.check_groups("g", torch.zeros(2, dtype=torch.int16), 2).dtype == torch.int64
    for dtype in (torch.bool, torch.float32, torch.complex64):
        with pytest.raises(TypeError, match="g: expected an integer tensor of group ids, found"):
            arguments.check_groups("g", torch.zeros(2, dtype=dtype), 2)


@pytest.mark.parametrize("temperature", [0.25, 2, torch.tensor(0.25), torch.tensor([[0.25]])])
def test_a_temperature_becomes_one_number_in_float64(temperature: Any) -> None:
    found = arguments.check_temperature(temperature, CPU)
    assert found.dtype == torch.float64 and found.tolist() == [float(temperature)]


@pytest.mark.parametrize(
    ("temperature", "error", "message"),
    [
        (True, TypeError, "temperature: expected a number or a tensor, found bool"),
        ("1", TypeError, "temperature: expected a number or a tensor, found str"),
        (math.inf, ValueError, "temperature: expected a positive finite number, found inf"),
        (0, ValueError, "temperature: expected a positive finite number, found 0"),
        (torch.tensor(1), TypeError, "temperature: a tensor must be floating point, found torch.int64"),
    ],
)
def test_wrong_temperatures_are_named(temperature: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        arguments.check_temperature(temperature, CPU)


def test_counts_and_margins() -> None:
    assert arguments.check_count("n", 1) == 1
    with pytest.raises(TypeError, match="n: expected an int, found bool"):
        arguments.check_count("n", True)
    assert arguments.check_margin(None) is None
    assert [arguments.check_margin(x) for x in (0, -1.5)] == [0.0, -1.5]
    for margin in (True, "0"):
        with pytest.raises(TypeError, match="margin: expected a number or None, found"):
            arguments.check_margin(margin)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton", "cuda"])
def test_backends_get_embeddings_as_they_read_them(backend: str) -> None:
    for given in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        wide = torch.float64 if given == torch.float64 else torch.float32
        assert compute_dtype(torch.ones(1, dtype=given)) == wide
        found = stored(backend, *torch.ones(2, 3, 4, dtype=given))
        assert [x.dtype for x in found] == [wide if backend == "reference" else given] * 2


def test_repeated_tensors_become_views() -> None:
    a, b = torch.ones(2), torch.ones(2)
    found = distinct(a, None, b, a, None)
    assert found[0] is a and found[2] is b and found[1] is found[4] is None
    assert found[3] is not None and found[3] is not a and found[3].data_ptr() == a.data_ptr()


def test_gradients_are_returned_if_wanted() -> None:
    ctx = SimpleNamespace(needs_input_grad=(True, False, True, False))
    a, b = torch.ones(1), torch.ones(1)
    found = wanted_gradients(ctx, a, b)
    assert len(found) == 4 and found[0] is a and found[1] is found[2] is found[3] is None
    ctx.needs_input_grad = (False, True)
    assert wanted_gradients(ctx, a, b)[1] is b


def test_losses_are_reduced() -> None:
    loss = torch.tensor([1.0, 2.0, 6.0])
    assert reduced(loss, "none") is loss
    assert (reduced(loss, "sum").item(), reduced(loss, "mean").item(), reduced(loss[:0], "mean").item()) == (9, 3, 0)
