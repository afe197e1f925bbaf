"""report.html: the results of a run in one file that opens offline, rewritten as a whole after every stage."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from sskd_fast.files import write_text
from sskd_fast.method import BASELINES, STAGES, title_of, words_of
from sskd_fast.report.document import document
from sskd_fast.report.html_choices import choices_section
from sskd_fast.report.html_images import images_section
from sskd_fast.report.html_models import models_section
from sskd_fast.report.html_training import curves_section, labels_section, target_precision
from sskd_fast.report.html_worst import worst_section
from sskd_fast.report.numbers import ap_text, difference_text
from sskd_fast.report.run_folder import RunFolder, read_run
from sskd_fast.report.table import final_student, measured_rows, parameter_ratio
from sskd_fast.report.verdict import Figures, verdict


def write_report(run_folder: Path) -> Path:
    """Write report.html from the files in a run's folder so far, and return its path.

    Reads, if they exist: metrics.json, log.jsonl, config.yaml, predictions/<row name>.json (COCO results) and
    details.json (AP by size, class and group). It also reads ground_truth.json (a COCO dict of the validation
    images, with "images_dir") and label_statistics.json (row name of a teacher -> the fields of
    LabelStatistics). The rest are the teachers' predictions in cache/, their labels in pseudo_labels/, and the
    images themselves.
    The file is replaced in one step, so a reader never sees half of it.

    Raises ValueError, naming the file, if one of these cannot be read.
    """
    run = read_run(run_folder)
    path = run_folder / "report.html"
    write_text(path, page(run))
    return path


def page(run: RunFolder) -> str:
    """The whole page as text."""
    dataset = str(run.metrics.get("dataset", run.path.name))
    sections = [
        _verdict(run.metrics, run.details),
        _warnings(run),
        _inventory(run),
        models_section(run.metrics, run.details),
        images_section(run),
        worst_section(run),
        curves_section(run.log),
        labels_section(run.statistics, target_precision(run.settings)),
        choices_section(run),
        _configuration(run.configuration),
    ]
    return document(f"{dataset}: distillation report", _header(run.metrics, escape(dataset)), sections)


def _header(metrics: dict[str, Any], dataset: str) -> str:
    measured = len(set(measured_rows(metrics)) & {stage.name for stage in STAGES})
    state = "complete" if measured == len(STAGES) else f"{measured} of {len(STAGES)} models measured"
    facts = [
        (metrics[key], words)
        for key, words in (
            ("labeled_images", "labelled images"),
            ("unlabeled_images", "unlabelled images"),
            ("val_images", "validation images"),
        )
        if key in metrics
    ]
    items = [f"<li><b>{value:,}</b> {words}</li>".replace(",", "\u202f") for value, words in facts]
    items += [f"<li>seed <b>{escape(str(metrics['seed']))}</b></li>"] if "seed" in metrics else []
    items.append(f"<li>{state}</li>")
    return (
        f'<header><p class="eyebrow">Semi-supervised distillation · report of a run</p><h1>{dataset}</h1>'
        f'<ul class="facts">{"".join(items)}</ul></header>'
    )


def _verdict(metrics: dict[str, Any], details: dict[str, Any]) -> str:
    result = verdict(metrics, details)
    rows = measured_rows(metrics)
    student = final_student(rows)
    tiles: list[tuple[str, str]] = []
    if student is not None:
        tiles.append((f"{ap_text(rows[student]['ap'])} AP", title_of(student).lower()))
        teacher = Figures(metrics, details, rows).teacher_beside(student) or ""
        for other in (*BASELINES[::-1], teacher):
            if other in rows:
                change = difference_text(rows[student]["ap"] - rows[other]["ap"])
                tiles.append((change, f"AP against the {words_of(other)}"))
        ratio = parameter_ratio(rows.get(teacher, {}), rows[student])
        if ratio is not None:
            tiles.append((f"{ratio:.1f}\u00d7", "fewer parameters than the teacher"))
    cells = "".join(f"<div><dt>{escape(words)}</dt><dd>{escape(number)}</dd></div>" for number, words in tiles)
    return (
        f'<div class="card verdict {result.tone}" role="region" aria-label="Verdict"><p class="eyebrow">Verdict</p>'
        f"<h2>{escape(result.headline)}</h2>"
        + (f'<dl class="tiles">{cells}</dl>' if cells else "")
        + "".join(f"<p>{escape(sentence)}</p>" for sentence in result.sentences)
        + "</div>"
    )


def _warnings(run: RunFolder) -> str:
    found = [(record.get("stage"), record["message"]) for record in run.log if record.get("event") == "warning"]
    found += [(name, message) for name, record in run.statistics.items() for message in record.get("warnings", [])]
    messages = [f"{title_of(str(name))}: {message}" if name else str(message) for name, message in found]
    if not messages:
        return ""
    items = "".join(f"<li>{escape(message)}</li>" for message in dict.fromkeys(messages))
    return f'<div class="card warnings" role="region" aria-label="Warnings"><h2>Warnings</h2><ul>{items}</ul></div>'


def _inventory(run: RunFolder) -> str:
    """The inventory of the image sets, as of the last start or resume of the run."""
    found = [record["lines"] for record in run.log if record.get("event") == "inventory"]
    if not found:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in found[-1])
    return f"<section><h2>Data</h2><ul>{items}</ul></section>"


def _configuration(text: str) -> str:
    if not text:
        return ""
    return (
        "<section><h2>Configuration</h2><details><summary>Every setting of this run</summary>"
        f'<pre class="card">{escape(text)}</pre></details></section>'
    )
