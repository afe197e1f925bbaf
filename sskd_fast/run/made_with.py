"""The bases of a run's models and figures."""

from __future__ import annotations

from sskd_fast.method import STAGE, Stage
from sskd_fast.run.basis import Basis, dotted, foundations, settings_that_matter, without_idle
from sskd_fast.run.models import RunModels

# Settings that affect measuring, besides those of prediction.
_OF_MEASURING = ("data.balance_key", "data.group_key", "teacher.tile", "student.tile")


def made_with(models: RunModels, stage: Stage) -> Basis:
    """The basis of a stage's model, including all that it builds on."""
    config, names = models.config, foundations(models.config, stage.name)
    files = ["labels", "labelled images"]
    if any(STAGE[name].labels_from is not None for name in names):
        files += ["unlabelled images"] + ["hidden labels"] * config.pseudo_labels.truth
    kinds = {STAGE[name].model for name in names}
    contents = models.contents
    weights = [file for file in contents if file.partition(" ")[0] in kinds]
    settings = dict(dotted(settings_that_matter(config, names)))
    return Basis(settings, {_named(models, file): contents[file] for file in (*files, *weights)})


def measured_with(models: RunModels) -> Basis:
    """The basis of measuring: validation images and labels, and the inference settings."""
    settings = dict(dotted(without_idle(models.config)))
    wanted = {n: value for n, value in settings.items() if n.startswith("predict.") or n in _OF_MEASURING}
    files = ("validation labels", "validation images")
    return Basis(wanted, {_named(models, file): models.contents[file] for file in files})


def _named(models: RunModels, file: str) -> str:
    """The kind of a file, with its path in the settings."""
    data = models.config.data.with_absolute_paths()
    place = {
        "labels": data.labeled or data.root,
        "labelled images": data.images or data.root,
        "unlabelled images": data.unlabeled or data.images or data.root,
        "hidden labels": data.labeled or data.root,
        "validation labels": data.val or data.root,
        "validation images": data.val_images or data.images or data.root,
    }.get(file)
    return f"{file} ({place})" if place else file
