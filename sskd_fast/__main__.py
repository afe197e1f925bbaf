"""`sskd COMMAND` or `python -m sskd_fast COMMAND`: all commands of the package under one name."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence

from sskd_fast import __version__, _interrupt

# Name -> module of sskd_fast with a `main(argv) -> int`, and a summary.  Modules are imported only when called.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("run", "adapt a teacher, distil it into a student, refine and compare"),
    "label": ("label", "label the unlabelled images of a run in shards"),
    "predict": ("predict", "find instances in images and videos"),
    "evaluate": ("evaluate", "measure a trained model on labelled images"),
    "export": ("export", "write a trained model for other runtimes"),
    "check": ("check", "look for faults in a data set"),
    "rank": ("rank", "rank unlabelled images by how much their labels would teach"),
    "study": ("study", "train the rows of a study with several seeds and summarise them"),
    "report": ("report", "rewrite a run's report, or compare runs"),
    "demo": ("demo", "try a trained model in the browser"),
    "info": ("info", "show versions and the backends that run here"),
}
# Modules that pip installs under another name.
_INSTALLED_AS = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    2 for an unknown command or a missing package. 141 if the reader of the output has quit, as `head` does. 130 or 143
    after SIGINT or SIGTERM.
    """
    try:
        status = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as error:
        print("\ninterrupted", file=sys.stderr)
        return 143 if isinstance(error, _interrupt.Terminated) else 130
    return status


def _main(argv: Sequence[str] | None) -> int:
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"sskd_fast {__version__}")
    elif name not in COMMANDS:
        print(f"error: {unknown(name)}", file=sys.stderr)
        return 2
    else:
        return _call(name, rest)
    return 0


def usage() -> str:
    """The help text: one command per line."""
    lines = [f"  sskd {name:9} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: sskd COMMAND ... (`sskd COMMAND --help` for its options)", *lines])


def unknown(name: str) -> str:
    """An error message for an unknown command, with the closest match and the list of commands."""
    near = difflib.get_close_matches(name, COMMANDS, 1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"{name}: no such command; {guess}expected one of {', '.join(COMMANDS)}"


def _call(name: str, argv: Sequence[str]) -> int:
    try:
        with _interrupt.orderly():
            return _entry(COMMANDS[name][0])(argv)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "sskd_fast"):
            raise
        print(f"error: sskd {name} needs the package {module}: pip install {wanted(module)}", file=sys.stderr)
        return 2


def _entry(module: str) -> Callable[[Sequence[str]], int]:
    """The `main` of a module, or of a package's __main__."""
    spec = importlib.util.find_spec(f"sskd_fast.{module}")
    inner = ".__main__" if spec is not None and spec.submodule_search_locations is not None else ""
    entry: Callable[[Sequence[str]], int] = importlib.import_module(f"sskd_fast.{module}{inner}").main
    return entry


def wanted(module: str) -> str:
    """The pip requirement for a missing module: the extra of sskd_fast that includes it, else the package itself."""
    package = _INSTALLED_AS.get(module, module)
    try:
        requirements = importlib.metadata.requires("sskd_fast") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        found = re.fullmatch(r"""([\w.-]+).*\bextra == ["']([\w-]+)["'].*""", requirement)
        if found and found[1].lower().replace("_", "-") == package.lower().replace("_", "-") and found[2] != "test":
            return f"'sskd_fast[{found[2]}]'"
    return package


if __name__ == "__main__":
    sys.exit(main())
