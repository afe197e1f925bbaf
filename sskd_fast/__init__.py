"""sskd_fast: semi-supervised knowledge distillation for instance segmentation.

Heavy modules load on the first use of a name, so `import sskd_fast` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sskd_fast.losses.contrast import InstancePixelContrast
    from sskd_fast.models.mask_transformer import MaskTransformer
    from sskd_fast.models.segmenter import Predictions
    from sskd_fast.models.settings import ModelConfig
    from sskd_fast.predictor import Prediction, Predictor, load

__version__ = "0.1.0"
__all__ = [
    "InstancePixelContrast",
    "MaskTransformer",
    "ModelConfig",
    "Prediction",
    "Predictions",
    "Predictor",
    "__version__",
    "load",
]

_HOMES = {
    "InstancePixelContrast": "sskd_fast.losses.contrast",
    "MaskTransformer": "sskd_fast.models.mask_transformer",
    "ModelConfig": "sskd_fast.models.settings",
    "Prediction": "sskd_fast.predictor",
    "Predictions": "sskd_fast.models.segmenter",
    "Predictor": "sskd_fast.predictor",
    "load": "sskd_fast.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sskd_fast' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
