"""Names of the user's data set and of its default run folder, so that no two data sets share a folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from sskd_fast.files import encoded
from sskd_fast.settings import DataConfig
from sskd_fast.typed_settings import ConfigError
from sskd_fast.yaml_settings import read_yaml

# Subfolders that exports create in a data set.
_PARTS = re.compile(r"(train|training|val|valid|validation|test)(\d{4})?|annotations?|images?|labels?", re.IGNORECASE)


def data_name(data: DataConfig) -> str:
    """The name of the user's data set: the folder of its labels or, if that is a part such as train/, the folder above.

    "SET/train/_annotations.coco.json" and "SET/annotations/instances_train.json" both belong to SET.
    """
    folder = Path(data.labeled).resolve().parent if data.labeled else Path(data.root).resolve()
    while _PARTS.fullmatch(folder.name):
        folder = folder.parent
    return folder.name or "own"


def free_output(data: DataConfig) -> tuple[str, str]:
    """The default run folder of the user's data set, and a message if the plain one belongs to another data set."""
    folder, own = Path("runs") / data.name, _place(data.with_absolute_paths())
    named = folder.with_name(f"{folder.name}-{hashlib.sha256(encoded(own)).hexdigest()[:8]}")
    if named.exists():
        return str(named), ""
    theirs = _place_in(folder / "config.yaml")
    if theirs in (None, own):
        return str(folder), ""
    return str(named), f"{folder} holds a run on {theirs}: this one, on {own}, goes to {named}"


def _place(data: DataConfig) -> str:
    return data.labeled or data.root


def _place_in(config: Path) -> str | None:
    """The labels named in a run folder's settings, "other data" if none are named; None without settings."""
    if not config.exists():
        return None
    try:
        data = read_yaml(config).get("data") or {}
        return str(data.get("labeled") or data.get("root") or "other data")
    except (ConfigError, AttributeError):
        return "other data"
