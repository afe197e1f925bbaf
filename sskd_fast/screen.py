"""Printing of text on a terminal of any encoding."""

from __future__ import annotations

import sys
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints text to a stream, by default standard output.

    Characters that the stream cannot encode become escapes, such as \\xe9.  File names may hold any character, and the
    locale C shows ASCII only.
    """
    out = sys.stdout if stream is None else stream
    encoding = out.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=out)
