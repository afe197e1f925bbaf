"""Philox4x32-10: the published known answers, purity, and the form of the seed."""

from __future__ import annotations

import pytest
import torch

from sskd_fast import rng

CPU = torch.device("cpu")

# Known answers of the Random123 distribution: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    words = rng.philox4x32(tuple(torch.tensor([c]) for c in counter), tuple(torch.tensor([k]) for k in key))
    assert tuple(int(word) for word in words) == expected


def test_philox_leaves_its_counter_unchanged_and_broadcasts():
    row, column = torch.arange(3)[:, None], torch.arange(5)
    words = rng.random_words(rng.seed_key(7, CPU), row, column, rng.STREAM_RACE)
    assert [tuple(word.shape) for word in words] == [(3, 5)] * 4
    assert torch.equal(row, torch.arange(3)[:, None]) and torch.equal(column, torch.arange(5))
    one = rng.random_words(rng.seed_key(7, CPU), torch.tensor([2]), torch.tensor([4]), rng.STREAM_RACE)
    assert [int(word[2, 4]) for word in words] == [int(word) for word in one]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 2**40 + 3])
def test_an_int_and_a_tensor_seed_give_the_same_key(seed):
    assert [int(k) for k in rng.seed_key(seed, CPU)] == [int(k) for k in rng.seed_key(torch.tensor([seed]), CPU)]


def test_seed_is_taken_modulo_two_to_the_64():
    assert [int(k) for k in rng.seed_key(2**64 + 5, CPU)] == [5, 0]


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (1.5, TypeError, "seed: expected an int"),
        (True, TypeError, "found bool"),
        (torch.tensor([1.0]), TypeError, "must be int64, found torch.float32"),
        (torch.tensor([1, 2]), ValueError, r"one element, found shape \(2,\)"),
    ],
)
def test_a_wrong_seed_is_named(seed, error, message):
    with pytest.raises(error, match=message):
        rng.seed_key(seed, CPU)


def test_streams_rows_and_seeds_differ_and_words_are_uniform():
    key = rng.seed_key(11, CPU)
    row, column = torch.arange(64)[:, None], torch.arange(64)
    draws = [rng.random_words(key, row, column, stream)[0] for stream in (0, 1, 2, 3)]
    draws.append(rng.random_words(rng.seed_key(12, CPU), row, column, 0)[0])
    stacked = torch.stack(draws).flatten()
    assert len(stacked.unique()) > len(stacked) - 8
    uniform = rng.unit_interval(stacked)
    assert float(uniform.min()) > 0 and float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / len(stacked)) ** 0.5)


def test_unit_interval_never_reaches_its_ends():
    ends = rng.unit_interval(torch.tensor([0, rng.MASK]))
    assert ends.tolist() == [2.0**-33, 1 - 2.0**-33]
