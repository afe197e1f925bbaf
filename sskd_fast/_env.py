"""Environment variables and installed toolchains: the only place that reads or sets them."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def backend_choice() -> str | None:
    """The value of SSKD_FAST_BACKEND in lower case; None if it is unset or empty."""
    value = os.environ.get("SSKD_FAST_BACKEND", "").strip().lower()
    return value or None


def cache_folder() -> Path:
    """The folder of compiled operators: SSKD_FAST_CACHE, else sskd_fast below the user's cache folder."""
    chosen = os.environ.get("SSKD_FAST_CACHE", "").strip()
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(base).expanduser() / "sskd_fast"


def max_pixels(default: int) -> int:
    """The pixel limit for reading an image: SSKD_FAST_MAX_PIXELS, or the default.

    Raises ValueError with the variable's value if it is not a whole number.
    """
    value = os.environ.get("SSKD_FAST_MAX_PIXELS", "").strip()
    if value and not (value.isascii() and value.isdigit() and int(value)):
        raise ValueError(repr(value))
    return int(value or default)


def allow_pixels(limit: int) -> None:
    """Sets SSKD_FAST_MAX_PIXELS for this process and its child processes."""
    os.environ["SSKD_FAST_MAX_PIXELS"] = str(limit)


def cxx_compiler() -> tuple[str, list[str]]:
    """The names looked for, and the C++ compiler's command: CXX if set, else g++ or c++; [] if none is found."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    names = [chosen] if chosen else [["g++"], ["c++"]]
    found = next(([path, *rest] for name, *rest in names if (path := shutil.which(name)) is not None), [])
    return (f"CXX={os.environ['CXX']}" if chosen else "g++ and c++"), found


def extra_cxx_flags() -> list[str]:
    """Extra flags for the C++ compiler (SSKD_FAST_CXXFLAGS), such as those of a sanitizer."""
    return os.environ.get("SSKD_FAST_CXXFLAGS", "").split()


def cuda_compilers() -> tuple[str, list[Path]]:
    """The places looked in, and every nvcc found there, in order of preference.

    If CUDA_HOME is set, it is an explicit choice and the only place. Otherwise: CUDA_PATH, the PATH, the usual folders
    of the toolkit from the newest release down, and NVIDIA's pip packages.
    """
    home = os.environ.get("CUDA_HOME", "").strip()
    if home:
        path = Path(home).expanduser() / "bin" / "nvcc"
        return f"CUDA_HOME={home}", [path] if path.exists() else []
    found: list[Path] = []
    places: list[str] = []
    if chosen := os.environ.get("CUDA_PATH", "").strip():
        places.append(f"CUDA_PATH={chosen}")
        found.append(Path(chosen).expanduser() / "bin" / "nvcc")
    if on_path := shutil.which("nvcc"):
        found.append(Path(on_path))
    found.append(_TOOLKITS / "cuda" / "bin" / "nvcc")
    found += (folder / "bin" / "nvcc" for folder in sorted(_TOOLKITS.glob("cuda-*"), key=_release, reverse=True))
    found += (folder / inner for folder in _pip_folders("nvidia") for inner in _PIP_NVCC)
    places += ["nvcc on the PATH", f"{_TOOLKITS}/cuda", f"{_TOOLKITS}/cuda-*", "NVIDIA's pip packages"]
    # List a compiler once if it is also reached by a link; /usr/local/cuda usually is one.
    one_each = {path.resolve(): path for path in reversed(found) if path.is_file()}
    there = [path for path in found if path in one_each.values()]
    return ", ".join(places), list(dict.fromkeys(there))


_TOOLKITS = Path("/usr/local")
_PIP_NVCC = ("cu13/bin/nvcc", "cuda_nvcc/bin/nvcc")


def _release(folder: Path) -> tuple[int, ...]:
    """The release in a folder's name, (13, 0) for cuda-13.0; () if the name has none."""
    numbers = folder.name.partition("-")[2].split(".")
    return tuple(int(number) for number in numbers) if all(number.isdigit() for number in numbers) else ()


def _pip_folders(package: str) -> list[Path]:
    """The folders of an installed namespace package, found without importing it."""
    found = importlib.util.find_spec(package)
    return [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]


@contextmanager
def without_value_checks() -> Iterator[None]:
    """Disables value checks in transformers within the block; meta tensors have no values to check."""
    name = "TRANSFORMERS_DISABLE_TORCH_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def triton_interpreted() -> bool:
    """True if Triton kernels run in Triton's interpreter on the CPU (TRITON_INTERPRET)."""
    return os.environ.get("TRITON_INTERPRET", "").strip().lower() in ("1", "true", "on", "y", "yes")


def rank() -> int:
    """The number of this process among those that torchrun or accelerate launch has started together; 0 without."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """The same among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """The number of processes started together by torchrun or accelerate launch; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def sharding() -> bool:
    """True if accelerate's settings ask for FSDP: ACCELERATE_USE_FSDP, as accelerate launch sets it."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"  # no other word


def any_set(names: Iterable[str]) -> bool:
    """True if at least one of the variables is set."""
    return any(name in os.environ for name in names)


def set_default(name: str, value: str, unless: tuple[str, ...] = ()) -> None:
    """Sets a variable for libraries loaded later, unless it or one of `unless` is set already."""
    if not any_set((name, *unless)):
        os.environ[name] = value


@contextmanager
def default_within(name: str, value: str) -> Iterator[None]:
    """Sets a variable within the block, unless it is set already."""
    was_set = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not was_set:
            os.environ.pop(name, None)
