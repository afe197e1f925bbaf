"""Tensors with shapes but no values, and the bytes that are alive while code runs on them.

Code for the CPU runs unchanged: autograd, checkpointing and autocast are PyTorch's own.  If it asks for a value, it
gets 1 or True.  If a count depends on values, as in `nonzero`, it is the largest possible.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from sskd_fast._env import without_value_checks

# Allocators hand out blocks in multiples of this many bytes.
_BLOCK = {"cpu": 64, "cuda": 512}
# Operators that autocast computes in float32 on CUDA but not on the CPU, as far as networks use them. See "CUDA
# ops that autocast to float32" in PyTorch's documentation.
_FULL_ON_CUDA = frozenset({
    "pow", "__pow__", "__rpow__", "__rtruediv__", "reciprocal", "rsqrt", "exp", "expm1", "log", "log2", "log10",
    "log1p", "softmax", "log_softmax", "softmin", "softplus", "layer_norm", "group_norm", "norm", "normalize", "sum",
    "prod", "cumsum", "cumprod", "cdist", "cosine_similarity", "cross_entropy", "nll_loss", "l1_loss", "mse_loss",
    "smooth_l1_loss", "binary_cross_entropy_with_logits",
})  # fmt: skip


class Shaped(Tensor):
    """A CPU tensor for autograd and autocast, backed only by a meta tensor `shape_of`."""

    shape_of: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, shape_of: Tensor) -> Shaped:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            shape_of.size(),
            strides=shape_of.stride(),
            storage_offset=shape_of.storage_offset(),
            dtype=shape_of.dtype,
            device=torch.device("cpu"),
        )
        made.shape_of = shape_of
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func}: a tensor without values was used outside of without_values()")


class LiveBytes(TorchDispatchMode):
    """Runs operators on shapes.  now, peak: bytes of the storages alive now, and their maximum so far."""

    def __init__(self, block: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.block, self.now, self.peak = block, 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[int, Shaped] = {}

        def shape_of(x: Any) -> Any:
            if isinstance(x, Shaped):
                given[id(x.shape_of)] = x  # operators that change it in place return the tensor itself
                return x.shape_of
            if isinstance(x, Tensor):
                return x.to("meta")
            if isinstance(x, torch.Generator):
                return None  # nothing is drawn
            return torch.device("meta") if isinstance(x, torch.device) else x

        args, kwargs = _mapped(shape_of, args), {name: _mapped(shape_of, x) for name, x in (kwargs or {}).items()}
        if _takes_device(func):
            kwargs["device"] = torch.device("meta")
        out = _BY_VALUE.get(func, func)(*args, **kwargs)

        def shaped(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return given[id(x)] if id(x) in given else self._wrapped(x)

        return _mapped(shaped, out)

    def _wrapped(self, shape_of: Tensor) -> Shaped:
        storage = shape_of.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // self.block) * self.block
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)
        return Shaped(shape_of)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """The function of x, or of each item of lists and tuples, the only trees among what operators take and give."""
    if isinstance(x, list | tuple) and not isinstance(x, torch.Size):
        items = [_mapped(function, item) for item in x]
        return items if isinstance(x, list) else tuple(items)
    return function(x)


@cache
def _takes_device(func: Any) -> bool:
    return func.namespace == "aten" and any(argument.name == "device" for argument in func._schema.arguments)


def _one(x: Tensor) -> bool | int | float:
    return True if x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1


def _every_index(x: Tensor) -> Tensor:
    return torch.empty((x.numel(), x.ndim), dtype=torch.int64, device="meta")


def _every_value(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    counts = torch.empty(x.numel(), dtype=torch.int64, device="meta")
    return x.new_empty(x.numel()), counts, counts.clone()


def _every_chosen(x: Tensor, mask: Tensor) -> Tensor:
    return x.new_empty(prod(torch.broadcast_shapes(x.shape, mask.shape)))


def _at_every_index(func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An indexing operator that treats a mask as the indices of all its cells."""

    def at(x: Tensor, indices: list[Tensor | None], *more: Any, **named: Any) -> Tensor:
        places: list[Tensor | None] = []
        for index in indices:
            masks = index is not None and index.dtype == torch.bool
            places += list(_every_index(index).unbind(1)) if index is not None and masks else [index]
        return func(x, places, *more, **named)

    return at


_aten = torch.ops.aten
# Operators whose results depend on values -> functions that give their results.
_BY_VALUE: dict[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense.default: _one,
    _aten.nonzero.default: _every_index,
    _aten._unique2.default: _every_value,
    _aten.masked_select.default: _every_chosen,
} | {f: _at_every_index(f) for f in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)}


class _Calls(TorchFunctionMode):
    """Gives ones to NumPy and Python in place of values, and makes autocast use float32 as on CUDA."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.full = _FULL_ON_CUDA if device == "cuda" else frozenset()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("numpy", "__array__", "tolist"):
            ones = np.full(tuple(args[0].shape), _one(args[0]))
            return ones.tolist() if name == "tolist" else ones
        if name in self.full and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_full, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _full(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


@contextmanager
def without_values(device: Literal["cpu", "cuda"] = "cuda") -> Iterator[LiveBytes]:
    """A context in which CPU tensors have no values; yields the count of their bytes.

    device: the device whose allocator blocks and autocast rules apply.
    """
    with without_value_checks(), LiveBytes(_BLOCK[device]) as live, _Calls(device):
        yield live


def backward(loss: Tensor) -> None:
    """Like `loss.backward()`, but recomputed layers see the same autocast as in the forward pass.

    `Tensor.backward` itself would hide the changes of `without_values` from them.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)


def dropping_values(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its parameters and buffers replaced by ones without values; shared ones stay shared."""
    made: dict[int, Tensor] = {}

    def emptied(tensor: Tensor) -> Any:
        if id(tensor) not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            parameter = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if parameter else empty
        return made[id(tensor)]

    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    own[name] = emptied(tensor)
    return module
