"""Section of report.html on kept and refused pseudo-labels: pictures, counts, and scores with thresholds by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sskd_fast.data.errors import DataError
from sskd_fast.method import title_of
from sskd_fast.report.label_choices import FATES, Choice, Fate, by_class, label_choices, score_histogram
from sskd_fast.report.label_pictures import COLORS, MOST_REFUSED, LabelPicture, LabelRow, label_rows
from sskd_fast.report.run_folder import RunFolder, cache_path
from sskd_fast.report.score_histogram import histogram_chart
from sskd_fast.report.unlabeled_images import unlabeled_images
from sskd_fast.rle import MaskError

MOST_CLASSES = 12
MOST_CHIPS: dict[Fate, int] = {"kept": 6, "unsure": 2, "refused": 2}
MOST_BYTES = 256 << 20


def choices_section(run: RunFolder) -> str:
    """Kept, unsure and refused predictions of each teacher that has labelled; "" if none has yet.

    Raises ValueError, naming the file, if the predictions or the labels of a teacher cannot be read.
    """
    if not run.statistics:
        return ""
    found = {teacher: _choices(run, teacher, record) for teacher, record in run.statistics.items()}
    choices = {teacher: own for teacher, own in found.items() if not isinstance(own, str)}
    missing = "".join(
        f"<p><b>{escape(title_of(teacher))}</b>: {escape(why)}</p>"
        for teacher, why in found.items()
        if isinstance(why, str)
    )
    cards = "".join(_card(teacher, own) for teacher, own in choices.items() if own)
    cards = f'<div class="two">{cards}</div>' if cards else ""
    return f"<section><h2>Pseudo-labels kept and refused</h2>{missing}{_gallery(run, choices)}{cards}</section>"


def _choices(run: RunFolder, teacher: str, record: Mapping[str, Any]) -> list[Choice] | str:
    """The fate of each prediction of a teacher, or a sentence that says why it is unknown."""
    if not record.get("thresholds"):
        return "its labels are the hidden true ones, so no prediction was kept or refused."
    if record.get("shards"):
        place = f"{record['shards']} shards in pseudo_labels/{teacher}/"
        return f"its labels are in {place}; the refused predictions were not kept, so no picture is drawn."
    predictions = cache_path(run.path, teacher, "unlabeled")
    for file in (predictions, run.path / "pseudo_labels" / f"{teacher}.json"):
        name = file.relative_to(run.path)
        if not file.exists():
            return f"{name} has been deleted, so the refused predictions are no longer known."
        if file.stat().st_size > MOST_BYTES:
            size = f"{file.stat().st_size / 2**20:.0f} MB"
            return f"{name} has {size}; predictions are shown from files of up to {MOST_BYTES >> 20} MB."
    raw, labels = run.teacher_predictions(teacher), run.teacher_labels(teacher)
    names = {int(c["id"]): str(c["name"]) for c in (run.ground_truth or {}).get("categories", [])}
    try:
        choices = label_choices(raw, labels, names, record["thresholds"])
    except ValueError as error:
        name = predictions.relative_to(run.path)
        return f"{name} is not what its labels were chosen from ({error}); run its next stage again."
    return choices


def _gallery(run: RunFolder, choices: Mapping[str, Sequence[Choice]]) -> str:
    if not any(choice.fate == "kept" for own in choices.values() for choice in own):
        return ""
    try:
        rows = label_rows(unlabeled_images(run.path, run.settings.get("data") or {}), choices)
    except (DataError, MaskError) as error:
        return f"<p>The unlabelled images cannot be shown: {escape(str(error))}</p>"
    legend = "".join(
        f'<span><i class="swatch {fate}"></i>{words}</span>'
        for fate, words in (
            ("kept", "kept as a label"),
            ("unsure", "unsure: neither object nor background in training"),
            ("refused", f"refused: the {MOST_REFUSED} highest scores under the threshold"),
        )
    )
    return (
        "<p>Unlabelled images, spread evenly over those that have a label, not cherry-picked. Each prediction is shown "
        f'with its score and the threshold of its class.</p><p class="legend">{legend}</p>'
        f'<div class="gallery">{"".join(_row(row) for row in rows)}</div>'
    )


def _row(row: LabelRow) -> str:
    problem = f'<p class="soft">{escape(row.problem)}</p>' if row.problem else ""
    figures = "".join(_figure(row.file_name, picture) for picture in row.pictures)
    return f'<div class="image"><h3>{escape(row.file_name)}</h3>{problem}<div class="columns">{figures}</div></div>'


def _figure(file_name: str, picture: LabelPicture) -> str:
    title = title_of(picture.teacher)
    numbered = [*enumerate(picture.shown, 1)]
    by_fate = {fate: [(number, choice) for number, choice in numbered if choice.fate == fate] for fate in MOST_CHIPS}
    summary = ", ".join(f"{len(own)} {fate}" for fate, own in by_fate.items()) + " shown"
    chips = "".join(_chip(*pair) for fate, own in by_fate.items() for pair in own[: MOST_CHIPS[fate]])
    left = sum(max(0, len(own) - MOST_CHIPS[fate]) for fate, own in by_fate.items())
    chips += f"<li>{left} more</li>" if left else ""
    return (
        f'<figure><img src="{picture.source}" width="{picture.width}" height="{picture.height}" loading="lazy" '
        f'alt="{escape(f"{file_name}, {title}: {summary}")}"><figcaption><b>{escape(title)}</b>{summary}'
        f'<ul class="chips">{chips}</ul></figcaption></figure>'
    )


def _chip(number: int, choice: Choice) -> str:
    sign = "≥" if choice.score >= choice.threshold else "&lt;"
    label = f"{number} " if choice.fate == "kept" else ""
    digits = 2 if f"{choice.score:.2f}" != f"{choice.threshold:.2f}" else 4
    return (
        f'<li class="{choice.fate}"><i style="background:rgb{COLORS[choice.fate]}"></i>'
        f"{label}{escape(choice.name)} {choice.score:.{digits}f} {sign} {choice.threshold:.{digits}f}</li>"
    )


def _card(teacher: str, choices: Sequence[Choice]) -> str:
    """Counts by class, and the scores of the classes with most predictions."""
    classes = by_class(choices)
    histograms = [score_histogram(name, own) for name, own in list(classes.items())[:MOST_CLASSES]]
    charts = "".join(f"<div><h4>{escape(h.name)}</h4>{histogram_chart(h)}</div>" for h in histograms)
    left = len(classes) - len(histograms)
    more = f" The {left} classes with fewer predictions have no chart." if left else ""
    return (
        f'<div class="card"><h3>{escape(title_of(teacher))}</h3>{_table(classes)}'
        '<p class="soft">Predictions by score, heights logarithmic; the line is the threshold of the class.'
        f'{more}</p><div class="histograms">{charts}</div></div>'
    )


def _table(classes: Mapping[str, Sequence[Choice]]) -> str:
    counts = {name: Counter(choice.fate for choice in own) for name, own in classes.items()}
    lines = [(name, f"{classes[name][0].threshold:.2f}", own) for name, own in counts.items()]
    lines.append(("All", "", sum(counts.values(), Counter())))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{threshold}</td>'
        + "".join(f"<td>{own[fate]}</td>" for fate in FATES)
        + "</tr>"
        for name, threshold, own in lines
    )
    head = "".join(f'<th scope="col">{t}</th>' for t in ("Class", "From", "Kept", "Unsure", "Refused", "Doubled"))
    return (
        '<p class="soft">Predictions by class and what became of them. Refused: score too low. Doubled: score high '
        "enough, but it overlaps a better one or is beyond the limit of an image.</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )
