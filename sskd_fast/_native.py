"""The only builder and loader of the native library in csrc/: compiled for this machine on first use, then cached.

A build happens in a folder of its own and its result is moved into place at once, under a lock that the operating
system releases when a process dies: an interrupted build leaves nothing that could be taken for a finished one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sskd_fast import _backend, _env

_PACKAGE = Path(__file__).resolve().parent
# -fno-trapping-math and -fno-math-errno let loops with comparisons and square roots use vectors; results are the same.
_FLAGS = ["-std=gnu++20", "-O3", "-march=native", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
_LIBRARY = "sskd_fast_cpu.so"


class BuildError(RuntimeError):
    """The native library cannot be built here; the message says why."""


def source_folder() -> Path:
    """csrc of the checkout this package lies in, or the copy that a wheel holds."""
    checkout = _PACKAGE.parent / "csrc"
    return checkout if (checkout / "library.cpp").exists() else _PACKAGE / "csrc"


def load(*, announce: bool = True) -> Path:
    """Registers the operators of `torch.ops.sskd_fast_native`, building the library first where it is not cached.

    Returns the library's path. announce: say so on stderr before a build starts. Raises BuildError with the reason.
    """
    if sys.platform != "linux":
        raise BuildError(f"the C++ operators are built on Linux only, and this is {sys.platform}")
    wanted, compiler = _env.cxx_compiler()
    if not compiler:
        raise BuildError(f"no C++ compiler was found (looked for {wanted} on the PATH); install g++, or set CXX")
    sources = source_folder()
    if not (sources / "library.cpp").exists():
        raise BuildError(f"the sources are not in {sources}; install the package again")
    flags = [*_FLAGS, *_env.extra_cxx_flags()]
    folder = _env.cache_folder() / build_key(sources, compiler, flags)
    library = folder / _LIBRARY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not library.exists():
            with _locked(folder):
                if not library.exists():
                    _build(sources, compiler, flags, folder, announce)
        torch.ops.load_library(library)
    except OSError as error:
        way_out = "set SSKD_FAST_CACHE to a folder that can be written"
        raise BuildError(f"the C++ operators cannot be built or loaded in {folder} ({error}); {way_out}") from error
    return library


def build_key(sources: Path, compiler: list[str], flags: list[str]) -> str:
    """A name for what the library depends on: sources, flags, compiler, torch, and the machine's instruction set."""
    digest = hashlib.sha256()
    for path in sorted([*sources.rglob("*.h"), *sources.rglob("*.cpp")]):
        digest.update(path.relative_to(sources).as_posix().encode() + b"\0" + path.read_bytes())
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout
    except OSError as error:
        raise BuildError(
            f"the C++ compiler {shlex.join(compiler)} cannot be run ({error}); set CXX to another"
        ) from error
    digest.update(version)
    for part in (*flags, *compiler, torch.__version__, platform.machine(), _instruction_set()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _instruction_set() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl  # is not there on every system that this module is imported on

    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(sources: Path, compiler: list[str], flags: list[str], folder: Path, announce: bool) -> None:
    """Compiles into a folder of its own and moves the library to its place. The caller holds the lock.

    A failure is kept, so that not every process tries again.
    """
    failure, log = folder / "failed.txt", folder / "build.log"
    if failure.exists():
        raise BuildError(f"{failure.read_text(encoding='utf-8')} (found earlier; delete {folder} to try again)")
    for left in folder.glob("build-*"):  # of a build that was killed: a living one would have the lock
        shutil.rmtree(left, ignore_errors=True)
    if announce:
        print("sskd_fast: compiling the C++ operators for this machine, once (about half a minute)", file=sys.stderr)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as name:
        build = Path(name)
        (build / "build.ninja").write_text(ninja_file(sources, compiler, flags), encoding="utf-8")
        command = [*_ninja(), "-C", name, _LIBRARY]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            log.write_text(done.stdout + done.stderr, encoding="utf-8")
            cause = _first_error(done.stdout + done.stderr)
            failure.write_text(f"the C++ operators do not compile with {shlex.join(compiler)} ({cause}); see {log}")
            raise BuildError(failure.read_text(encoding="utf-8"))
        os.replace(build / _LIBRARY, folder / _LIBRARY)
    if announce:
        print(f"sskd_fast: compiled in {time.perf_counter() - start:.0f} s into {folder}", file=sys.stderr)


def ninja_file(sources: Path, compiler: list[str], flags: list[str]) -> str:
    """The build as ninja reads it: one object a source file, one library."""
    root = Path(torch.__file__).parent
    # As system headers, so that they do not warn; -I for ours.
    includes = ["-isystem", str(root / "include"), "-I", str(sources)]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    compile_command = _command([*compiler, *flags, abi, *includes, "-c"])
    link_flags = _command([*flags, "-shared", f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"])
    lines = [
        "rule compile",
        f"  command = {compile_command} $in -o $out",
        "rule link",
        f"  command = {_command(compiler)} $in -o $out {link_flags}",
    ]
    objects = []
    # The largest first, so that no core waits for the last one alone.
    for path in sorted([sources / "library.cpp", *(sources / "cpu").glob("*.cpp")], key=lambda p: -p.stat().st_size):
        objects.append(f"{path.stem}.o")
        lines.append(f"build {path.stem}.o: compile {_escaped(str(path))}")
    lines.append(f"build {_LIBRARY}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _command(words: list[str]) -> str:
    """Words of a command line, for the shell that ninja hands it to."""
    return shlex.join(words).replace("$", "$$")


def _escaped(text: str) -> str:
    """A path in a build line of ninja's."""
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _ninja() -> list[str]:
    found = shutil.which("ninja")
    if found is not None:
        return [found]
    with contextlib.suppress(ImportError):
        import ninja

        return [str(Path(ninja.BIN_DIR) / "ninja")]
    raise BuildError("ninja was not found; install it (pip install ninja)")


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines()] or ["no output"]
    return next((line for line in lines if "error" in line.lower()), lines[-1])


@functools.cache
def why_unavailable() -> str | None:
    """Why the C++ operators cannot run here, None where they can. Asked once a process; a failure is warned of once."""
    try:
        load()
    except (BuildError, OSError, RuntimeError) as error:
        message = f"{error}. The operators run in plain PyTorch instead: the same results, many times slower."
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return str(error)
    return None


def operators() -> Any:
    """The native operators; only for callers that `_backend.resolve` has told "cpu"."""
    return torch.ops.sskd_fast_native


def release_memory() -> int:
    """Gives back to the system what the C++ operators keep for their next results, 512 MB at most; returns how many
    bytes. 0 where they have not run."""
    if not hasattr(torch.ops.sskd_fast_native, "release_memory"):
        return 0
    released: int = torch.ops.sskd_fast_native.release_memory()
    return released


_backend.provide("cpu", why_unavailable)
