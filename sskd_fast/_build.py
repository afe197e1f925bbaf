"""Building a shared library of csrc/ with ninja: once, whole or not at all, and with a clear word where it fails.

A build happens in a folder of its own and its result is moved into place at once, under a lock that the operating
system releases when a process dies: an interrupted build leaves nothing that could be taken for a finished one.
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
    """The recipe by which a library is made of the sources in `folder`.

    file: its file name.  title, takes: what it is and how long it takes, for messages.  sources: what is compiled.
    headers: patterns, below `folder`, of what they include.  compilers: as they are called.  compile: the command,
    without input and output, that compiles a source of each suffix.  link: the words before and after the objects.
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
    """The library's path in the cache folder, where it is built first unless it is there.

    announce: say so on stderr before a build starts. Raises BuildError with the reason; a failed build is remembered.
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
        way_out = "set SSKD_FAST_CACHE to a folder that can be written"
        raise BuildError(f"{recipe.title} cannot be built or loaded in {folder} ({error}); {way_out}") from error
    return library


def build_key(recipe: Recipe) -> str:
    """A name for what the library depends on: sources, flags, compilers, torch, and the machine's instruction set."""
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
    for word in (*words, torch.__version__, platform.machine(), _instruction_set()):
        digest.update(word.encode() + b"\0")
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


def _build(recipe: Recipe, folder: Path, announce: bool) -> None:
    """Compiles into a folder of its own and moves the library to its place. The caller holds the lock.

    A failure is kept, so that not every process tries again.
    """
    failure, log = folder / "failed.txt", folder / "build.log"
    if failure.exists():
        raise BuildError(f"{failure.read_text(encoding='utf-8')} (found earlier; delete {folder} to try again)")
    for left in folder.glob("build-*"):  # of a build that was killed: a living one would have the lock
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
    """The build as ninja reads it: one object a source file, one library."""
    before, after = recipe.link
    lines = ["rule link", f"  command = {_command(before)} $in -o $out {_command(after)}"]
    for suffix, command in recipe.compile.items():
        lines += [f"rule compile_{suffix[1:]}", f"  command = {_command(command)} $in -o $out"]
    objects = []
    # The largest first, so that no core waits for the last one alone.
    for path in sorted(recipe.sources, key=lambda p: -p.stat().st_size):
        objects.append(f"{path.name}.o")
        lines.append(f"build {path.name}.o: compile_{path.suffix[1:]} {_escaped(str(path))}")
    lines.append(f"build {recipe.file}: link {' '.join(objects)}")
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
