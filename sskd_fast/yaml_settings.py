"""The configuration of a run: presets, YAML files and dotted overrides, merged in this order and checked."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sskd_fast.settings import Config
from sskd_fast.typed_settings import ConfigError, build, number, overlay
from sskd_fast.yaml_text import from_yaml

PRESETS = Path(__file__).parent / "presets"


def load_config(files: Sequence[Path], overrides: Sequence[str] = (), preset: str = "default") -> Config:
    """Merges the preset, each YAML file, and dotted overrides ("train.lr=1e-4"), later ones over earlier ones.

    A file may name its own preset ("preset: paper"), which is merged right before the file.  Raises ConfigError naming
    the setting or file, the value found and the options, also if such a file would cover another `preset`.
    """
    tree = read_preset("default")
    if preset != "default":
        tree = overlay(tree, read_preset(preset))
    for file in files:
        settings = read_yaml(file)
        below = settings.pop("preset", None)
        if below is not None and preset not in ("default", str(below)):
            raise ConfigError(
                f"{file}: names the preset {below!r}, which would cover --preset {preset}; leave --preset out, or copy "
                "the file without that line"
            )
        for part in ([] if below is None else [read_preset(str(below), f"{file}: preset")]) + [settings]:
            tree = overlay(tree, part)
    for text in overrides:
        key, sep, value = text.partition("=")
        if not sep or not key:
            raise ConfigError(f"override {text!r}: expected section.setting=value, such as train.lr=1e-4")
        nested: Any = parse_override(key, value)
        for name in reversed(key.split(".")):
            nested = {name: nested}
        tree = overlay(tree, nested)
    return build(Config, tree, "")


def read_preset(name: str, place: str = "--preset") -> dict[str, Any]:
    """The settings of a preset, on top of those of the preset that it stands on, if it names one.

    Raises ConfigError listing all presets if there is none of this name.
    """
    path = PRESETS / f"{name}.yaml"
    if not path.exists():
        names = sorted(p.stem for p in PRESETS.glob("*.yaml"))
        raise ConfigError(f"{place}: found {name!r}, expected one of {', '.join(names)}")
    tree = read_yaml(path)
    below = tree.pop("preset", None)
    return tree if below is None else overlay(read_preset(str(below), f"{path}: preset"), tree)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.  Raises ConfigError if it cannot be read or is not a mapping."""
    try:
        tree = from_yaml(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(
            f"--config {path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"--config {path}: found {type(tree).__name__}, expected a mapping of settings")
    return tree


def parse_override(key: str, text: str) -> Any:
    """The value of an override: the text itself for text settings (a folder may be called 2024), else parsed as YAML.

    Text such as 1e-4 becomes a number, although YAML 1.1 reads it as text.
    """
    if _type_of(key) is str:
        quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if quoted else text
    try:
        value = from_yaml(text)
    except yaml.YAMLError:
        return text
    return number(value)


def _type_of(key: str) -> Any:
    """The type of a dotted setting; None if there is no such setting (`build` then raises, with its place)."""
    hint: Any = Config
    for name in key.split("."):
        hint = typing.get_type_hints(hint).get(name) if dataclasses.is_dataclass(hint) else None
    return hint


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML with all settings; `load_config` reads it back."""
    tree = dataclasses.asdict(
        config, dict_factory=lambda items: {k: list(v) if isinstance(v, tuple) else v for k, v in items}
    )
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
