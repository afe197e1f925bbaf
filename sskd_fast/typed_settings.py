"""Dataclasses built from plain data, such as YAML or JSON, with all names and types checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


class ConfigError(ValueError):
    """Raised for a setting that does not exist or has an invalid value."""


def build(kind: type[T], tree: Mapping[str, Any], place: str) -> T:
    """Builds a dataclass from a mapping and checks all names and types. Raises ConfigError, which names `place`."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        where = f"{place}.{key}" if place else str(key)
        if key not in known:
            raise ConfigError(f"{where}: no such setting; {place or 'the configuration'} has {', '.join(known)}")
        values[key] = _convert(hints[key], value, where)
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}" if place else str(error)) from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: found {value!r}, expected a section of settings")
        return build(typing.cast(type[Any], hint), value, where)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where}: found {value!r}, expected one of {', '.join(map(str, options))}")
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        several = [o for o in options if typing.get_origin(o) is tuple] if isinstance(value, (list, tuple)) else []
        return _convert(next(o for o in several or options if o is not type(None)), value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: found {value!r}, expected a mapping")
        return dict(value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (options[-1] is not Ellipsis and len(value) != len(options)):
            raise ConfigError(
                f"{where}: found {value!r}, expected a list{'' if options[-1] is Ellipsis else f' of {len(options)}'}"
            )
        if options[0] is str:  # an id such as 17 in a list of names
            value = [str(v) if type(v) is int else v for v in value]
        return tuple(_convert(options[0], v, where) for v in value)
    value = number(value) if hint in (float, int) else value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: found {value!r}, expected {hint.__name__}")
    return value


def number(value: Any) -> Any:
    """Converts text such as 1e-4, which YAML 1.1 reads as text, to a number; returns other values unchanged."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with the settings of `top` merged over its own, section by section."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        merged[key] = overlay(below, value) if both else value  # type: ignore[arg-type]
    return merged
