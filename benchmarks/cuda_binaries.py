"""The CUDA kernels compiled by nvcc, without a GPU, and the resources that their binaries use.

`rows()` needs nvcc, cuobjdump (of the CUDA toolkit or of Triton's package) and c++filt.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from sskd_fast import _env, _native

CAPABILITIES = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
# Limits of a multiprocessor of these architectures: 32-bit registers, threads and blocks. Then the bytes of
# shared memory that every block reserves for the CUDA runtime.
_REGISTERS, _THREADS, _BLOCKS, _RESERVED = 65536, 2048, 32, 1024
_SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
# Dynamic shared memory of a block, which a launch chooses. Sizes: 200 negatives (sampling), and 512 draws in
# float32 (hardest negatives).
DYNAMIC_SHARED = {
    "negative_sampling_trials_kernel": 512 * 8 * 4,
    "negative_sampling_race_kernel": 1024 * 12,
    "hardest_negatives_kernel": 512 * 8 * (4 + 2),
}
_TENSOR_CORE = re.compile(r"\b(?:[HD]MMA|HGMMA|UTC\w*MMA)\b")
# The largest block that __launch_bounds__ allows, in cuobjdump's listing of a kernel's .nv.info section.
_LARGEST_BLOCK = re.compile(
    r"^\.nv\.info\.(\S+)\n(?:(?!\.).*\n)*?.*EIATTR_MAX_THREADS\n.*\n.*0x([0-9a-f]+) 0x1 0x1", re.M
)
_LOAD = re.compile(r"\b(?:LDG|LDGSTS)\.E((?:\.\w+)*)")


def why_unavailable() -> str | None:
    """The reason why the kernels cannot be compiled and read here; None if they can."""
    wanted, compilers = _env.cuda_compilers()
    if not compilers:
        return f"nvcc was not found (looked for {wanted})"
    if _cuobjdump() is None:
        return "cuobjdump was not found (looked on the PATH and in Triton's package)"
    return None if shutil.which("c++filt") else "c++filt was not found on the PATH; install binutils"


def source_files() -> list[Path]:
    """The source files with kernels."""
    return sorted((_native.source_folder() / "cuda").glob("*.cu"))


def rows(arch: str) -> list[dict[str, Any]]:
    """One row for each kernel, as `python -m benchmarks.kernel_report` writes them."""
    with tempfile.TemporaryDirectory() as folder:
        return [row for file in source_files() for row in _read(_compiled(file, arch, Path(folder)), arch)]


def listings(arch: str, stem: str | None = None) -> dict[str, str]:
    """The disassembly of every kernel, by a name such as hardest_negatives_kernel<float>. Takes minutes.

    stem: of the only source file to compile.
    """
    files = [file for file in source_files() if stem in (None, file.stem)]
    with tempfile.TemporaryDirectory() as folder:
        parts = [_texts(_compiled(file, arch, Path(folder))) for file in files]
    texts = {symbol: text for part in parts for symbol, text in part.items()}
    return {name.partition("(")[0]: text for name, text in zip(_demangled(list(texts)), texts.values(), strict=True)}


def _texts(cubin: Path) -> dict[str, str]:
    return dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", _dump("-sass", cubin), re.DOTALL))


def _compiled(source: Path, arch: str, folder: Path) -> Path:
    """A cubin of the file's kernels, compiled with the same options as for users."""
    result = folder / f"{source.stem}.{arch}.cubin"
    flags = _native.cuda_flags([CAPABILITIES[arch]])
    command = [*_native.nvcc(), *flags, "-I", str(source.parent.parent), "-cubin", str(source)]
    done = subprocess.run([*command, "-o", str(result)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{source.name} does not compile for {arch}:\n{done.stderr}")
    return result


def _read(cubin: Path, arch: str) -> list[dict[str, Any]]:
    usage, details = (_dump(option, cubin) for option in ("-res-usage", "-elf"))
    texts = _texts(cubin)
    threads = {symbol: int(count, 16) for symbol, count in _LARGEST_BLOCK.findall(details)}
    found = re.findall(r"Function (\S+):\s+(.*)", usage)
    names = _demangled([symbol for symbol, _ in found])
    return [
        _row(name, arch, dict(re.findall(r"(\w+):(\d+)", numbers)), texts[symbol], threads[symbol])
        for name, (symbol, numbers) in zip(names, found, strict=True)
        if not name.startswith("cub::")  # not ours
    ]


def _row(name: str, arch: str, numbers: dict[str, str], code: str, threads: int) -> dict[str, Any]:
    registers = int(numbers["REG"])
    # cuobjdump includes the memory that every block reserves for the CUDA runtime.
    shared = max(0, int(numbers["SHARED"]) - (0 if arch == "sm_80" else _RESERVED))
    shared += DYNAMIC_SHARED.get(name.partition("<")[0], 0)
    bits = [int((re.findall(r"\.(64|128)\b", load) or [32])[0]) for load in _LOAD.findall(code)]
    return {
        "kernel": name,
        "backend": "cuda",
        "arch": arch,
        "registers": registers,
        "spill_bytes": int(numbers["STACK"]) + int(numbers["LOCAL"]),
        "shared_bytes": shared,
        "occupancy": occupancy(arch, registers, shared, threads),
        "load_bytes": max(bits, default=0) // 8,
        "tensor_core": _TENSOR_CORE.search(code) is not None,
    }


def occupancy(arch: str, registers: int, shared: int, threads: int) -> float:
    """Resident threads of a multiprocessor with such blocks, divided by its limit."""
    warps = -(-threads // 32)
    by_registers = _REGISTERS // (-(-registers * 32 // 256) * 256) // warps
    by_shared = _SHARED[arch] // (-(-shared // 128) * 128 + _RESERVED)
    return min(by_registers, by_shared, _BLOCKS, _THREADS // threads) * threads / _THREADS


def _demangled(symbols: list[str]) -> list[str]:
    """The name of each symbol, such as hardest_negatives_kernel<float>."""
    said = subprocess.run(["c++filt", "-p"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    plain = (re.sub(r"^void ", "", line) for line in said.stdout.splitlines())
    return [re.sub(r"sskd_fast::|cuda::|\(anonymous namespace\)::|_GLOBAL__N_\w+::", "", line) for line in plain]


def _dump(option: str, cubin: Path) -> str:
    command = [str(_cuobjdump()), option, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _cuobjdump() -> Path | None:
    found = shutil.which("cuobjdump")
    if found is not None:
        return Path(found)
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    inside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return inside if inside.exists() else None
