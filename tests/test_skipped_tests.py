"""The tests that CI runs again with the optional libraries: those that a JUnit report says were skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "skipped_tests.py"
FILES = {
    "tests/test_whole.py": "import pytest\npytest.importorskip('not_there')\ndef test_a(): pass\n",
    "tests/test_part.py": """
import pytest

def test_passes(): pass

@pytest.mark.parametrize("x", ["1.5", "a-b"])
def test_some(x):
    if x == "1.5":
        pytest.importorskip("not_there")

class TestOf:
    def test_of_a_class(self):
        pytest.skip("no")
""",
}


def test_skipped_tests_and_files_are_listed_as_pytest_takes_them(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run([*run, "--junitxml=report.xml"], cwd=tmp_path, check=True, capture_output=True)
    listed = subprocess.run([sys.executable, SCRIPT, "report.xml"], cwd=tmp_path, check=True, capture_output=True)
    expected = [
        "tests/test_part.py::test_some[1.5]",
        "tests/test_part.py::TestOf::test_of_a_class",
        "tests/test_whole.py",
    ]
    assert sorted(listed.stdout.decode().splitlines()) == sorted(expected)
    (tmp_path / "list.txt").write_bytes(listed.stdout)
    again = subprocess.run([*run, "@list.txt"], cwd=tmp_path, capture_output=True, text=True)
    assert "3 skipped" in again.stdout and "passed" not in again.stdout, again.stdout
