"""The error for masks that cannot be decoded."""

from __future__ import annotations


class MaskError(ValueError):
    """Raised for a segmentation that cannot be decoded; has what was found, what was expected and the cure."""

    def __init__(self, found: str, expected: str, cure: str) -> None:
        self.found, self.expected, self.cure = found, expected, cure
        super().__init__(f"{found}; expected {expected}. {cure}")
