"""Plain values from YAML text, by libyaml's parser if PyYAML has it, which is much faster."""

from __future__ import annotations

from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def from_yaml(text: str) -> Any:
    """The value that the text describes, None for an empty one. Raises yaml.YAMLError if it is not valid YAML."""
    return yaml.load(text, Loader=_LOADER)
