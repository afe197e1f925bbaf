"""Choice of the backend "auto" for each operator on a GPU: by times, by counts, and by availability."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sskd_fast import _backend, _backend_costs, info

GPU = torch.device("cuda", 0)
IN_TRITON_ALONE = "score_fusion", "expected_pixel_contrast"
Provide = Callable[..., None]


@pytest.fixture
def provide(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provide]:
    """provide(triton=reason, cuda=reason) registers both GPU backends; None for one that runs."""
    monkeypatch.delenv("SSKD_FAST_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    before = dict(_backend._reasons)

    def register(**reasons: str | None) -> None:
        for name, reason in reasons.items():
            _backend.provide(name, lambda reason=reason: reason)

    yield register
    for name, reason in before.items():
        _backend.provide(name, reason)


def costs_file(folder: Path, **content: Any) -> Path:
    file = folder / "costs.json"
    file.write_text(json.dumps({"measured": {}, "counted": {"source": "by hand"}} | content))
    return file


def of_counts(operator: str) -> list[str]:
    """The backends of an operator by the file of the package, read without our own code."""
    content = json.loads(Path(_backend_costs.__file__).with_name("backend_costs.json").read_text())
    amounts = content["counted"].get(operator, {"triton": 0, "cuda": 1})
    return ["cuda", "triton"] if 1.25 * amounts["cuda"] <= amounts["triton"] else ["triton", "cuda"]


def test_counts_order_backends_without_measurements(tmp_path: Path) -> None:
    counted = {"source": "by hand", "negative_sampling": {"triton": 48000, "cuda": 8700}}
    file = costs_file(tmp_path, counted=counted)
    order, why = _backend.gpu_order("negative_sampling", "9.0", file)
    assert order == ["cuda", "triton"]
    assert why == "counted: cuda 8700, triton 48000 warp instructions an anchor or pixel"
    assert _backend.gpu_order("negative_sampling", None, file)[0] == ["cuda", "triton"]


def test_times_of_the_very_kind_of_gpu_come_before_counts(tmp_path: Path) -> None:
    counted = {"source": "by hand", "pixel_contrast": {"triton": 2, "cuda": 1}}
    measured = {"9.0": {"source": "H100, 1 May", "pixel_contrast": {"triton": 0.25, "cuda": 0.5}}}
    file = costs_file(tmp_path, counted=counted, measured=measured)
    order, why = _backend.gpu_order("pixel_contrast", "9.0", file)
    assert order == ["triton", "cuda"] and why == "measured (H100, 1 May): triton 0.25, cuda 0.5 ms"
    assert _backend.gpu_order("pixel_contrast", "8.0", file)[0] == ["cuda", "triton"]


def test_counts_that_are_close_leave_triton_first(tmp_path: Path) -> None:
    counted = {"source": "by hand", "pixel_contrast": {"triton": 120, "cuda": 100}}
    order, why = _backend.gpu_order("pixel_contrast", None, costs_file(tmp_path, counted=counted))
    assert order == ["triton", "cuda"] and why.endswith("; too close to tell, and Triton needs no compiler")
    (tmp_path / "other").mkdir()
    measured = {"8.0": {"source": "A100", "pixel_contrast": {"triton": 120, "cuda": 100}}}
    other = costs_file(tmp_path / "other", measured=measured)
    assert _backend.gpu_order("pixel_contrast", "8.0", other)[0] == ["cuda", "triton"]


def test_an_operator_of_which_nothing_is_known_takes_triton_first(tmp_path: Path) -> None:
    order, why = _backend.gpu_order("negative_sampling", "9.0", costs_file(tmp_path))
    assert order == ["triton", "cuda"] and "Triton needs no compiler" in why


@pytest.mark.parametrize("operator", [name for name in _backend.OPERATORS if name not in IN_TRITON_ALONE])
def test_auto_takes_the_first_that_runs(provide: Provide, operator: str, caplog: pytest.LogCaptureFixture) -> None:
    first, second = of_counts(operator)
    if torch.cuda.is_available() and str(_backend.capability_of(GPU)) in _backend_costs.read()["measured"]:
        first, second = _backend.gpu_order(operator, _backend.capability_of(GPU))[0]
    provide(triton=None, cuda=None)
    assert _backend.resolve("auto", GPU, operator) == first
    provide(**{first: "no compiler here"})
    with caplog.at_level(logging.INFO, logger="sskd_fast._backend"):
        assert [_backend.resolve("auto", GPU, operator) for _ in range(3)] == [second] * 3
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{operator} on cuda:0 tensors uses the '{second}' backend" in message
    assert f"{first} does not run: no compiler here" in message
    assert _backend.resolve(second, GPU, operator) == second
    with pytest.raises(RuntimeError, match=f"backend='{first}' cannot run: no compiler here; choose 'auto'"):
        _backend.resolve(first, GPU, operator)


@pytest.mark.parametrize("operator", IN_TRITON_ALONE)
@pytest.mark.parametrize("backend", ["auto", "triton", "cuda"])
def test_two_operators_have_one_backend_on_a_gpu(provide: Provide, backend: str, operator: str) -> None:
    """With "cuda" too it runs in Triton, or in plain PyTorch with a warning if Triton does not run."""
    assert _backend.gpu_order(operator, "9.0") == (["triton"], "the only one that has it")
    provide(triton=None, cuda=None)
    assert _backend.resolve(backend, GPU, operator) == "triton"
    provide(triton="no triton here")
    if backend == "triton":
        with pytest.raises(RuntimeError, match="backend='triton' cannot run: no triton here"):
            _backend.resolve(backend, GPU, operator)
    else:
        with pytest.warns(RuntimeWarning, match=rf"triton: no triton here. {operator} runs in plain PyTorch"):
            assert _backend.resolve(backend, GPU, operator) == "reference"
    provide(cuda="no cuda here")
    with pytest.raises(RuntimeError, match="backend='cuda' cannot run: no cuda here"):
        _backend.resolve("cuda", GPU, operator)


def test_the_reference_is_warned_of_once_with_the_cause_of_every_faster_backend(provide: Provide) -> None:
    provide(triton="no triton here", cuda="no cuda here")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert {_backend.resolve("auto", GPU, operator) for operator in _backend.OPERATORS} == {"reference"}
    (warning,) = caught
    wanted = "triton: no triton here. cuda: no cuda here. The operators run in plain PyTorch instead"
    assert warning.category is RuntimeWarning and str(warning.message).startswith(wanted)


def test_an_unknown_operator_is_named(provide: Provide) -> None:
    with pytest.raises(ValueError, match="operator='fuse' is unknown; expected one of score_fusion, negative_sampl"):
        _backend.resolve("auto", GPU, "fuse")


def test_info_gives_the_backend_of_every_operator_and_the_reason(provide: Provide) -> None:
    provide(triton=None, cuda=None)
    found = dict(info.choices([GPU]))
    assert list(found) == [f"auto, {operator} on cuda:0" for operator in _backend.OPERATORS]
    for operator in _backend.OPERATORS:
        order, why = _backend.gpu_order(operator, _backend.capability_of(GPU))
        assert found[f"auto, {operator} on cuda:0"] == f"{order[0]} ({why})"
    provide(cuda="no nvcc")
    assert {text.partition(" (")[0] for text in dict(info.choices([GPU])).values()} == {"triton"}
    assert dict(info.choices([GPU]))["auto, pixel_contrast on cuda:0"] == "triton (the only one that runs)"
    provide(triton="no Triton", cuda=None)
    for operator in _backend.OPERATORS:
        chosen = dict(info.choices([GPU]))[f"auto, {operator} on cuda:0"]
        assert chosen == (
            "reference (no faster backend runs)" if operator in IN_TRITON_ALONE else "cuda (the only one that runs)"
        )
    provide(cuda="no nvcc")
    provide(triton="no Triton")
    assert set(dict(info.choices([GPU])).values()) == {"reference (no faster backend runs)"}
    assert info.choices([]) == []


def test_the_file_of_the_package_is_as_its_readers_expect() -> None:
    content = _backend_costs.read()
    assert _backend_costs.problem_of(content) is None
    assert content["counted"]["source"]


TIMES = {"triton": 1.0, "cuda": 2.0}
NO_TRITON, NO_TIME = {"cuda": 1}, {"triton": 1.0, "cuda": 0}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", r"cannot be read \(.*\)"),
        ("[]", r"found \[\], expected an object of 'measured' and 'counted'"),
        ({"measured": []}, r"measured: found \[\], expected an object by compute capability"),
        ({"counted": {}}, r"counted: found \{\}, expected an object with a text 'source'"),
        ({"measured": {"9.0": {"pixel_contrast": TIMES}}}, r"measured\.9\.0: found .*, expected an object with a text"),
        ({"counted": {"source": "x", "fuse": TIMES}}, r"counted\.fuse: unknown, expected one of score_fusion, neg"),
        ({"counted": {"source": "x", "pixel_contrast": NO_TRITON}}, r'counted\.pixel_contrast: found \{"cuda": 1\}, '),
        ({"counted": {"source": "x", "pixel_contrast": NO_TIME}}, ".*, expected a positive number for each of triton"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: Any, problem: str) -> None:
    file = costs_file(tmp_path, **content) if isinstance(content, dict) else tmp_path / "costs.json"
    if isinstance(content, str):
        file.write_text(content)
    with pytest.raises(ValueError, match=rf"^{file}: {problem}.*; reinstall the package, or recount the instructions"):
        _backend.gpu_order("negative_sampling", "9.0", file)
