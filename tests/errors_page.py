"""docs/errors.md, written from the corpus of broken data sets: `python -m tests.errors_page`."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from unittest.mock import patch

from sskd_fast.data.doctor import check_dataset
from sskd_fast.data.errors import DataError
from tests.broken_sets import BROKEN_SETS, sound_set, written

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
_HEAD = """# Errors in data sets, and their cures

Written by `python -m tests.errors_page` from the data sets of `tests/broken_sets.py`; a test keeps it up to date.
`python -m sskd_fast.check` shows these messages for a data set before anything is trained. Messages stand in the order
of the corpus, without the file and the record that they name.

"""


def page() -> str:
    """The page: rejected data sets, and accepted ones with or without a warning."""
    refused = ["| cause | message | cure |", "|---|---|---|"]
    taken = ["| found | what is said |", "|---|---|"]
    for broken in BROKEN_SETS[1:]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            coco = sound_set(folder)
            try:
                with patch.dict(os.environ, {"SSKD_FAST_CACHE": str(folder / "cache")}):
                    warnings = check_dataset(written(coco, broken), coco.images)
                said = _plain(" ".join(warnings), folder) or "nothing: it is read as it is meant"
                taken.append(f"| {broken.cause} | {said} |")
            except DataError as error:
                first = error.problems[0]
                message = _plain(f"{first.found}; expected {first.expected}", folder)
                refused.append(f"| {broken.cause} | {message} | {_plain(first.cure, folder)} |")
    return _HEAD + "## Refused\n\n" + "\n".join(refused) + "\n\n## Taken\n\n" + "\n".join(taken) + "\n"


def _plain(text: str, folder: Path) -> str:
    """A message without the temporary folder, on a line, as a cell of a table; long names are cut."""
    short = re.sub(r"(\w)\1{40,}", r"\1...", text.replace(f"{folder}/", "").replace(str(folder), "."))
    return " ".join(short.replace("|", "\\|").split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
