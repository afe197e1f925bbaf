"""A model and its objective under torch.compile."""

from __future__ import annotations

import torch

from sskd_fast import _env
from sskd_fast.losses.objective import Objective
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.typed_settings import ConfigError

# Models of transformers are more than one graph.
COMPILED_KINDS = ("mask_transformer", "dense")


def compile_training(model: Segmenter, objective: Objective, backend: str) -> None:
    """Has torch.compile make one graph each of what the model does, and of what its loss computes for every pixel.

    Models of other kinds than COMPILED_KINDS stay as they are.  Matching, drawing anchors and the operators of L_pxl,
    which are kernels already, are outside of the graphs.
    Raises ConfigError for a backend that PyTorch does not know, and if parameters are sharded.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigError(f"train.compile: found {backend!r}; expected one of {', '.join(known)}, or '' for none")
    if _env.sharding():
        raise ConfigError("train.compile: found FSDP, which goes on between the graphs; set train.compile='' for it")
    if model.config.kind not in COMPILED_KINDS:
        return
    for name in ("encode", "decode", "embed"):
        setattr(model, name, torch.compile(getattr(model, name), fullgraph=True, dynamic=False, backend=backend))
    objective.set_loss.compile(backend)
    if objective.gradient_share is not None:
        # Measuring a term's gradient keeps what the graph's backward pass would else overwrite.
        torch._functorch.config.donated_buffer = False
