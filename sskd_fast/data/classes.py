"""The classes of a data set: selection and order of categories."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sskd_fast.data.errors import DataError, Problem


def ordered_categories(
    listed: Sequence[Mapping[str, Any]], class_names: Sequence[str] | None, file: str
) -> list[Mapping[str, Any]]:
    """COCO categories with integer ids in the order of the class indices.

    class_names: the order, by name; None for the order of the category ids.  Categories with other names are left out.
    Raises DataError naming `file` for a class without a category.
    """
    categories = sorted(listed, key=lambda category: int(category["id"]))
    if class_names is None:
        return categories
    by_name = {str(category["name"]): category for category in categories}
    missing = [name for name in class_names if name not in by_name]
    if missing:
        cure = "Correct the class names, or add the categories (they may have no annotation)."
        raise DataError([Problem(file, "categories", f"no category named {missing}", f"{sorted(by_name)}", cure)])
    return [by_name[name] for name in class_names]


def spelling_variants(names: Iterable[str]) -> list[list[str]]:
    """Sorted groups of names that differ only in case or white space."""
    by_word: dict[str, set[str]] = defaultdict(set)
    for name in names:
        by_word[" ".join(name.split()).casefold()].add(name)
    return [sorted(spelt) for spelt in by_word.values() if len(spelt) > 1]
