"""Builds of the shared libraries of csrc/ with ninja: cached, atomic, and with a clear message on failure.

A build runs in a temporary folder and its result is moved into place atomically. It holds a lock that the operating
system releases if the process dies. So an interrupted build can never be mistaken for a finished one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


class BuildError(RuntimeError):
    """A native library cannot be built here; the message says why."""


@dataclass(frozen=True)
class Recipe:
    """Instructions for building a library from the sources in `folder`.

    file: file name of the library.  title, takes: its description and build time, for messages.  sources: files to
    compile.  headers: glob patterns below `folder` of the headers they include.  compilers: compiler commands.
    compile: by source suffix, the compile command without input and output.  link: the words of the link command
    before and after the object files.
    """

    file: str
    title: str
    takes: str
    folder: Path
    sources: tuple[Path, ...]
    headers: tuple[str, ...]
    compilers: tuple[list[str], ...]
    compile: dict[str, list[str]]
    link: tuple[list[str], list[str]]

    def inputs(self) -> list[Path]:
        """Every file that the library depends on."""
        headers = (path for pattern in self.headers for path in self.folder.glob(pattern))
        return sorted({*self.sources, *headers})


def build(recipe: Recipe, cache: Path, *, announce: bool = True) -> Path:
    """The library's path in the cache folder. Builds it first unless it is cached.

    announce: print a line on stderr before a build starts. Raises BuildError with the reason. A failed build is
    remembered, so later calls fail at once.
    """
    folder = cache / build_key(recipe)
    library = folder / recipe.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not library.exists():
            with _locked(folder):
                if not library.exists():
                    _build(recipe, folder, announce)
    except OSError as error:
        way_out = "set SSKD_FAST_CACHE to a writable folder"
        raise BuildError(f"{recipe.title} cannot be built or loaded in {folder} ({error}); {way_out}") from error
    return library


def build_key(recipe: Recipe) -> str:
    """A hash of all that the library depends on: sources, flags, compilers, torch, and the CPU's instruction set."""
    digest = hashlib.sha256()
    for path in recipe.inputs():
        digest.update(path.relative_to(recipe.folder).as_posix().encode() + b"\0" + path.read_bytes())
    for compiler in recipe.compilers:
        try:
            digest.update(subprocess.run([*compiler, "--version"], capture_output=True, check=False).stdout)
        except OSError as error:
            message = f"the compiler {shlex.join(compiler)} cannot be run ({error}); set CXX or CUDA_HOME to another"
            raise BuildError(message) from error
    words = [word for command in (*recipe.compile.values(), *recipe.link) for word in command]
    for word in (*words, torch.__version__, platform.machine(), instruction_set()):
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()[:16]


def instruction_set() -> str:
    """The instructions that the processor has, as /proc/cpuinfo names them, else its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    import fcntl  # missing on some systems that import this module

    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(recipe: Recipe, folder: Path, announce: bool) -> None:
    """Compiles in a temporary folder and moves the library into place. The caller holds the lock.

    A failure is recorded, so that other processes do not try again.
    """
    failure, log = folder / "failed.txt", folder / "build.log"
    if failure.exists():
        raise BuildError(f"{failure.read_text(encoding='utf-8')} (found earlier; delete {folder} to try again)")
    for left in folder.glob("build-*"):  # left by killed builds: a running one would hold the lock
        shutil.rmtree(left, ignore_errors=True)
    if announce:
        print(f"sskd_fast: compiling {recipe.title} for this machine, once ({recipe.takes})", file=sys.stderr)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as name:
        build = Path(name)
        (build / "build.ninja").write_text(ninja_file(recipe), encoding="utf-8")
        command = [*_ninja(), "-C", name, recipe.file]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            log.write_text(done.stdout + done.stderr, encoding="utf-8")
            cause = _first_error(done.stdout + done.stderr)
            compilers = " and ".join(shlex.join(compiler) for compiler in recipe.compilers)
            failure.write_text(f"{recipe.title} do not compile with {compilers} ({cause}); see {log}")
            raise BuildError(failure.read_text(encoding="utf-8"))
        os.replace(build / recipe.file, folder / recipe.file)
    if announce:
        print(f"sskd_fast: compiled in {time.perf_counter() - start:.0f} s into {folder}", file=sys.stderr)


def ninja_file(recipe: Recipe) -> str:
    """The content of build.ninja: one object file per source, linked into one library."""
    before, after = recipe.link
    lines = ["rule link", f"  command = {_command(before)} $in -o $out {_command(after)}"]
    for suffix, command in recipe.compile.items():
        lines += [f"rule compile_{suffix[1:]}", f"  command = {_command(command)} $in -o $out"]
    objects = []
    # Largest first, so that the build does not end with one core on a large file and the others idle.
    for path in sorted(recipe.sources, key=lambda p: -p.stat().st_size):
        objects.append(f"{path.name}.o")
        lines.append(f"build {path.name}.o: compile_{path.suffix[1:]} {_escaped(str(path))}")
    lines.append(f"build {recipe.file}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def _command(words: list[str]) -> str:
    """A command line quoted for the shell and escaped for ninja."""
    return shlex.join(words).replace("$", "$$")


def _escaped(text: str) -> str:
    """A path escaped for a build line of ninja."""
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
