"""Safe writing of label files: never overwrites labels that this package did not write."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sskd_fast.data.errors import DataError, Problem
from sskd_fast.files import encoded, write_text

MARKER = ".sskd_fast_written"


class OwnFiles:
    """Text files for a folder, written all together or not at all.

    The file `.sskd_fast_written` in the folder lists the SHA-256 of all files ever written there, in the format of
    `sha256sum`.  An existing file is replaced only if its name and content are in that list.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._texts: dict[str, str] = {}
        self._problems: list[Problem] = []

    def add(self, name: PurePosixPath, text: str) -> None:
        """Adds a file by its path below the folder."""
        if name.is_absolute() or ".." in name.parts:
            found, expected = f"the file name {name}", "one below the folder that is written to"
            self._problems.append(
                Problem(self.folder, "", found, expected, "Name the images relative to their folder.")
            )
        elif str(name) in self._texts:
            found = f"two images have labels of this name, {name}"
            cure = "Rename one of the images, or keep them in different folders."
            self._problems.append(Problem(self.folder, "", found, "a name of its own, but for the suffix", cure))
        else:
            self._texts[str(name)] = text

    def check(self, names: Iterable[str]) -> None:
        """Raises DataError, like `write`, if one of these files must not be replaced."""
        known = self._known()
        problems = self._problems + [problem for name in names if (problem := self._foreign(name, known))]
        if problems:
            raise DataError(problems)

    def write(self) -> list[Path]:
        """Writes all files atomically and returns their paths.  Raises DataError if one must not be replaced."""
        self.check(self._texts)
        # Listed first, so that files written before a crash are known as our own.
        listed = self._known() | {_line(encoded(text), name) for name, text in self._texts.items()}
        write_text(self.folder / MARKER, "".join(f"{line}\n" for line in sorted(listed)))
        for name, text in self._texts.items():
            write_text(self.folder / name, text)
        return [self.folder / name for name in self._texts]

    def _known(self) -> set[str]:
        marker = self.folder / MARKER
        return set(marker.read_text(encoding="utf-8").splitlines()) if marker.exists() else set()

    def _foreign(self, name: str, known: set[str]) -> Problem | None:
        path = self.folder / name
        if not path.exists() or (path.is_file() and _line(path.read_bytes(), name) in known):
            return None
        edited = any(line.endswith(f"  {name}") for line in known)
        found = "a file written here that was edited since" if edited else "a file that sskd_fast did not write"
        cure = "Write to another folder, or move the file away if it is not needed."
        return Problem(path, "", found, "no file, or one as sskd_fast left it", cure)


def _line(content: bytes, name: str) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {name}"
