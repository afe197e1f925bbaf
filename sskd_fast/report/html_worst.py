"""Section of report.html on the final student's worst validation images: ground truth beside its predictions."""

from __future__ import annotations

from html import escape

from sskd_fast.evaluation import ImageQuality, image_qualities
from sskd_fast.method import title_of
from sskd_fast.report.html_images import image_figures
from sskd_fast.report.overlays import overlay_rows
from sskd_fast.report.run_folder import RunFolder
from sskd_fast.report.table import final_student, measured_rows

WORST_IMAGES = 10


def worst_section(run: RunFolder) -> str:
    """The ten worst images, worst first; "" if no distilled student has been measured yet.

    Raises ValueError, naming the file, if a prediction is on an image that the ground truth does not have.
    """
    student = final_student(measured_rows(run.metrics))
    if student not in run.predictions or run.ground_truth is None:
        return ""
    try:
        qualities = image_qualities(run.ground_truth, run.predictions[student])
    except ValueError as error:
        file = run.path / "predictions" / f"{student}.json"
        raise ValueError(f"{file}: {error}; run the stage that writes it again") from error
    worst = qualities.worst(WORST_IMAGES)
    if not worst:
        return ""
    titles = {"ground_truth": "ground truth", student: title_of(student).lower()}
    rows = overlay_rows(
        run.ground_truth,
        run.images_dir,
        {student: run.predictions[student]},
        titles=titles,
        image_ids=[image.image_id for image in worst],
        minimum_score=qualities.score,
    )
    figures = "".join(image_figures(row, titles, _counts(image)) for row, image in zip(rows, worst, strict=True))
    heading = "The worst validation image" if len(worst) == 1 else f"The {len(worst)} worst validation images"
    return (
        f"<section><h2>{heading}</h2><p>Images are ordered by the panoptic quality of the {escape(titles[student])} at "
        "IoU 0.5. It is the sum of the IoU of matches, over matches plus half of the missed and half of the false; 1 "
        "is perfect. Of equal ones, the image with more missed objects comes first. An object of the wrong class "
        "counts as missed and as false; a poorly outlined one has an IoU under 0.75. Predictions count, and are drawn, "
        f"from score {qualities.score:.2f} up, which gives the highest F1 over all images. Images without objects and "
        f'predictions are left out.</p><div class="two">{figures}</div></section>'
    )


def _counts(image: ImageQuality) -> str:
    return (
        f"Quality {image.quality:.2f}: {image.missed} of {image.objects} objects missed, {image.false} false, "
        f"{image.poor} poorly outlined"
    )
