"""The only reader of environment variables."""

from __future__ import annotations

import os


def backend_choice() -> str | None:
    """The value of SSKD_FAST_BACKEND, lower case, or None where it is unset or empty."""
    value = os.environ.get("SSKD_FAST_BACKEND", "").strip().lower()
    return value or None
