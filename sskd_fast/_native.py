"""The only loader of the native operators of csrc/. It takes a wheel's libraries, or builds them on first use.

There are two libraries, so that nobody without a GPU waits for nvcc. One has the schemas and the CPU operators, the
other the CUDA operators. Both use LibTorch's stable ABI, so that those of a wheel serve several versions of PyTorch.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sskd_fast import _backend, _env
from sskd_fast._build import BuildError, Recipe, build, instruction_set

_PACKAGE = Path(__file__).resolve().parent
# -fno-trapping-math and -fno-math-errno let loops with comparisons and square roots vectorise; results do not change.
_FLAGS = ["-std=gnu++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"]
_SHARED = ["-fPIC", "-fvisibility=hidden"]
# The stable ABI of the oldest PyTorch that is supported: a library built with a newer one still runs with it.
_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
_LEAST_CAPABILITY = (8, 0)
_LEAST_TORCH = (2, 10)
_V3 = "avx avx2 bmi1 bmi2 f16c fma abm movbe"
# The CPU libraries of CMakeLists.txt, the fastest first, and the instructions that each needs, as in /proc/cpuinfo.
_PREBUILT = {
    "sskd_fast_cpu.so": "",  # built for one machine, as its builder has said
    "sskd_fast_cpu_v4.so": f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl",
    "sskd_fast_cpu_v3.so": _V3,
}


def source_folder() -> Path:
    """The csrc folder of the checkout, or the copy in the wheel. Raises BuildError if neither has the sources."""
    checkout = _PACKAGE.parent / "csrc"
    folder = checkout if (checkout / "library.cpp").exists() else _PACKAGE / "csrc"
    if not (folder / "library.cpp").exists():
        raise BuildError(f"the sources are not in {folder}; reinstall the package")
    return folder


def load(*, announce: bool = True) -> Path:
    """Registers the operators of `torch.ops.sskd_fast_native` for CPU tensors. Builds their library unless cached.

    announce: print a line on stderr before a build starts. Returns the library's path. Raises BuildError with the
    reason.
    """
    if sys.platform != "linux":
        raise BuildError(f"the C++ operators are built on Linux only, and this is {sys.platform}")
    if tuple(map(int, torch.__version__.split(".")[:2])) < _LEAST_TORCH:
        least = ".".join(map(str, _LEAST_TORCH))
        raise BuildError(f"the C++ operators need PyTorch {least} or later, and this is {torch.__version__}")
    folder, instructions = _PACKAGE / "lib", instruction_set()
    library = fitting_library(folder, instructions)
    if library is not None:
        return _loaded(library)
    try:
        return _loaded(_built(cpu_recipe(source_folder(), "sskd_fast_cpu.so"), announce))
    except BuildError as error:
        unfit = why_none_fits(folder, instructions)
        raise BuildError(f"{error}; {unfit}" if unfit else str(error)) from error


def load_cuda(*, announce: bool = True) -> Path:
    """Registers the same operators for CUDA tensors, on the GPUs present; otherwise like `load`."""
    capabilities, file = _capabilities(), "sskd_fast_cuda.so"
    library = _PACKAGE / "lib" / file
    ready, unfit = library.exists(), ""
    if ready:
        driver: int = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
        unfit = why_driver_is_too_old(library, driver)
    if not ready or unfit:
        try:  # before `load`, which would build the schemas for nothing if nvcc is missing
            recipe = cuda_recipe(source_folder(), file, capabilities)
        except BuildError as error:
            raise BuildError(f"{error}; {unfit}" if unfit else str(error)) from error
    load(announce=announce)  # registers the schemas
    return _loaded(library if ready and not unfit else _built(recipe, announce))


def fitting_library(folder: Path, instructions: str) -> Path | None:
    """The fastest CPU library of a folder that runs with these instructions; None if none does."""
    present = set(instructions.split())
    fitting = (folder / file for file, needed in _PREBUILT.items() if present.issuperset(needed.split()))
    return next((library for library in fitting if library.exists()), None)


def why_none_fits(folder: Path, instructions: str) -> str:
    """A phrase on the instructions that the least demanding CPU library lacks here; "" if one fits or there is none."""
    modest = [needed for file, needed in _PREBUILT.items() if (folder / file).exists()][-1:]
    if fitting_library(folder, instructions) is not None or not modest:
        return ""
    lacking = [word for word in modest[0].split() if word not in instructions.split()]
    return f"the libraries in {folder} need instructions that this processor lacks: {' '.join(lacking)}"


def why_driver_is_too_old(library: Path, driver: int) -> str:
    """A phrase on the driver that a wheel's CUDA library needs; "" if this one will do.

    driver: the newest CUDA release that it runs, 1000 * major + 10 * minor.
    """
    release = int(library.with_name("cuda_release.txt").read_text(encoding="utf-8"))
    if driver >= 1000 * release:
        return ""
    found = f"{driver // 1000}.{driver % 1000 // 10}"
    return f"{library} needs a driver of CUDA {release} or later, and this one is of {found}; update the driver"


def _built(recipe: Recipe, announce: bool) -> Path:
    return build(recipe, _env.cache_folder(), announce=announce)


def _loaded(library: Path) -> Path:
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise BuildError(f"{library} cannot be loaded ({error}); delete its folder to rebuild it") from error
    return library


def cxx_compiler() -> list[str]:
    """The C++ compiler's command. Raises BuildError if there is none."""
    wanted, compiler = _env.cxx_compiler()
    if not compiler:
        raise BuildError(f"no C++ compiler was found (looked for {wanted} on the PATH); install g++, or set CXX")
    return compiler


def torch_flags() -> tuple[list[str], list[str]]:
    """The flags for compiling against PyTorch and for linking with it."""
    root = Path(torch.__file__).parent
    # System headers, so that they raise no warnings.
    compiling = [_TARGET, "-isystem", str(root / "include")]
    return compiling, [f"-L{root / 'lib'}", "-ltorch_cpu"]


def cpu_recipe(sources: Path, file: str) -> Recipe:
    """The recipe of the library with the CPU operators and the schemas, for this machine."""
    compiler, (compiling, linking) = cxx_compiler(), torch_flags()
    flags = [*_FLAGS, *_SHARED, *_env.extra_cxx_flags()]
    return Recipe(
        file=file,
        title="the C++ operators",
        takes="about half a minute",
        folder=sources,
        sources=(sources / "library.cpp", *sorted((sources / "cpu").glob("*.cpp"))),
        headers=("*.h", "common/*.h", "math/*.h", "cpu/*.h"),
        compilers=(compiler,),
        compile={".cpp": [*compiler, *flags, *compiling, "-I", str(sources), "-c"]},
        link=([*compiler, *flags, "-shared"], linking),
    )


def cuda_recipe(sources: Path, file: str, capabilities: list[tuple[int, int]]) -> Recipe:
    """The recipe of the library with the CUDA operators, for GPUs of these compute capabilities."""
    device_compiler = nvcc()
    compiler, (compiling, linking) = cxx_compiler(), torch_flags()
    # nvcc passes .cpp files to the C++ compiler and adds its own header and library folders.
    host = [
        *device_compiler,
        "-ccbin",
        compiler[0],
        "-Xcompiler",
        ",".join([*_SHARED, *compiler[1:], *_env.extra_cxx_flags()]),
    ]
    return Recipe(
        file=file,
        title="the CUDA operators",
        takes="about a minute",
        folder=sources,
        sources=(*sorted((sources / "cuda").glob("*.cpp")), *sorted((sources / "cuda").glob("*.cu"))),
        headers=("*.h", "common/*.h", "math/*.h", "cuda/*.h"),
        compilers=(device_compiler, compiler),
        compile={
            ".cpp": [*host, "-std=c++20", "-O2", "-DUSE_CUDA", *compiling, "-I", str(sources), "-c"],
            ".cu": [*host, *cuda_flags(capabilities), "-I", str(sources), "-c"],
        },
        link=([*host, "-shared"], [*linking, "-ltorch_cuda"]),
    )


def nvcc() -> list[str]:
    """The command of the first nvcc whose CUDA release is PyTorch's. Raises BuildError if there is none."""
    wanted, compilers = _env.cuda_compilers()
    if not compilers:
        raise BuildError(f"nvcc was not found (looked for {wanted}); install the CUDA toolkit, or set CUDA_HOME")
    needed = None if torch.version.cuda is None else torch.version.cuda.partition(".")[0]
    releases = {path: _release_of(path) for path in compilers}
    for path, release in releases.items():
        if needed in (None, release):
            return [str(path)]
    says = {
        path: f"is of CUDA {release}" if release else "does not say its release" for path, release in releases.items()
    }
    listed = ", ".join(f"{path} {text}" for path, text in says.items())
    found = f"{listed}, and this PyTorch is of CUDA {needed} (looked for {wanted})"
    raise BuildError(f"{found}; set CUDA_HOME to a toolkit of CUDA {needed}")


def _release_of(compiler: Path) -> str | None:
    """The major version that an nvcc reports; None if it reports none."""
    try:
        said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return None
    release = re.search(r"release (\d+)", said)
    return None if release is None else release[1]


def cuda_flags(capabilities: list[tuple[int, int]]) -> list[str]:
    """The nvcc flags for a kernel file: the language standard, and machine code for each compute capability."""
    targets = (f"{major}{minor}" for major, minor in capabilities)
    return ["-std=c++20", "-O3", *(f"-gencode=arch=compute_{n},code=sm_{n}" for n in targets)]


def _capabilities() -> list[tuple[int, int]]:
    """The compute capabilities of the GPUs present. Raises BuildError if the CUDA operators cannot run on them."""
    if torch.version.cuda is None:
        raise BuildError("this PyTorch is built without CUDA; install one that has it")
    if not torch.cuda.is_available():
        raise BuildError(
            "PyTorch finds no CUDA device: there is none, its driver is not loaded, or CUDA_VISIBLE_DEVICES hides it"
        )
    found = sorted({torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())})
    if found[0] < _LEAST_CAPABILITY:
        text, least = (".".join(map(str, x)) for x in (found[0], _LEAST_CAPABILITY))
        raise BuildError(f"a GPU has compute capability {text}, expected at least {least}; hide it from this process")
    return found


@functools.cache
def why_unavailable() -> str | None:
    """The reason that the C++ operators cannot run here; None if they can. Checked once per process."""
    return _reason(load)


@functools.cache
def why_cuda_unavailable() -> str | None:
    """The reason that the CUDA operators cannot run here; None if they can. Checked once per process."""
    return _reason(load_cuda)


def _reason(load_library: Any) -> str | None:
    try:
        load_library()
    except (BuildError, OSError, RuntimeError) as error:
        return str(error)
    return None


def operators() -> Any:
    """The native operators. Call it only after `_backend.resolve` has returned "cpu" or "cuda"."""
    return torch.ops.sskd_fast_native


def release_memory() -> int:
    """Frees the memory that the C++ operators keep for their next results, at most 512 MB.

    Returns the number of bytes freed, 0 if the operators have not run.
    """
    if not hasattr(torch.ops.sskd_fast_native, "release_memory"):
        return 0
    released: int = torch.ops.sskd_fast_native.release_memory()
    return released


_backend.provide("cpu", why_unavailable)
_backend.provide("cuda", why_cuda_unavailable)
