"""Text for the screen, whatever its encoding."""

from __future__ import annotations

import sys
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints text on a stream, by default standard output.

    Characters that it cannot show become escapes, such as \\xe9.  File names may hold any, and output in the locale C
    shows ASCII alone.
    """
    out = sys.stdout if stream is None else stream
    encoding = out.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=out)
