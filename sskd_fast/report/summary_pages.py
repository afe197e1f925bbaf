"""The summary of several seeds in words, as Markdown and as a page; summary.py describes its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sskd_fast.method import stage_of, words_of
from sskd_fast.report.document import document
from sskd_fast.report.numbers import ap_text, count_text, difference_text, is_number, seconds_text
from sskd_fast.report.table import images_of, images_seen, plain_table

Summary = Mapping[str, Any]


def summary_words(summary: Summary) -> str:
    """The paragraphs of the summary in one line."""
    return " ".join(summary_paragraphs(summary))


def summary_paragraphs(summary: Summary) -> list[str]:
    """The final student's AP and the gains over the seeds, in words, with a note on gains that are not shown."""
    student = next((gain["model"] for gain in summary["gains"]), None)
    if student is None:
        lacking = "needs a measured student and a measured model to compare it with"
        return [f"No gains yet: every {summary['unit']} {lacking}."]
    row = next(row for row in summary["rows"] if row["name"] == student)
    count, unit = len(summary["seeds"]), summary["unit"]
    gains: dict[str, list[str]] = {}
    for gain in summary["gains"]:
        gains.setdefault(gain["model"], []).append(f"{_gain_text(gain, unit)} against {_against(gain)}")
    return [
        f"The {words_of(student)} reaches {_spread_text(row['ap'])} AP over {count} {unit}{'s' if count > 1 else ''}, "
        f"trained on {images_of(student, _facts(summary))}.",
        f"Differences: {'; '.join(gains.pop(student))}.",
        *(f"The {words_of(model)}: {'; '.join(texts)}." for model, texts in gains.items()),
        interval_words(summary),
        *summary["notes"],
    ]


def interval_words(summary: Summary) -> str:
    """A sentence that says what the intervals are taken over."""
    unit = summary["unit"]
    images = f"the same images for all {unit}s" if summary["same_images"] else f"each {unit}'s own images"
    return (
        f"Intervals are of 95 % over {unit}s and validation images ({images}). A bootstrap draws {unit}s and, for each "
        f"of them, images; t is Student's interval over the {unit}s alone."
    )


def _facts(summary: Summary) -> dict[str, Any]:
    """The summary as the metrics of one run."""
    seen = {row["name"]: row.get("unlabeled_seen", {}).get("mean") for row in summary["rows"]}
    return {**summary, "rows": [{"name": name, "unlabeled_seen": mean} for name, mean in seen.items()]}


def _against(gain: Mapping[str, Any]) -> str:
    stride = "" if gain["stride"] is None else f" at stride {gain['stride']:g}"
    return f"the {words_of(gain['against'])}{stride}"


def _gain_text(gain: Mapping[str, Any], unit: str) -> str:
    """ "+5.7 AP (+2.1 to +9.0; t -0.3 to +11.7, not shown by the seeds alone)"."""
    text = f"{difference_text(gain['ap'])} AP"
    if not is_number(gain["low"]) or not is_number(gain["high"]):
        return text
    inside = [_ends(gain["low"], gain["high"])]
    if is_number(gain["t_low"]) and is_number(gain["t_high"]):
        inside.append(f"t {_ends(gain['t_low'], gain['t_high'])}")
    if gain["low"] <= 0 <= gain["high"]:
        inside.append("no difference shown")
    elif len(inside) > 1 and gain["t_low"] <= 0 <= gain["t_high"]:
        inside.append(f"not shown by the {unit}s alone")
    return f"{text} ({'; '.join(inside)})"


def _ends(low: float, high: float) -> str:
    return f"{difference_text(low)} to {difference_text(high)}"


def _spread_text(figure: Mapping[str, Any]) -> str:
    return ap_text(figure["mean"]) + (f" ± {ap_text(figure['sd'])}" if is_number(figure["sd"]) else "")


def row_columns(summary: Summary) -> dict[str, list[str]]:
    """Column title -> one cell for each row: mean and spread, every seed's AP, and the mean cost."""
    rows = summary["rows"]
    columns = {"model": [row["title"] for row in rows]}
    columns["AP"] = [_spread_text(row["ap"]) for row in rows]
    for number, seed in enumerate(summary["seeds"]):
        columns[f"{summary['unit']} {seed}"] = [ap_text(row["ap"]["by_seed"][number]) for row in rows]
    columns["AP50"] = [_spread_text(row["ap50"]) if "ap50" in row else "-" for row in rows]
    columns["parameters"] = [count_text(row["params"]) for row in rows]
    means = [{key: figure["mean"] for key, figure in row.items() if isinstance(figure, Mapping)} for row in rows]
    columns["training"] = [seconds_text(mean.get("seconds")) for mean in means]
    if any("steps" in mean for mean in means):
        columns["CPU time"] = [seconds_text(mean.get("cpu_seconds")) for mean in means]
        columns["labelling"] = [seconds_text(mean.get("label_seconds")) for mean in means]
        columns["steps"] = [count_text(mean.get("steps")) for mean in means]
        columns["images seen"] = [images_seen(mean) for mean in means]
    return columns


def gain_columns(summary: Summary) -> dict[str, list[str]]:
    """Column title -> one cell for each gain: mean, spread, both intervals and every seed's gain."""
    gains, unit = summary["gains"], summary["unit"]
    columns = {
        "difference": [f"{words_of(gain['model'])} - {_against(gain).removeprefix('the ')}" for gain in gains],
        "AP": [difference_text(gain["ap"]) for gain in gains],
        "sd": [ap_text(gain["sd"]) for gain in gains],
        f"over {unit}s and images": [_cell(gain["low"], gain["high"]) for gain in gains],
        f"t over {unit}s": [_cell(gain["t_low"], gain["t_high"]) for gain in gains],
    }
    for number, seed in enumerate(summary["seeds"]):
        columns[f"{unit} {seed}"] = [difference_text(gain["by_seed"][number]) for gain in gains]
    return columns


def _cell(low: Any, high: Any) -> str:
    return _ends(low, high) if is_number(low) and is_number(high) else "-"


def summary_text(summary: Summary) -> str:
    """The tables and the words, for a terminal; gains have a table if there are any."""
    tables = [plain_table(row_columns(summary))]
    if summary["gains"]:
        tables.append(plain_table(gain_columns(summary)))
    return "\n\n".join([*tables, summary_words(summary)])


def markdown(summary: Summary) -> str:
    """summary.md."""
    title = f"# {_title(summary)}"
    tables = [_markdown_table(row_columns(summary))]
    if summary["gains"]:
        tables.append(_markdown_table(gain_columns(summary)))
    return "\n\n".join([title, summary_words(summary), *tables]) + "\n"


def _title(summary: Summary) -> str:
    return f"{summary.get('dataset', 'run')}: {summary['unit']}s {', '.join(map(str, summary['seeds']))}"


def _markdown_table(columns: Mapping[str, Sequence[str]]) -> str:
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(summary: Summary) -> str:
    """summary.html as text."""
    facts = [
        (summary[key], words)
        for key, words in (
            ("labeled_images", "labelled images"),
            ("unlabeled_images", "unlabelled images"),
            ("val_images", "validation images"),
        )
        if key in summary
    ]
    items = "".join(f"<li><b>{value}</b> {words}</li>" for value, words in facts)
    header = (
        f'<header><p class="eyebrow">Semi-supervised distillation · several {summary["unit"]}s</p>'
        f'<h1>{escape(_title(summary))}</h1><ul class="facts">{items}</ul></header>'
    )
    kinds = [stage.model if (stage := stage_of(row["name"])) else "student" for row in summary["rows"]]
    sections = [
        f'<div class="card">{"".join(f"<p>{escape(words)}</p>" for words in summary_paragraphs(summary))}</div>',
        f"<section><h2>Models</h2>{_html_table(row_columns(summary), kinds)}</section>",
        f"<section><h2>Differences</h2>{_html_table(gain_columns(summary), [])}</section>" if summary["gains"] else "",
    ]
    return document(_title(summary), header, sections)


def _html_table(columns: Mapping[str, Sequence[str]], kinds: Sequence[str]) -> str:
    """A table as HTML; kinds: the kind of each line's model, for its colour, or empty."""
    head = "".join(f'<th scope="col">{escape(title[0].upper() + title[1:])}</th>' for title in columns)
    body = ""
    for number, (name, *cells) in enumerate(zip(*columns.values(), strict=True)):
        key = f'<span class="key {kinds[number]}"></span>' if kinds else ""
        line = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        kind = f' class="{kinds[number]}"' if kinds else ""
        body += f'<tr{kind}><th scope="row">{key}{escape(name)}</th>{line}</tr>'
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
