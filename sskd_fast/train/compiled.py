"""A model and its objective under torch.compile."""

from __future__ import annotations

import torch

from sskd_fast.losses.objective import Objective
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.typed_settings import ConfigError

# Models of transformers are more than one graph.
COMPILED_KINDS = ("mask_transformer", "dense")
# Backend of PyTorch that captures graphs as CUDA graphs, for GPUs.
CAPTURING = "cudagraphs"
# PyTorch's own limit of 8 counts all models of a process: each number of images per step, with gradient and without.
_MOST_GRAPHS = 64


def check_compiler(backend: str, *, sharded: bool) -> None:
    """Raises ConfigError for a backend that PyTorch does not know, and for sharded parameters."""
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigError(f"train.compile: found {backend!r}; expected one of {', '.join(known)}, or '' for none")
    if sharded:
        raise ConfigError("train.compile: found FSDP, which works between the graphs; set train.compile='' for it")


def compile_training(model: Segmenter, objective: Objective, backend: str) -> bool:
    """Has torch.compile make one graph each of the model's methods and of the loss's parts that see every pixel.

    Returns False for kinds other than COMPILED_KINDS, which stay as they are.  Matching, drawing anchors and the
    operators of L_pxl, which are kernels already, are outside the graphs.  With CAPTURING the loss's parts are, too: a
    CUDA graph has a single shape, and theirs changes with the instances.  Graphs of earlier stages are dropped.
    """
    if model.config.kind not in COMPILED_KINDS:
        return False
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = max(_MOST_GRAPHS, torch._dynamo.config.recompile_limit)
    for name in ("encode", "decode", "embed"):
        setattr(model, name, torch.compile(getattr(model, name), fullgraph=True, dynamic=False, backend=backend))
    if backend != CAPTURING:
        objective.set_loss.compile(backend)
    # Measuring a term's gradient keeps what the graph's backward pass would otherwise overwrite.
    torch._functorch.config.donated_buffer = objective.gradient_share is None
    return True


def begin_pass(*_: object) -> None:
    """Tells PyTorch that a forward pass begins, so that captured graphs may reuse the memory of the last pass.

    A forward pre-hook.  Otherwise PyTorch takes every graph without a gradient for the beginning of a pass, and
    overwrites features that the next graph reads.
    """
    torch.compiler.cudagraph_mark_step_begin()


def without_graphs(model: Segmenter) -> None:
    """Drops the graphs of a model's methods, which would keep it alive."""
    for name in ("encode", "decode", "embed"):
        model.__dict__.pop(name, None)
