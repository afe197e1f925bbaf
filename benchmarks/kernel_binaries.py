"""The Triton kernels compiled without a GPU, and the resources that their binaries use.

The launchers of kernels/ run unchanged, on small CPU tensors, under a driver that compiles for a target and launches
nothing. So the binaries are those that a user's launch would compile, with its heuristics and specialised arguments.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.cuda_binaries import occupancy

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
_AMD_SHARED = 64 << 10  # bytes of a compute unit of gfx942
# Matrix instructions: HMMA, DMMA and IMMA of sm_80, HGMMA of sm_90, the tcgen05 ones (UTC*MMA) of sm_100, MFMA of
# gfx942.
_TENSOR_CORE = re.compile(r"\b(?:[HDI]MMA|HGMMA|UTC\w*MMA)\b|\bv_mfma_\w+")
# Triton caches kernels per device, so every target gets a device number of its own, beyond those of real devices.
_DEVICES = itertools.count(1 << 16)


@dataclass(frozen=True)
class Binary:
    """One compiled kernel.

    occupancy: resident threads of a multiprocessor divided by its limit.  load_bytes: the widest load of a thread from
    global memory; 16 for copies of tiles by the tensor memory accelerator.
    """

    kernel: str
    backend: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    occupancy: float
    load_bytes: int
    tensor_core: bool

    def most(self, other: Binary) -> Binary:
        """The larger resource use of two versions of a kernel, and the smaller occupancy."""
        return Binary(
            kernel=self.kernel,
            backend=self.backend,
            arch=self.arch,
            registers=max(self.registers, other.registers),
            spill_bytes=max(self.spill_bytes, other.spill_bytes),
            shared_bytes=max(self.shared_bytes, other.shared_bytes),
            occupancy=min(self.occupancy, other.occupancy),
            load_bytes=max(self.load_bytes, other.load_bytes),
            tensor_core=self.tensor_core or other.tensor_core,
        )

    def record(self) -> dict[str, Any]:
        return asdict(self)


class _CompileOnly:
    """A Triton driver with a target but no device. launched: the kernels that launchers were asked for, by name."""

    def __init__(self, target: Any) -> None:
        self._target, self.device = target, next(_DEVICES)
        self.launched: list[str] = []
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 1 << 30},
            load_binary=lambda name, binary, shared, device: (0, 0, 0, 0, 1 << 10),
        )

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: self.launched.append(source.name)


@contextlib.contextmanager
def compiling_for(arch: str) -> Iterator[_CompileOnly]:
    """In this context, launches of Triton kernels compile for `arch` and do nothing else."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)
    stand_in, before = _CompileOnly(target), driver._active
    driver.set_active(stand_in)
    try:
        yield stand_in
    finally:
        driver._active = before


def compiled(arch: str, launches: Iterable[Callable[[], object]], modules: Iterable[Any]) -> list[Binary]:
    """The kernels of these modules that the launches compile, for one architecture."""
    return [_read(kernel, arch) for kernel in compiled_kernels(arch, launches, modules)]


def compiled_kernels(arch: str, launches: Iterable[Callable[[], object]], modules: Iterable[Any]) -> list[Any]:
    """The same kernels as Triton's own objects."""
    from triton.runtime.jit import JITFunction

    with compiling_for(arch) as driver:
        for launch in launches:
            launch()
    found: dict[int, Any] = {}
    for module in modules:
        for function in vars(module).values():
            if isinstance(function, JITFunction) and driver.device in function.device_caches:
                found |= {id(kernel): kernel for kernel in function.device_caches[driver.device][0].values()}
    return list(found.values())


def _read(kernel: Any, arch: str) -> Binary:
    return _read_amd(kernel, arch) if arch.startswith("gfx") else _read_nvidia(kernel, arch)


def listing(kernel: Any, option: str = "-sass") -> str:
    """The output of cuobjdump for a Triton kernel compiled for an NVIDIA GPU."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, option, str(file)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _read_nvidia(kernel: Any, arch: str) -> Binary:
    usage, code = listing(kernel, "-res-usage"), listing(kernel)
    numbers = {"REG": 0, "STACK": 0, "SHARED": 0, "LOCAL": 0}
    for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", usage):
        numbers[name] = max(numbers[name], int(value))
    registers, shared = numbers["REG"], max(kernel.metadata.shared, numbers["SHARED"])
    threads = 32 * kernel.metadata.num_warps
    loads = re.findall(r"\bLDG\.E(?:\.[A-Z]+)*?(?:\.(64|128))?(?:\.\w+)* ", code)
    wide = re.findall(r"\bLDGSTS(?:\.\w+)*\.(64|128)\b", code)
    copied = [128] * ("UTMALDG" in code)  # tiles, by the tensor memory accelerator
    bits = [int(width or 32) for width in [*loads, *wide, *copied]]
    return Binary(
        kernel=kernel.name,
        backend="triton",
        arch=arch,
        registers=registers,
        spill_bytes=numbers["STACK"] + numbers["LOCAL"],
        shared_bytes=shared,
        occupancy=occupancy(arch, registers, shared, threads),
        load_bytes=max(bits, default=0) // 8,
        tensor_core=_TENSOR_CORE.search(code) is not None,
    )


def _read_amd(kernel: Any, arch: str) -> Binary:
    code = kernel.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", code).group(1))  # type: ignore[union-attr]

    vectors, shared = number("vgpr_count"), max(kernel.metadata.shared, number("group_segment_fixed_size"))
    waves = kernel.metadata.num_warps
    widths = {"": 4, "x2": 8, "x3": 12, "x4": 16}
    loads = re.findall(r"\b(?:global|buffer)_load_dword(x[234])?\b", code)
    # At most eight waves per SIMD; 512 vector registers per lane, in units of 8; four SIMDs share a block's memory.
    by_registers = min(8, 512 // max(8, -(-vectors // 8) * 8))
    by_shared = (_AMD_SHARED // shared if shared else 32) * waves / 4
    return Binary(
        kernel=kernel.name,
        backend="triton",
        arch=arch,
        registers=vectors,
        spill_bytes=number("private_segment_fixed_size"),
        shared_bytes=shared,
        occupancy=min(by_registers, by_shared, 8) / 8,
        load_bytes=max((widths[width] for width in loads), default=0),
        tensor_core=_TENSOR_CORE.search(code) is not None,
    )
