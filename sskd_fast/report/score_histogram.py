"""Histogram of the scores of a class as inline SVG, with the threshold above which predictions become labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from sskd_fast.report.label_choices import BINS, ScoreHistogram

WIDTH, HEIGHT = 240, 132
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 18, 20


def histogram_chart(histogram: ScoreHistogram) -> str:
    """The histogram as an <svg>: all predictions behind, kept and unsure ones before them, kept ones in front.

    Bar heights are logarithmic, since the refused outnumber the labels.
    """
    most = max(histogram.all)
    x = _across(histogram.threshold)
    anchor = "end" if histogram.threshold > 0.8 else "start"
    text_x = x - 4 if anchor == "end" else x + 4
    kept = sum(histogram.kept)
    title = (
        f"Scores of {histogram.name}: {sum(histogram.all)} predictions, {kept} kept, "
        f"{sum(histogram.read) - kept} unsure, threshold {histogram.threshold:.2f}"
    )
    bars = [("refused", histogram.all), ("unsure", histogram.read), ("kept", histogram.kept)]
    return "".join(
        [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
            *(_bars(style, counts, most) for style, counts in bars),
            f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
            *_marks(most),
            f'<path class="threshold" d="M{x:.1f} {TOP - 6}V{HEIGHT - BOTTOM}"/>',
            f'<text x="{text_x:.1f}" y="{TOP - 6}" text-anchor="{anchor}">from {histogram.threshold:.2f}</text></svg>',
        ]
    )


def _across(score: float) -> float:
    return LEFT + score * (WIDTH - LEFT - RIGHT)


def _height(count: int, most: int) -> float:
    return (HEIGHT - TOP - BOTTOM) * math.log1p(count) / math.log1p(most)


def _bars(style: str, counts: Sequence[int], most: int) -> str:
    width = _across(1 / BINS) - LEFT
    places = ((_across(i / BINS), _height(count, most)) for i, count in enumerate(counts) if count)
    path = "".join(f"M{x + 0.5:.1f} {HEIGHT - BOTTOM}v{-up:.1f}h{width - 1:.1f}v{up:.1f}z" for x, up in places)
    return f'<path class="bar {style}" d="{path}"/>'


def _marks(most: int) -> list[str]:
    """The ticks: powers of ten up the left side; 0, 0.5 and 1 below."""
    powers = [10**n for n in range(math.floor(math.log10(most)) + 1)]
    left = [
        f'<text x="{LEFT - 5}" y="{HEIGHT - BOTTOM - _height(p, most) + 4:.1f}" text-anchor="end">{p}</text>'
        for p in powers
    ]
    return left + [
        f'<text x="{_across(score):.1f}" y="{HEIGHT - 5}" text-anchor="middle">{score:g}</text>'
        for score in (0, 0.5, 1)
    ]
