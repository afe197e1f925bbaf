"""The Triton backend: its operators in the interpreter or on a GPU, how it is found, and what compilers see of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_step import everything
from on_device import in_a_process_of_its_own
from torch._subclasses.fake_tensor import FakeTensorMode

from sskd_fast import _backend, kernels, ops
from sskd_fast.ops.negative_sampling import SCOPES

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ["score_fusion", "pixel_contrast", "expected_form", "drawn or uniform or race"]


@pytest.mark.parametrize("group", [*GROUPS, f"not ({' or '.join(GROUPS)})"])
def test_the_operators_are_those_of_the_reference(group):
    in_a_process_of_its_own("tests/gpu_operators.py", "-k", group)


@pytest.mark.slow
def test_the_operators_are_those_of_the_reference_at_larger_sizes():
    in_a_process_of_its_own("tests/gpu_operators.py", "-m", "slow")


def test_without_a_gpu_the_reason_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    rows = torch.eye(4)
    with pytest.raises(RuntimeError, match="backend='triton' cannot run: it runs on cuda tensors"):
        ops.sample_negatives(rows, rows, 1, seed=0, backend="triton")
    reason = _backend.why_unavailable("triton", "cuda")
    assert reason is not None and re.search("sees no GPU|Triton cannot be imported", reason)


def test_without_triton_the_reason_is_named():
    script = """
import sys
sys.modules["triton"] = None
import sskd_fast.ops
from sskd_fast import _backend
print(_backend.why_unavailable("triton", "cuda"))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Triton cannot be imported" in done.stdout and "pip install triton" in done.stdout


@pytest.mark.parametrize("interpreted", [{}, {"TRITON_INTERPRET": "1"}], ids=["compiled", "interpreted"])
def test_a_triton_that_is_too_old_is_named(tmp_path, interpreted):
    """A package of that version stands on the path before the installed one."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text('__version__ = "3.5.1"\n')
    script = """
import sskd_fast.kernels
print(sskd_fast.kernels.why_unavailable())
"""
    environment = {**os.environ, **interpreted, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "Triton 3.5.1 is older than 3.6, the oldest that the kernels are compiled and tested with" in done.stdout
    assert "pip install -U triton" in done.stdout


@pytest.mark.parametrize("text", ["3.6.0", "3.6.0+git1a2b", "3.10.2", "4.0.0rc1"])
def test_versions_of_triton_from_the_oldest_on_are_supported(text):
    assert kernels.version_of(text) >= kernels.OLDEST_TRITON > kernels.version_of("3.5.1")


def test_importing_the_operators_loads_no_triton_and_starts_no_cuda():
    script = "import sys, torch, sskd_fast.ops; print('triton' in sys.modules, torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def step_inputs(device: str) -> list[torch.Tensor]:
    sizes = (2, 5, 4, 6), (2, 5, 3), (48, 8), (48, 8)
    leaves = [torch.randn(size, device=device, requires_grad=True) for size in sizes]
    return [*leaves, torch.arange(48, device=device) // 24, torch.ones(1, dtype=torch.int64, device=device)]


@pytest.mark.parametrize("scope", SCOPES)
def test_a_step_is_one_graph_on_fake_cuda_tensors(scope):
    graphs: list[torch.fx.GraphModule] = []

    def look(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = step_inputs("cuda")
        loss = torch.compile(everything, fullgraph=True, backend=look)(*inputs, scope, 8)
    assert loss.device.type == "cuda" and loss.shape == () and loss.requires_grad
    assert len(graphs) == 1


def test_the_backward_operators_know_shapes_on_fake_cuda_tensors():
    raw = torch.ops.sskd_fast
    with FakeTensorMode():
        masks, classes, z, p, group, seed = (x.detach() for x in step_inputs("cuda"))
        temperature = torch.ones(1, dtype=torch.float64, device="cuda")
        scores = raw.score_fusion(masks, classes, 3, 5, "object", "triton")
        grads = raw.score_fusion_backward(scores, masks, classes, 3, 5, "object", "triton")
        assert [g.shape for g in grads] == [masks.shape, classes.shape]
        rows = z.new_empty(48, 8)
        details = rows, rows, None, group, group, False
        drawn = raw.negative_sampling(rows, group, rows, None, group, False, 6, seed, "triton")
        assert drawn.shape == (48, 6) and drawn.dtype == torch.int32
        loss, *state = raw.pixel_contrast(z, p, z, drawn, temperature, None, True, True, "triton")
        grads = raw.pixel_contrast_backward(loss, z, p, z, drawn, *state, temperature, True, True, False, "triton")
        assert [g.shape for g in grads] == [z.shape, p.shape, (0, 8)]
        loss, *state = raw.expected_pixel_contrast(z, p, z, *details, 6, temperature, True, "triton")
        grads = raw.expected_pixel_contrast_backward(loss, z, p, z, *details, *state, temperature, True, True, "triton")
        assert [(g.shape, g.device.type) for g in grads] == [((48, 8), "cuda")] * 5


def tf32(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def float16(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """As `kernels/_parts.py` has it: a power of two brings the largest number to 2^13."""
    up = 2.0 ** (13 - largest.log2().floor())
    return (x * up).half().float() / up


@pytest.mark.parametrize("first", [tf32, float16])
@pytest.mark.parametrize("width", [16, 109, 128, 768])
def test_products_split_in_three_are_as_exact_as_float32(width, first):
    """Emulation on the CPU of tensor cores with float32 embeddings and scores: at most twice float32's error."""
    x, y = (
        torch.nn.functional.normalize(torch.randn(200, width, generator=torch.Generator().manual_seed(i)))
        for i in (1, 2)
    )
    large_x, large_y = first(x, x.abs().max()), first(y, y.abs().max())
    small_x, small_y = first(x - large_x, x.abs().max()), first(y - large_y, y.abs().max())
    split = (small_x @ large_y.T + large_x @ small_y.T) + large_x @ large_y.T
    exact = x.double() @ y.double().T
    errors = [float((product.double() - exact).abs().max()) for product in (split, x @ y.T)]
    assert errors[0] <= 2 * errors[1] + 4 * torch.finfo(torch.float32).eps * float(exact.abs().max())
