"""A run on a few scenes, in which no stage has run: for tests of what stages train on."""

from __future__ import annotations

from pathlib import Path

import torch

from sskd_fast.data.embedded import write_scenes
from sskd_fast.run.models import RunModels
from sskd_fast.run.results import RunResults
from sskd_fast.run.sources import target_sources
from sskd_fast.yaml_settings import load_config


def models_of_scenes(folder: Path) -> RunModels:
    """11 labelled, 2 validation and 4 unlabelled scenes; settings of the smoke preset."""
    for seed, (name, count) in enumerate((("train", 11), ("val", 2), ("plain", 4))):
        write_scenes(folder, name, "target", count, seed=60 + seed)
    files = [f"data.labeled={folder / 'train.json'}", f"data.images={folder / 'train'}"]
    files += [f"data.val={folder / 'val.json'}", f"data.val_images={folder / 'val'}"]
    more = [f"data.unlabeled={folder / 'plain'}", "pseudo_labels.minimum_matches=2", "pseudo_labels.fold_steps=0.25"]
    config = load_config([], [*files, *more], "smoke")
    return RunModels(config, target_sources(config, folder), RunResults(folder, {}), torch.device("cpu"))
