"""The path from a public operator to its kernel on a GPU never waits for the device, and makes few calls.

Checked without a GPU: by the source of the launch path, and by what the launchers of Triton's kernels do while these
are compiled for a GPU that is not there. test_cuda_negative_sampling.py counts the calls of the CUDA operator. On a
GPU, tests/gpu_step.py runs a step while PyTorch refuses to wait.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sskd_fast import ops
from sskd_fast.ops import _arguments
from sskd_fast.ops._library import implementation
from sskd_fast.ops.negative_sampling import SCOPES

ROOT = Path(__file__).resolve().parent.parent
KERNELS = sorted((ROOT / "kernels").glob("*.py"))

# What makes the host wait for the device, or gives a tensor whose shape depends on values.
WAITS = re.compile(
    r"\.item\(|\.cpu\(|\.tolist\(|\.numpy\(|nonzero|\.unique|torch\.unique|bincount|masked_select|argwhere|synchronize"
    r"|\.to\(\s*[\"']cpu|\b(?:bool|float|int)\((?!\*)[a-z_]+\.(?:max|min|sum|any|all)\(|torch\.tensor\("
    r"|repeat_interleave\((?!.*output_size)"
)
# The same in C++.
WAITS_CPP = re.compile(
    r"\.item\b|\.cpu\(|kCPU|nonzero|unique|bincount|masked_select|at::tensor\(|Synchronize|cudaMemcpy"
)


def launch_path() -> list[tuple[str, str]]:
    """(name, text) of all that runs between a public operator and a kernel on a GPU."""
    texts = [(f"kernels/{path.name}", path.read_text(encoding="utf-8")) for path in KERNELS]
    for path in sorted((ROOT / "sskd_fast/ops").glob("*.py")):
        if path.stem != "_arguments":  # looks at values, on the CPU only
            texts.append((f"ops/{path.name}", path.read_text(encoding="utf-8")))
    makers = _arguments.check_seed, _arguments.check_temperature, _arguments.check_groups, _arguments.check_weight
    texts += [(f"ops/_arguments.py: {maker.__name__}", inspect.getsource(maker)) for maker in makers]
    return texts


def waits(texts: list[tuple[str, str]], pattern: re.Pattern[str]) -> list[str]:
    lines = [(name, line.strip()) for name, text in texts for line in text.splitlines()]
    return [f"{name}: {x}" for name, x in lines if pattern.search(x) and not x.startswith(("#", '"', "//"))]


def test_nothing_on_the_way_to_a_kernel_waits_for_the_device():
    assert waits(launch_path(), WAITS) == []
    files = [path for path in sorted((ROOT / "csrc/cuda").iterdir()) if path.suffix in (".h", ".cpp", ".cu")]
    assert len(files) > 20
    assert waits([(path.name, path.read_text(encoding="utf-8")) for path in files], WAITS_CPP) == []


# Calls that wait for a CUDA device to learn a value or a shape, and sums by index, whose order changes from run to run.
# index_put with accumulate keeps the order, but waits twice and walks the repeats of an index one by one.
REFUSED = re.compile(
    r"aten::(_local_scalar_dense|item|nonzero\w*|masked_select|unique\w*|_unique2?|bincount|histc|allclose|equal"
    r"|index_add_?|index_reduce_?|scatter_add_?|scatter_reduce_?|put_|embedding_dense_backward)$"
)


class Calls(TorchDispatchMode):
    """The ATen calls made under it that make a new tensor or write one, by name, and the arguments of the raw operator
    of this project, which has a kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.raw: tuple[Any, ...] = ()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().partition(".")[0]
        if func.namespace == "sskd_fast":
            self.raw = args
        elif func.namespace == "aten" and not func.is_view:
            accumulates = name.startswith("aten::index_put") and len(args) > 3 and args[3]
            self.names.append(f"{name}, accumulating" if accumulates else name)
        return func(*args, **(kwargs or {}))

    def launches(self) -> list[str]:
        """The calls that start a kernel: all but those for memory."""
        return [name for name in self.names if not re.match(r"aten::(new_)?empty", name)]

    def refused(self) -> list[str]:
        return [name for name in self.names if REFUSED.match(name) or name.endswith("accumulating")]


TABLES = ["sums", "centres", "distances", "slots", "layout"]
SAMPLER = [f"negative_sampling_{name}_kernel" for name in (*TABLES, "bytes", "trials", "race")]
# Of PyTorch: two numbers for scope "all", the seed, padded rows, sums of slots; the mean weight; by group a sort and
# two searches, or three.
MOST_LAUNCHES = {("all", False): 4, ("all", True): 6, ("other", False): 6, ("other", True): 8, ("same", False): 7}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
def test_eight_kernels_of_ours_and_few_calls_sample_with_triton(scope, weighted):
    """The launches of a whole operator, of PyTorch and of ours, compiled for a GPU that is not there."""
    pytest.importorskip("triton", reason="Triton is not installed: its kernels are not compiled")
    from benchmarks.kernel_binaries import compiling_for

    scores, group = torch.eye(9)[torch.arange(40) % 9], torch.arange(40) % 3
    settings = {"anchor_group": group, "candidate_group": group, "candidate_weight": torch.ones(40)}
    with compiling_for("sm_90") as driver, Calls() as calls:
        if not weighted:
            del settings["candidate_weight"]
        ops.sample_negatives(scores, scores, 8, seed=3, scope=scope, **settings, backend="reference")
        implementation("triton", "negative_sampling")(*calls.raw[:-1])
    assert driver.launched == SAMPLER
    assert calls.refused() == []
    assert len(calls.launches()) == MOST_LAUNCHES.get((scope, weighted), 9), calls.launches()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x, i: x.index_put((i,), x, accumulate=True), "aten::index_put, accumulating"),
        (lambda x, i: x.index_put_((i,), x + 1, accumulate=True), "aten::index_put_, accumulating"),
        (lambda x, i: x.index_add(0, i, x), "aten::index_add"),
        (lambda x, i: x.scatter_add(0, i, x), "aten::scatter_add"),
        (lambda x, i: float(x.sum()), "aten::_local_scalar_dense"),
        (lambda x, i: i.bincount(), "aten::bincount"),
    ],
)
def test_calls_that_wait_are_refused(call: Callable[[Tensor, Tensor], Any], name: str):
    with Calls() as calls:
        call(torch.ones(4), torch.arange(4))
    assert name in calls.refused()


@pytest.mark.parametrize(
    "line",
    ["x.item()", "a = y.nonzero()", "torch.cuda.synchronize()", "float(x.max())", "z.cpu()", "torch.tensor([seed])"],
)
def test_waiting_calls_are_found(line):
    assert waits([("file", line)], WAITS) == [f"file: {line}"]
    assert waits([("file", "const auto x = y.item<float>();")], WAITS_CPP)
