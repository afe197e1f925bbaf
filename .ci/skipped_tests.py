"""Prints the tests that a JUnit report says were skipped, a line each, as arguments of pytest: a file, or one test."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def skipped(report: Path) -> list[str]:
    """Files, and node ids such as tests/test_demo.py::test_a[1], in the order of the report."""
    cases = [case for case in ElementTree.parse(report).iter("testcase") if case.find("skipped") is not None]
    return list(dict.fromkeys(_node(case.get("classname", ""), case.get("name", "")) for case in cases))


def _node(module: str, name: str) -> str:
    # A file that is skipped as a whole has no class name, and the name of its module as its own.
    file = f"{(module or name).replace('.', '/')}.py"
    return f"{file}::{name}" if module else file


if __name__ == "__main__":
    print("\n".join(skipped(Path(sys.argv[1]))))
