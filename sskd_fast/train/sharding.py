"""Sharding of parameters, gradients and moments over all ranks by PyTorch's FSDP2, as set through accelerate.

torch.distributed.tensor takes nearly a second to import, so functions import it when they are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.torch_version import TorchVersion

from sskd_fast import _env, ranks
from sskd_fast.losses.objective import Objective
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.typed_settings import ConfigError

# Earlier versions do not find the tensors in an ObjectiveOutput, and would not reduce gradients.
_TORCH = "2.14"
# Every process must reach the same parameters, regardless of its images.
SHARDED_KINDS = ("mask_transformer", "dense", "universal")


def asked_to_shard(accelerator: Accelerator) -> bool:
    """True if accelerate's settings ask for FSDP; on CPUs too, where accelerate by itself shards nothing."""
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU and _env.sharding():
        state.distributed_type = DistributedType.FSDP
    return bool(state.distributed_type == DistributedType.FSDP)


def sharding_of(model: Segmenter) -> FullyShardedDataParallelPlugin:
    """Accelerate's settings of FSDP for a model, with those of the named layers that it has.

    Accelerate would keep the settings of the first model for all later ones.  Raises ConfigError if the model has none
    of the named layers.
    """
    plugin = FullyShardedDataParallelPlugin()
    if named := plugin.transformer_cls_names_to_wrap:
        layers = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = [name for name in named if name in layers]
        if not plugin.transformer_cls_names_to_wrap:
            raise ConfigError(
                f"accelerate: fsdp_transformer_layer_cls_to_wrap: found {', '.join(named)}, none of which this model "
                f"has; expected some of {', '.join(sorted(layers))}"
            )
    return plugin


def check_sharding(plugin: FullyShardedDataParallelPlugin, model: Segmenter, objective: Objective) -> None:
    """Raises ConfigError for settings that sharded parameters do not support."""
    from torch.distributed.fsdp import CPUOffloadPolicy

    kinds, own = ", ".join(SHARDED_KINDS), model.config
    scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    for found, words in (
        (plugin.fsdp_version != 2, "found FSDP of version 1; expected --fsdp_version 2"),
        (
            TorchVersion(torch.__version__) < _TORCH,
            f"FSDP needs torch {_TORCH} or later, found {torch.__version__}; update it",
        ),
        (
            plugin.cpu_ram_efficient_loading,
            "found fsdp_cpu_ram_efficient_loading, by which all processes but the first have no weights; "
            "add --fsdp_cpu_ram_efficient_loading false",
        ),
        (
            isinstance(plugin.cpu_offload, CPUOffloadPolicy),
            "found fsdp_offload_params; expected parameters on the GPU: add --fsdp_offload_params false",
        ),
        (
            plugin.activation_checkpointing,
            "found fsdp_activation_checkpointing; set student.gradient_checkpointing=true, or the teacher's, instead",
        ),
        (
            own.kind not in SHARDED_KINDS,
            f"found FSDP for a model of kind {own.kind!r}, some of whose parameters are used for some images only; "
            f"expected {kinds}, or DDP (--multi_gpu)",
        ),
        (
            bool(scalars),
            f"found FSDP for a model whose parameters {', '.join(scalars[:3])} are scalars, which it does not shard; "
            "use DDP (--multi_gpu)",
        ),
        (
            objective.gradient_share is not None,
            "found FSDP, by which gradients of a single term are not measured; set train.pxl_gradient_share=0, for "
            "the weight train.lam_pxl",
        ),
        (own.precision == "float16", "found FSDP and float16, whose loss would not be scaled; use bfloat16"),
    ):
        if found:
            raise ConfigError(f"accelerate: {words}")


def let_methods_gather(model: Segmenter) -> None:
    """Has the methods that the objective calls gather the parameters first, if the model is a sharding unit."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    for name in ("encode", "decode", "embed"):
        register_fsdp_forward_method(model, name)


def is_sharded(tensor: Any) -> bool:
    """True for a tensor of which every rank holds a part."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, or a tensor that is whole already; all ranks call it together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def gathered_state(state: Any) -> Any:
    """A state dict with full tensors; all ranks call it together.

    Tensors that were sharded are on the CPU of the first rank, and None on the others.
    """
    if is_sharded(state):
        full = state.full_tensor()
        return full.cpu() if ranks.number() == 0 else None
    if isinstance(state, Mapping):
        return {name: gathered_state(value) for name, value in state.items()}
    if isinstance(state, list):
        return [gathered_state(value) for value in state]
    return state


def shard_of(tensor: Any, like: Any) -> Any:
    """This rank's shard of a full tensor, if `like` is sharded; else the value as it is."""
    from torch.distributed.tensor import distribute_tensor

    if not (is_sharded(like) and isinstance(tensor, Tensor) and tensor.shape == like.shape):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def sharded_state(optimizer_state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer with full tensors, sharded like its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: shard_of(value, parameters[number]) for name, value in moments.items()}
        for number, moments in optimizer_state["state"].items()
    }
    return {**optimizer_state, "state": state}
