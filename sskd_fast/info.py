"""`python -m sskd_fast.info`: versions, GPUs, the backends that run here, and the one that each operator uses."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence

from sskd_fast import _interrupt  # isort: split

if __name__ == "__main__":
    _interrupt.guard_start()

import torch

import sskd_fast.ops  # noqa: F401  (brings the backends)
from sskd_fast import __version__, _backend, _backend_costs, _env, _native
from sskd_fast._build import BuildError

_DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}


EXAMPLE = "example:\n  python -m sskd_fast.info"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return argparse.ArgumentParser(
        prog="python -m sskd_fast.info",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table; returns 0.  Each backend is prepared to check it, so operators not yet compiled are compiled."""
    parser().parse_args(argv)
    rows = [*versions(), ("", ""), *backends(), *choices(_devices())]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:{width}}  {text}".rstrip())
    return 0


def versions() -> list[tuple[str, str]]:
    """Name and version of each relevant component, or a note that it was not found."""
    return [
        ("sskd_fast", __version__),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda}, {torch.get_num_threads()} threads)"),
        ("triton", _package("triton")),
        ("C++ compiler", _first_line(*_env.cxx_compiler())),
        ("nvcc", _nvcc()),
        ("GPU", "; ".join(_gpus()) or "none that PyTorch finds"),
        ("driver", _driver()),
        ("cache", str(_env.cache_folder())),
    ]


def backends() -> list[tuple[str, str]]:
    """Each backend, and that it runs or the reason that it does not."""
    rows = []
    for name, device in _DEVICE.items():
        reason = _backend.why_unavailable(name, device)
        where = "tensors on any device" if name == "reference" else f"tensors on {device}"
        rows.append((f"backend {name}", f"runs on {where}" if reason is None else f"does not run: {reason}"))
    return rows


def choices(gpus: list[torch.device]) -> list[tuple[str, str]]:
    """For each operator on each GPU, the backend that "auto" picks, and the reason."""
    runs = {name for name in _backend_costs.BACKENDS if _backend.why_unavailable(name, "cuda") is None}
    rows = []
    for gpu in gpus:
        for operator in _backend.OPERATORS:
            order, why = _backend.gpu_order(operator, _backend.capability_of(gpu))
            able = [name for name in order if name in runs]
            if len(able) == 1 < len(order):
                why = "the only one that runs"
            text = f"{able[0]} ({why})" if able else "reference (no faster backend runs)"
            rows.append((f"auto, {operator} on {gpu}", text))
    return rows


def _devices() -> list[torch.device]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", index) for index in range(count)]


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"not found; pip install {name}"


def _nvcc() -> str:
    """The version of the nvcc used for the CUDA operators, or the reason that there is none."""
    wanted, compilers = _env.cuda_compilers()
    try:
        return _first_line(wanted, _native.nvcc() if compilers else [], line=-1)
    except BuildError as error:
        return str(error)


def _first_line(wanted: str, command: list[str], line: int = 0) -> str:
    """One line of a program's `--version` output, and the command."""
    if not command:
        return f"not found (looked for {wanted})"
    said = _output([*command, "--version"])
    return f"{said.splitlines()[line]} ({shlex.join(command)})" if said else f"{shlex.join(command)} cannot be run"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    found = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    return [f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}" for gpu in found]


def _driver() -> str:
    said = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return said.splitlines()[0] if said else "not found (asked nvidia-smi)"


def _output(command: list[str]) -> str:
    """The standard output of a program; "" if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
