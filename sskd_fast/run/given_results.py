"""Checks of predictions made elsewhere against the images that they are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sskd_fast.data.errors import named
from sskd_fast.models.pretrained import FoundationError


def check_results(
    results: Iterable[dict[str, Any]], files: str, category_ids: Sequence[int], sizes: Mapping[int, tuple[int, int]]
) -> None:
    """Raises FoundationError for results with a category that the data set lacks or masks of another size.

    files: names of the files, for the message.  sizes: image id -> its (H, W).
    """
    for result in results:
        if result["category_id"] not in category_ids:
            raise FoundationError(
                f"foundation.results: {files} has results of category {result['category_id']}; expected the data set's "
                f"own ids, {named(category_ids)}: map them, or leave those results out. Classes that the predictions "
                "have of their own go into a field of their own (foundation.source_key)"
            )
        found, expected = tuple(result["segmentation"]["size"]), sizes[result["image_id"]]
        if found != expected:
            raise FoundationError(
                f"foundation.results: {files} has masks of {found[0]} x {found[1]} (height x width) for image "
                f"{result['image_id']} of {expected[0]} x {expected[1]}; give masks of the size of the image as it is "
                "shown, after its EXIF rotation"
            )
