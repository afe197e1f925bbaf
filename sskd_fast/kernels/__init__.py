"""The Triton kernels: kernels/ of a checkout, or the copy of it that a wheel has in this folder.

This package does not import Triton; its modules do.
"""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path

import torch

from sskd_fast import _backend, _env

# The kernels are compiled and tested with this Triton and with the newest one. Older ones fail in their compiler passes
# on the sampling kernels, and before 3.5 drivers have another interface.
OLDEST_TRITON = (3, 6)

_CHECKOUT = Path(__file__).resolve().parent.parent.parent
if (_CHECKOUT / "pyproject.toml").exists() and (_CHECKOUT / "kernels").is_dir():
    __path__ = [str(_CHECKOUT / "kernels")]


def version_of(text: str) -> tuple[int, ...]:
    """Major and minor version: (3, 6) for "3.6.0" and for "3.6.0+git123"."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


@functools.cache
def why_unavailable() -> str | None:
    """The reason why the Triton kernels cannot run here; None if they can."""
    try:
        found: str = importlib.import_module("triton").__version__
    except ImportError as error:
        return f"Triton cannot be imported ({error}); install it (pip install triton)"
    if version_of(found) < OLDEST_TRITON:
        oldest = ".".join(map(str, OLDEST_TRITON))
        return (
            f"Triton {found} is older than {oldest}, the oldest that the kernels are compiled and tested with; "
            "take a newer one (pip install -U triton), or a newer PyTorch, which brings its own"
        )
    if not _env.triton_interpreted() and not torch.cuda.is_available():
        return "torch sees no GPU"
    return None


_backend.provide("triton", why_unavailable)
