"""The Triton kernels: kernels/ of a checkout, or the copy of it that a wheel holds in this folder.

Importing this imports no Triton: the modules below it do.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import torch

from sskd_fast import _backend, _env

_CHECKOUT = Path(__file__).resolve().parent.parent.parent
if (_CHECKOUT / "pyproject.toml").exists() and (_CHECKOUT / "kernels").is_dir():
    __path__ = [str(_CHECKOUT / "kernels")]


@functools.cache
def why_unavailable() -> str | None:
    """Why the Triton kernels cannot run here, None where they can."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported ({error}); install it (pip install triton)"
    if not _env.triton_interpreted() and not torch.cuda.is_available():
        return "torch sees no GPU"
    return None


_backend.provide("triton", why_unavailable)
