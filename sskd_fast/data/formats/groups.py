"""Group ids, which join shapes of a label into one object, and a check that they do not join all objects."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sskd_fast import scalars
from sskd_fast.scalars import ScalarError

_NONE = ("", "null", "none", "false")
_PARTS = 2  # so few shapes of one object raise no warning

GroupId = int | str | None


def group_id(value: object) -> GroupId:
    """The id of a group; None for the values that tools use for no group.  Raises ScalarError for other values."""
    if value is None or value is False or (isinstance(value, str) and value.strip().lower() in _NONE):
        return None
    try:
        number = scalars.integer(value)
    except ScalarError as error:
        if isinstance(value, str):
            return value
        raise ScalarError(f"the group_id {error.found}", "a whole number, a text or null") from None
    return None if number == -1 else number


@dataclass
class Groups:
    """Counts of images whose shapes have group ids."""

    grouped: int = 0
    whole: list[str] = field(default_factory=list)

    def add(self, shapes: Sequence[tuple[str, GroupId]], origin: str | Path) -> None:
        """Counts an image with the label and group of each shape; origin: its name in messages."""
        by_label: dict[str, Counter[GroupId]] = defaultdict(Counter)
        for label, group in shapes:
            by_label[label][group] += 1
        self.grouped += any(group is not None for _, group in shapes)
        for label, groups in by_label.items():
            (group, count), *others = groups.items()
            if group is not None and not others and count > _PARTS:
                self.whole.append(f"{origin}: {count} shapes of {label}, group_id {group}")
                return

    def warnings(self, place: Path) -> list[str]:
        """A warning if one group has all shapes of a label in most images with groups."""
        if 2 * len(self.whole) <= self.grouped:
            return []
        return [
            f"{place}: in {len(self.whole)} of {self.grouped} images with group_ids, all shapes of a label have the "
            f"same one and are read as one object ({self.whole[0]}). If the shapes are separate objects, remove "
            f"group_id."
        ]
