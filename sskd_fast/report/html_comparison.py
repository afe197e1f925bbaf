"""A page that compares several runs: figures, settings that differ, verdicts, curves, pseudo-labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sskd_fast.files import write_text
from sskd_fast.method import ROW_ORDER, title_of
from sskd_fast.report.comparison import (
    ComparedRun,
    RunGroup,
    compared_runs,
    different_settings,
    incomparable,
    seed_groups,
)
from sskd_fast.report.curves import Series, ap_chart, loss_chart, stage_logs
from sskd_fast.report.document import document
from sskd_fast.report.numbers import ap_text, count_text, is_number, seconds_text
from sskd_fast.report.run_folder import read_run
from sskd_fast.report.table import figure_columns, measured_rows
from sskd_fast.report.verdict import verdict

COLORS = 8
MOST_THRESHOLDS = 6
LABEL_FIGURES = {
    "labels": ("Labels", "{:.0f}"),
    "labels_per_image": ("An image", "{:.1f}"),
    "empty_share": ("Images without", "{:.0%}"),
    "mean_score": ("Mean score", "{:.2f}"),
    "precision": ("Precision", "{:.2f}"),
    "recall": ("Recall", "{:.2f}"),
    "class_accuracy": ("Right class", "{:.2f}"),
    "mean_iou": ("Mean IoU", "{:.2f}"),
}


def write_comparison(run_folders: Sequence[Path], output: Path) -> Path:
    """Write a page that compares runs side by side, and return its path.

    run_folders: the folders of two or more runs.  The file is replaced in one step.

    Raises ValueError, naming the file, if one cannot be read, or if a folder is given twice.
    """
    runs = compared_runs([read_run(folder, predictions=False) for folder in run_folders])
    write_text(output, comparison_page(runs))
    return output


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """The whole page as text."""
    groups = seed_groups(runs)
    notes = incomparable(groups)
    configurations = "configuration" if len(groups) == 1 else "configurations"
    header = (
        '<header><p class="eyebrow">Semi-supervised distillation · runs side by side</p>'
        f'<h1>{len(runs)} runs compared</h1><ul class="facts"><li><b>{len(groups)}</b> {configurations}</li></ul>'
        "</header>"
    )
    sections = [
        _runs(groups, notes),
        _figures(groups, notes),
        _settings(runs),
        _verdicts(groups),
        _curves(groups),
        _labels(groups, notes),
    ]
    return document(f"{len(runs)} runs compared", header, sections)


def _notes(notes: Sequence[str]) -> str:
    """Reasons why figures do not compare, in bold, for the sections that show those figures."""
    return "".join(f'<p class="apart"><strong>{escape(note)}</strong></p>' for note in notes)


def _table(head: Sequence[str], bodies: Iterator[str], words: str = "") -> str:
    """A table that scrolls within its card, under a fixed sentence."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    said = f'<p class="soft">{escape(words)}</p>' if words else ""
    table = f"<table><thead><tr>{titles}</tr></thead>{''.join(bodies)}</table>"
    return f'{said}<div class="card scroll compared">{table}</div>'


def _key(groups: Sequence[RunGroup], run: ComparedRun) -> str:
    """The colour of the run's group, then the run's name."""
    number = next(i for i, group in enumerate(groups) if run in group.runs)
    return f'<span class="key run{number % COLORS}"></span>{escape(run.name)}'


def _cells(texts: Sequence[str]) -> str:
    return "".join(f"<td>{escape(text)}</td>" for text in texts)


def _runs(groups: Sequence[RunGroup], notes: Sequence[str]) -> str:
    keys = ("dataset", "labeled_images", "unlabeled_images", "val_images", "max_detections")
    head = ("Run", "Seed", "Data set", "Labelled", "Unlabelled", "Validation", "Detections")

    def bodies() -> Iterator[str]:
        for group in groups:
            lines = (
                f'<tr><th scope="row">{_key(groups, run)}</th>'
                f"{_cells([run.seed, *(str(run.folder.metrics.get(key, '-')) for key in keys)])}</tr>"
                for run in group.runs
            )
            yield f"<tbody>{''.join(lines)}</tbody>"

    words = "Runs of one colour differ only in the seed. Detections: the most that count for an image."
    return f"<section><h2>Runs</h2>{_notes(notes)}{_table(head, bodies(), words)}</section>"


def _figures(groups: Sequence[RunGroup], notes: Sequence[str]) -> str:
    """AP, parameters and training time of every row of every run, with mean and standard deviation over seeds."""
    rows = {run.name: measured_rows(run.folder.metrics) for group in groups for run in group.runs}
    every = {f"{name}/{row}": figures for name, of_run in rows.items() for row, figures in of_run.items()}
    columns = figure_columns(every)
    names = [*ROW_ORDER, *dict.fromkeys(row for of_run in rows.values() for row in of_run if row not in ROW_ORDER)]

    def bodies() -> Iterator[str]:
        for row in (name for name in names if any(name in of_run for of_run in rows.values())):
            lines = [
                f'<tr class="model"><th scope="rowgroup" colspan="{len(columns) + 3}">{escape(title_of(row))}</th></tr>'
            ]
            for group in groups:
                lines += _group_lines(groups, group, row, columns)
            yield f"<tbody>{''.join(lines)}</tbody>"

    head = ("Model and run", *columns.values(), "Params", "Time")
    words = "Validation AP; time is training time. Means are over seeds, with the sample standard deviation."
    return f"<section><h2>Models</h2>{_notes(notes)}{_table(head, bodies(), words)}</section>"


def _group_lines(groups: Sequence[RunGroup], group: RunGroup, row: str, columns: Mapping[str, str]) -> Iterator[str]:
    for run in group.runs:
        figures = measured_rows(run.folder.metrics).get(row, {})
        texts = [*(ap_text(figures.get(key)) for key in columns), count_text(figures.get("params"))]
        texts.append(seconds_text(figures.get("seconds")))
        yield f'<tr><th scope="row">{_key(groups, run)}</th>{_cells(texts)}</tr>'
    spreads = [group.spread(row, key) for key in columns]
    if any(spreads):
        texts = [f"{s[0]:.1f} ± {s[1]:.1f}" if s else "-" for s in spreads]
        seconds = group.spread(row, "seconds")
        time = seconds_text(seconds[0]) if seconds else "-"
        measured = sum(row in measured_rows(run.folder.metrics) for run in group.runs)
        yield f'<tr class="mean"><th scope="row">Mean of {measured} runs</th>{_cells([*texts, "", time])}</tr>'


def _settings(runs: Sequence[ComparedRun]) -> str:
    different = different_settings(runs)
    without = [run.name for run in runs if not run.settings]
    missing = f"<p>Without config.yaml: {escape(', '.join(without))}.</p>" if without else ""
    if not different:
        return f"<section><h2>Settings that differ</h2>{missing}<p>None but the folder.</p></section>"
    body = "".join(f'<tr><th scope="row">{escape(key)}</th>{_cells(values)}</tr>' for key, values in different.items())
    table = _table(("Setting", *(run.name for run in runs)), iter([f"<tbody>{body}</tbody>"]))
    return f"<section><h2>Settings that differ</h2>{missing}{table}</section>"


def _verdicts(groups: Sequence[RunGroup]) -> str:
    cards = []
    for run in (run for group in groups for run in group.runs):
        found = verdict(run.folder.metrics, run.folder.details)
        cards.append(
            f'<div class="card verdict {found.tone}"><p class="of">{_key(groups, run)}</p>'
            f"<h3>{escape(found.headline)}</h3><p>{escape(' '.join(found.sentences))}</p></div>"
        )
    return f'<section><h2>Verdicts</h2><div class="two">{"".join(cards)}</div></section>'


def _curves(groups: Sequence[RunGroup]) -> str:
    """Loss of each stage and AP of its fold models: one line for each run, in the colour of its group."""
    logs = [(n, run.name, stage_logs(run.folder.log)) for n, group in enumerate(groups) for run in group.runs]
    cards = []
    for stage in dict.fromkeys(stage for _, _, log in logs for stage in log):
        own = [(f"run{n % COLORS}", name, log[stage]) for n, name, log in logs if stage in log]
        loss = loss_chart(stage, [Series(name, log.mean_loss, style) for style, name, log in own])
        ap = ap_chart(stage, [Series(name, log.figure("ap"), style) for style, name, log in own])
        cards.append(f'<div class="card"><h3>{escape(title_of(stage))}</h3>{loss}{ap}</div>')
    if not cards:
        return ""
    legend = "".join(
        f'<span><span class="key run{n % COLORS}"></span>{escape(group.name)}</span>' for n, group in enumerate(groups)
    )
    return (
        "<section><h2>Training</h2><p>Running mean of the loss, and AP of fold models on the labelled images that they "
        "were not trained on.</p>"
        f'<p class="legend">{legend}</p><div class="charts">{"".join(cards)}</div></section>'
    )


def _labels(groups: Sequence[RunGroup], notes: Sequence[str]) -> str:
    runs = [run for group in groups for run in group.runs]
    teachers = dict.fromkeys(teacher for run in runs for teacher in run.folder.statistics)
    if not teachers:
        return ""
    head = ("Teacher and run", *(title for title, _ in LABEL_FIGURES.values()), "Labels from score")

    def bodies() -> Iterator[str]:
        for teacher in teachers:
            lines = [
                f'<tr class="model"><th scope="rowgroup" colspan="{len(head)}">{escape(title_of(teacher))}</th></tr>'
            ]
            for run in runs:
                record = run.folder.statistics.get(teacher, {})
                texts = [
                    form.format(record[key]) if is_number(record.get(key)) else "-"
                    for key, (_, form) in LABEL_FIGURES.items()
                ]
                cells = f'{_cells(texts)}<td class="wide">{escape(_thresholds(record))}</td>'
                lines.append(f'<tr><th scope="row">{_key(groups, run)}</th>{cells}</tr>')
            yield f"<tbody>{''.join(lines)}</tbody>"

    words = "Precision and recall, at IoU 0.5, are known if the unlabelled images have annotations."
    return f"<section><h2>Pseudo-labels</h2>{_notes(notes)}{_table(head, bodies(), words)}</section>"


def _thresholds(record: Mapping[str, Any]) -> str:
    """The threshold of each class, or the range of thresholds if there are many."""
    thresholds: Mapping[str, float] = record.get("thresholds", {})
    if len(thresholds) > MOST_THRESHOLDS:
        return f"{min(thresholds.values()):.2f} to {max(thresholds.values()):.2f}"
    return ", ".join(f"{name} {score:.2f}" for name, score in thresholds.items()) or "-"
