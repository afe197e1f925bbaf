"""The frame of every page: one HTML document that opens offline and loads nothing."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from sskd_fast import __version__
from sskd_fast.report.style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, header: str, sections: Iterable[str]) -> str:
    """The whole page as text. title: plain text; header, sections: HTML; empty sections are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"{header}\n<main>\n" + "\n".join(filter(None, sections)) + "\n</main>\n"
        f"<footer>Written by sskd_fast {escape(__version__)}. AP is COCO mask AP in percent, the mean over IoU 0.50 to "
        "0.95; AP50 counts a mask as right from IoU 0.50.</footer>\n</body>\n</html>\n"
    )
