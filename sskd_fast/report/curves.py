"""Line charts as inline SVG with axes: the loss and the AP of each stage, from log.jsonl."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from sskd_fast.report.numbers import is_number

Point = tuple[float, float]

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 40, 14, 40
MOST_POINTS = 240
NOT_LOSS_PARTS = {"stage", "step", "steps", "lr", "loss", "event", "fold"}


@dataclass(frozen=True)
class Series:
    """A line of a chart. style: its CSS class; marked: draw a dot at each point and write the last value."""

    name: str
    points: Sequence[Point]
    style: str
    marked: bool = False


@dataclass(frozen=True)
class StageCurves:
    """The charts of one stage as SVG, "" if there is none. parts: the other numbers of its last logged step."""

    stage: str
    loss: str
    ap: str
    last_step: int
    steps: int
    parts: dict[str, float]


@dataclass(frozen=True)
class StageLog:
    """One stage of log.jsonl, by rising step.

    steps: its logged steps.  evaluations: of its fold models, each on the labelled images held out from its training.
    """

    steps: list[Mapping[str, Any]]
    evaluations: list[Mapping[str, Any]]

    @property
    def loss(self) -> list[Point]:
        """(step, loss), at most MOST_POINTS points."""
        return _thinned([(float(r["step"]), float(r["loss"])) for r in self.steps if _is_real(r.get("loss"))])

    @property
    def mean_loss(self) -> list[Point]:
        """(step, running mean of the loss)."""
        return _running_mean(self.loss)

    def figure(self, key: str) -> list[Point]:
        """(step, mean over the fold models) of one figure; key: "ap" or "ap50"."""
        found: dict[float, list[float]] = {}
        for record in self.evaluations:
            if is_number(record.get(key)):
                found.setdefault(float(record["step"]), []).append(float(record[key]))
        return [(step, statistics.mean(values)) for step, values in found.items()]


def stage_logs(log: Iterable[Mapping[str, Any]]) -> dict[str, StageLog]:
    """Stage -> its log, in the order in which stages appear.

    log: the lines of log.jsonl.  If a resumed run logged a step twice, the last line counts.
    """
    stages: dict[str, dict[bool, dict[tuple[int, int], Mapping[str, Any]]]] = {}
    for record in log:
        kind, fold = record.get("event"), int(record.get("fold", 0))
        if "stage" in record and "step" in record and (kind == "eval" or (kind is None and not fold)):
            of_stage = stages.setdefault(str(record["stage"]), {True: {}, False: {}})
            of_stage[kind == "eval"][int(record["step"]), fold] = record
    return {
        stage: StageLog(*([record for _, record in sorted(found[kind].items())] for kind in (False, True)))
        for stage, found in stages.items()
    }


def stage_curves(log: Iterable[Mapping[str, Any]]) -> list[StageCurves]:
    """The charts of each stage, in the order of the log; log: the lines of log.jsonl."""
    curves = []
    for stage, found in stage_logs(log).items():
        last = found.steps[-1] if found.steps else found.evaluations[-1]
        curves.append(
            StageCurves(
                stage=stage,
                loss=loss_chart(
                    stage, [Series("logged", found.loss, "faint"), Series("running mean", found.mean_loss, "main")]
                ),
                ap=ap_chart(
                    stage,
                    [
                        Series("AP50", found.figure("ap50"), "second", marked=True),
                        Series("AP", found.figure("ap"), "main", marked=True),
                    ],
                ),
                last_step=int(last["step"]),
                steps=int(last.get("steps", last["step"])),
                parts={
                    k: float(v) for k, v in last.items() if k not in NOT_LOSS_PARTS | {"ap", "ap50"} and is_number(v)
                },
            )
        )
    return curves


def loss_chart(stage: str, series: Sequence[Series]) -> str:
    """Chart of a stage's losses by step; "" if there are none."""
    return line_chart(series, title=f"Loss of {stage} by step", x_label="step", y_label="loss", from_zero=True)


def ap_chart(stage: str, series: Sequence[Series]) -> str:
    """Chart of the AP of a stage's fold models on their held-out images by step; "" if there is none."""
    title = f"AP of {stage} on unseen labelled images by step"
    return line_chart(series, title=title, x_label="step", y_label="AP", from_zero=True)


def _is_real(value: object) -> bool:
    """True for any number, finite or not: a loss that is not finite breaks the line."""
    return isinstance(value, int | float)


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str, from_zero: bool = False) -> str:
    """A line chart as an inline <svg>, coloured by the style sheet; "" if no series has a point.

    Points that are not finite break a line.  from_zero: both axes start at 0, or below it if a value is negative.
    title: read out by screen readers.
    """
    finite = [point for line in series for point in line.points if math.isfinite(point[1])]
    if not finite:
        return ""
    lowest = min(y for _, y in finite)
    y_ticks = nice_ticks(min(0.0, lowest) if from_zero else lowest, max(y for _, y in finite))
    x_low = 0.0 if from_zero else min(x for x, _ in finite)
    x_high = max(max(x for x, _ in finite), x_low + 1.0)
    frame = _Frame(x_low, x_high, y_ticks[0], y_ticks[-1])
    x_ticks = [tick for tick in nice_ticks(x_low, x_high) if x_low <= tick <= x_high]
    return "".join(
        [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
            *(frame.horizontal(tick) for tick in y_ticks),
            *(frame.vertical(tick) for tick in x_ticks),
            f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
            f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(x_label)}</text>",
            f'<text class="label" text-anchor="middle" transform="translate(10 {(TOP + HEIGHT - BOTTOM) / 2}) '
            f'rotate(-90)">{escape(y_label)}</text>',
            *(frame.line(line) for line in series if line.points),
            "</svg>",
        ]
    )


@dataclass(frozen=True)
class _Frame:
    """The data range of a chart and what is drawn in it."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def horizontal(self, tick: float) -> str:
        y = self.place(self.x_low, tick)[1]
        return (
            f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>'
        )

    def vertical(self, tick: float) -> str:
        x, base = self.place(tick, self.y_low)[0], HEIGHT - BOTTOM
        return (
            f'<path class="axis" d="M{x:.1f} {base}v4"/>'
            f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{tick:g}</text>'
        )

    def line(self, line: Series) -> str:
        pieces, pen = [], "M"
        for x, y in line.points:
            if math.isfinite(y):
                px, py = self.place(x, y)
                pieces.append(f"{pen}{px:.1f} {py:.1f}")
                pen = "L"
            else:
                pen = "M"
        drawn = f'<path class="line {line.style}" d="{"".join(pieces)}"><title>{escape(line.name)}</title></path>'
        placed = [self.place(x, y) for x, y in line.points if math.isfinite(y)]
        if line.marked or len(placed) == 1:  # a path through a single point draws nothing
            drawn += "".join(f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in placed)
        if line.marked and placed:
            value = [y for _, y in line.points if math.isfinite(y)][-1]
            x, y = placed[-1]
            drawn += f'<text class="value {line.style}" x="{x + 7:.1f}" y="{y + 4:.1f}">{value:.1f}</text>'
        return drawn


def nice_ticks(low: float, high: float, intervals: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high] in about `intervals` steps."""
    span = high - low if high > low else max(abs(high), 1.0)
    rough = span / intervals
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS points, each the mean of neighbours."""
    width = math.ceil(len(points) / MOST_POINTS)
    chunks = [points[start : start + width] for start in range(0, len(points), max(width, 1))]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def _running_mean(points: Sequence[Point]) -> list[Point]:
    """The mean of each point and the ones before it, over a twentieth of all points. Skips non-finite points."""
    width = max(1, len(points) // 20)
    means = []
    for index, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, index - width + 1) : index + 1] if math.isfinite(y)]
        means.append((x, sum(window) / len(window) if window else math.nan))
    return means
