"""The model card of a trained model: what it finds, how well, what it was made from, how to use it."""

from __future__ import annotations

from typing import Any

import yaml

from sskd_fast.models.checkpoint import Description, Origin
from sskd_fast.report import table_text, verdict_words

_USE = """```python
import sskd_fast

predictor = sskd_fast.load("{name}")
found = predictor.predict("image.png", score=0.5)
print(found.names, found.scores, found.boxes, found.masks.shape)
```"""


def card_text(description: Description, name: str = "OWNER/NAME") -> str:
    """The card as Markdown with the hub's metadata on top; name: of the repository, for the example."""
    d = description
    header: dict[str, Any] = {
        "library_name": "sskd_fast", "pipeline_tag": "image-segmentation", "tags": ["instance-segmentation"],
    }  # fmt: skip
    licences = {o.licence for o in (d.origins.teacher, d.origins.backbone, d.origins.data)} - {""}
    if len(licences) == 1:
        header["license"] = licences.pop().lower()
    elif licences:
        header |= {"license": "other", "license_name": "several", "license_link": "README.md#made-from"}
    stage = str(d.facts.get("stage", "model")).replace("_", " ")
    sections = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# Instance segmentation: {', '.join(d.class_names)}",
        f"The {stage} of a run of sskd_fast {d.version}.",
        f"## Figures\n\n{_figures(d)}",
        f"## Made from\n\n{_origins(d)}",
        f"## Use\n\n{_USE.format(name=name)}\n\n{_inference(d)}",
    ]
    return "\n\n".join(sections) + "\n"


def _figures(description: Description) -> str:
    figures = description.figures
    if not figures:
        return "Not measured on validation images."
    metrics = {key: value for key, value in figures.items() if key not in ("ap", "ap50", "gain")}
    gain = figures.get("gain")
    details = {str(description.facts.get("stage")): {"gain": gain}} if gain else {}
    return (
        f"Mask AP in percent on {figures['val_images']} validation images of {figures['dataset']}, "
        f"{figures['labeled_images']} labelled and {figures['unlabeled_images']} unlabelled images, "
        f"seed {figures['seed']}:\n\n```\n{table_text(metrics)}\n```\n\n{verdict_words(metrics, details)}"
    )


def _origins(description: Description) -> str:
    def line(title: str, origin: Origin) -> str:
        return f"| {title} | {origin.licence or 'not stated'} | {origin.source or 'not stated'} |"

    o = description.origins
    rows = [line("teacher", o.teacher), line("backbone", o.backbone), line("data", o.data)]
    return "\n".join(["| | licence | source |", "|---|---|---|", *rows])


def _inference(description: Description) -> str:
    i = description.inference
    stretch = "stretched by percentiles, " if description.stretch else ""
    return (
        f"Images are {stretch}scaled by {i.zoom:.3g} and seen in tiles of {i.tile[0]} x {i.tile[1]} pixels that share "
        f"{i.overlap}; at most {i.max_detections} instances an image."
    )
