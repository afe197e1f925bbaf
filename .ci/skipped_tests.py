"""Prints the tests that a JUnit report says were skipped, a line each, as arguments of pytest: a file, or one test."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def skipped(report: Path) -> list[str]:
    """Files, and node ids such as tests/test_demo.py::test_a[1], in the order of the report."""
    cases = [case for case in ElementTree.parse(report).iter("testcase") if case.find("skipped") is not None]
    return list(dict.fromkeys(_node(case.get("classname", ""), case.get("name", "")) for case in cases))


def _node(place: str, name: str) -> str:
    # The place is the module, with the class if there is one. A file that is skipped as a whole has none, and its
    # module as its name.
    parts, tests = (place or name).split("."), [name] if place else []
    while len(parts) > 1 and not Path(*parts).with_suffix(".py").is_file():
        tests.insert(0, parts.pop())
    return "::".join([Path(*parts).with_suffix(".py").as_posix(), *tests])


if __name__ == "__main__":
    print("\n".join(skipped(Path(sys.argv[1]))))
