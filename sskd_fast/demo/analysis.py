"""Instances that teacher and student find in an image, as pictures, a table and sentences."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from PIL import Image

from sskd_fast.data.errors import DataError, named
from sskd_fast.data.image_folders import IMAGE_SUFFIXES
from sskd_fast.method import STAGES, title_of
from sskd_fast.predictor import Prediction, Predictor, load
from sskd_fast.report.numbers import count_text
from sskd_fast.report.overlays import SAME_OBJECT_IOU, Shown, draw, results_shown
from sskd_fast.report.pictures import enlarged

# Limits for the long side of a picture, in pixels: smaller images are enlarged, larger ones reduced.
SMALLEST, LARGEST = 540, 960
# Prediction time is the median of this many runs, or of fewer once they have taken this many seconds.
TIMED, TIMED_SECONDS = 5, 0.5


@dataclass(frozen=True)
class Model:
    """A column of the page. title: display name, such as "Refined student"."""

    title: str
    predictor: Predictor


@dataclass(frozen=True)
class Found:
    """Instances that one model finds in an image.

    parameters: number of parameters used in inference.  milliseconds: time of a prediction after warm-up.
    """

    title: str
    parameters: int
    milliseconds: float
    prediction: Prediction


@dataclass(frozen=True)
class Analysis:
    """An image as the models see it, with all predictions, so it can be redrawn for another score."""

    name: str
    picture: Image.Image
    found: tuple[Found, ...]

    def above(self, score: float) -> Analysis:
        """A copy with only the instances of at least this score."""
        return replace(self, found=tuple(replace(f, prediction=f.prediction.above(score)) for f in self.found))


def models_of(place: str, device: str) -> list[Model]:
    """Teacher and student of a run's folder, or the single model of any other place.

    Raises the errors of `predictor.load`.
    """
    stages = [stage.name for stage in reversed(STAGES) if stage.model == "teacher"]
    teacher = next((s for s in stages if (Path(place) / "checkpoints" / f"{s}.safetensors").is_file()), None)
    student = load(place, device=device)
    predictors = [student] if teacher is None else [load(place, stage=teacher, device=device), student]
    return [Model(title_of(str(p.description.facts.get("stage", "model"))), p) for p in predictors]


def analyse(models: Sequence[Model], image: Path) -> Analysis:
    """Predicts an image file with each model.  Raises DataError if the file cannot be read."""
    found = tuple(_find(model, image) for model in models)
    pixels = models[-1].predictor.read_image(image).permute(1, 2, 0).numpy()
    long_side = min(max(*pixels.shape[:2], SMALLEST), LARGEST)
    return Analysis(image.name, enlarged(pixels, short_side=1, long_side=long_side), found)


def _find(model: Model, image: Path) -> Found:
    predictor = model.predictor
    pixels = predictor.read_image(image)
    prediction = predictor.find([pixels])[0]  # also the warm-up for images of this size
    seconds: list[float] = []
    while len(seconds) < TIMED and sum(seconds) < TIMED_SECONDS:
        start = time.perf_counter()
        predictor.find([pixels])
        seconds.append(time.perf_counter() - start)
    return Found(model.title, predictor.model.parameter_count(), 1000 * statistics.median(seconds), prediction)


def shown_instances(analysis: Analysis) -> list[list[Shown]]:
    """The instances of each model. Those that match one of the first model share its colour and number."""
    first, *others = [found.prediction for found in analysis.found]
    numbered = zip(first.rles, first.names, first.scores, strict=True)
    reference = [Shown(rle, name, score, i, True) for i, (rle, name, score) in enumerate(numbered, start=1)]
    return [reference, *(results_shown(p.to_coco(0), reference, p.size, _names(p)) for p in others)]


def _names(prediction: Prediction) -> dict[int, str]:
    return dict(zip(prediction.category_ids, prediction.class_names, strict=True))


def table(analysis: Analysis) -> str:
    """An HTML table with one column per model: parameters, time, instances, and instances by class."""
    predictions = [found.prediction for found in analysis.found]
    counts = [Counter(prediction.names) for prediction in predictions]
    names = [name for name, _ in sum(counts, Counter()).most_common()]
    rows = [
        ("", "Parameters", [count_text(found.parameters) for found in analysis.found]),
        ("", "Prediction time", [f"{found.milliseconds:.1f} ms" for found in analysis.found]),
        ("total", "Instances", [str(len(prediction)) for prediction in predictions]),
        *(("class", name, [str(count[name]) for count in counts]) for name in names),
    ]
    head = "".join(f'<th scope="col">{escape(found.title)}</th>' for found in analysis.found)
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for kind, name, cells in rows
    )
    return f'<table class="models"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'


def note(analysis: Analysis, shown: Sequence[Sequence[Shown]], score: float) -> str:
    """Sentences on the image and on the agreement of two models."""
    height, width = analysis.found[0].prediction.size
    image = f"{analysis.name}, {width} x {height} pixels."
    if not any(shown):
        return f"{image} No instance has a score of {score:.2f} or more: lower the score to see less certain ones."
    return f"{image} {_agreement(analysis.found, shown)}" if len(shown) == 2 else image


def _agreement(found: Sequence[Found], shown: Sequence[Sequence[Shown]]) -> str:
    teacher, student = (each.title.lower() for each in found)
    same = sum(instance.number is not None for instance in shown[1])
    alone = f", and {len(shown[1]) - same} more, in white" if len(shown[1]) > same else ""
    return (
        f"The {student} finds {same} of the {teacher}'s {len(shown[0])} instances (mask IoU at least "
        f"{SAME_OBJECT_IOU}), drawn in the same colour{alone}."
    )


def view(analysis: Analysis, score: float) -> tuple[list[Image.Image], str]:
    """The pictures, and the table with its note as HTML, for instances with at least this score."""
    chosen = analysis.above(score)
    shown = shown_instances(chosen)
    pictures = [draw(analysis.picture, instances) for instances in shown]
    return pictures, f'{table(chosen)}<p class="note">{escape(note(chosen, shown, score))}</p>'


def trouble(error: DataError) -> str:
    """An HTML error message for an unreadable image, with the cure and without server paths."""
    problem = error.problems[0]
    name = Path(problem.file).name
    found = problem.found.replace(str(problem.file), name)
    formats = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    return f'<div id="trouble" role="alert">{escape(name)}: {escape(found)}. Choose another file ({formats}).</div>'


def heading(models: Sequence[Model]) -> str:
    """The heading of the page as Markdown: the models and the classes they find."""
    titles = " and ".join(model.title if i == 0 else model.title.lower() for i, model in enumerate(models))
    return f"# {titles}\n\nFinds {escape(named(models[-1].predictor.class_names, 12))}. Images stay on this machine."
