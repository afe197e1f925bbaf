"""Runs a module like `python -m`, with imports limited to some distributions and their requirements.

    python tests/only_these.py torch,triton,pytest -- -m pytest -q tests/gpu_operators.py

What may be imported: the standard library, the named distributions with all that they require here (by their metadata,
with the extras they ask for), and the modules of the folder in which the command runs. Any other module is not found,
and no plugin of another distribution either, as on a machine where they are not installed. If the command fails, the
last line names the modules that were refused.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import runpy
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def closure(names: list[str]) -> set[str]:
    """The installed distributions that these and their requirements are, by canonical name."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        extras = {(name, extra) for extra in ("", *wanted.extras)} - seen
        seen |= extras
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # as on a machine that lacks it too
        found.add(name)
        for requirement in map(Requirement, requirements if extras else []):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for _, e in extras):
                todo.append(requirement)
    return found


class OnlyThese(importlib.metadata.DistributionFinder):
    """Replaces the existing finders and wraps them, so that no finder returns a refused module."""

    def __init__(self, distributions: set[str], project: Path) -> None:
        self.distributions = distributions
        owners = importlib.metadata.packages_distributions()
        self.allowed = set(sys.stdlib_module_names)
        for module, names in owners.items():
            if distributions & {canonicalize_name(name) for name in names}:
                self.allowed.add(module)
        # Beside the modules that the documentation lists, the standard library has some of the platform's name.
        self.places = [project.resolve(), *(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
        self.installed = [Path(p).resolve() for p in (*site.getsitepackages(), site.getusersitepackages())]
        self.before = list(sys.meta_path)
        self.refused: list[str] = []

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the other finders give; None for a module that is refused."""
        for finder in self.before:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        top = name.partition(".")[0]
        if "." in name or top in self.allowed or self._lies_there(spec):
            return spec
        if top not in self.refused:
            self.refused.append(top)
        return None

    def invalidate_caches(self) -> None:
        for finder in self.before:
            if hasattr(finder, "invalidate_caches"):
                finder.invalidate_caches()

    def find_distributions(self, context: Any = None) -> Iterator[importlib.metadata.Distribution]:
        """The metadata of the distributions that are there, so that nobody loads the plugins of others."""
        for finder in self.before:
            for each in getattr(finder, "find_distributions", lambda _: ())(context):
                if canonicalize_name(each.name) in self.distributions:
                    yield each

    def _lies_there(self, spec: ModuleSpec) -> bool:
        """True if a module is a file of the project or the standard library, not of an installed package."""
        found = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or [])
        paths = [Path(place).resolve() for place in found if place is not None]
        return any(
            any(path.is_relative_to(place) for place in self.places)
            and not any(path.is_relative_to(place) for place in self.installed)
            for path in paths
        )


def main(arguments: list[str]) -> None:
    if len(arguments) < 4 or arguments[1:3] != ["--", "-m"]:
        sys.exit("usage: python tests/only_these.py DISTRIBUTION[,DISTRIBUTION...] -- -m MODULE [ARGUMENT...]")
    finder = OnlyThese(closure(arguments[0].split(",")), Path.cwd())
    sys.meta_path[:] = [finder]
    # As `python -m` has them.
    sys.path[0] = os.getcwd()
    sys.argv = arguments[3:]
    done = False
    try:
        runpy.run_module(arguments[3], run_name="__main__", alter_sys=True)
        done = True
    except SystemExit as stop:
        done = stop.code in (None, 0)
        raise
    finally:
        if not done and finder.refused:
            print(f"not to be imported with {arguments[0]} alone: {', '.join(finder.refused)}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
