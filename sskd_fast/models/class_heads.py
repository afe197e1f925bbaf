"""Class heads of a model of transformers: found in any module, and replaced for a run's classes.

Shape letters: C classes, E rows of a head, F input width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sskd_fast.models.pretrained import FoundationError

# Names of linear layers that score classes in transformers.
_NAMED = re.compile(r"class|label|score")


@dataclass(frozen=True)
class ClassHeads:
    """The class heads of a model.

    layers: by dotted name; several names may share one layer.  no_object: True if the last row of each is no-object and
    the scores are a softmax; False if every class has its own sigmoid.
    """

    layers: dict[str, nn.Linear]
    no_object: bool

    @classmethod
    def of(cls, model: Any, setting: str) -> ClassHeads:
        """All heads of a model: the decoder's, those of its layers, and those that choose queries in an encoder.

        They are the linear layers named like class scores, with a row for each of the configuration's labels, or one
        more.  Raises FoundationError if there are none, or heads of both kinds.
        """
        labels, kind = int(model.config.num_labels), type(model).__name__
        named = model.named_modules(remove_duplicate=False)
        linear = {name: m for name, m in named if isinstance(m, nn.Linear) and _NAMED.search(name)}
        layers = {name: m for name, m in linear.items() if m.out_features in (labels, labels + 1)}
        sizes = {m.out_features for m in layers.values()}
        if len(sizes) != 1:
            found = ", ".join(f"{name} ({m.out_features} rows)" for name, m in (layers or linear).items()) or "none"
            raise FoundationError(
                f"{setting}: {kind} has no class head that can be newly initialised (found {found}); expected linear "
                f"layers of {labels} rows, one for each label of its configuration, or of {labels + 1}: "
                "take another model"
            )
        return cls(layers, sizes == {labels + 1})

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the weights and biases of the layers, one for each layer."""
        first = {id(layer): name for name, layer in reversed(self.layers.items())}
        return tuple(f"{name}.{part}" for name in reversed(first.values()) for part in ("weight", "bias"))

    def take_out(self, model: nn.Module) -> None:
        """Removes the heads from the model."""
        for name in self.layers:
            model.set_submodule(name, nn.Identity())

    def put_in(self, model: nn.Module) -> None:
        """Puts the heads back into the model."""
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)

    def remade(self, known: Sequence[str], class_names: Sequence[str]) -> ClassHeads:
        """Heads for other classes; shared layers stay shared.  known: the current classes, in order."""
        new: dict[int, nn.Linear] = {}
        for layer in self.layers.values():
            if id(layer.weight) not in new:
                new[id(layer.weight)] = head_for(layer, known, class_names)
        return ClassHeads({name: new[id(layer.weight)] for name, layer in self.layers.items()}, self.no_object)


def head_for(head: nn.Linear, known: Sequence[str], class_names: Sequence[str]) -> nn.Linear:
    """A linear class head (F -> E) with a row for each of `class_names`, and one for no-object if `head` has one.

    A class in `known` keeps its row of `head`; any other starts as the mean of all rows, bias included: an object of
    unknown kind.
    """
    more = head.out_features - len(known)
    new = nn.Linear(head.in_features, len(class_names) + more, device=head.weight.device)
    with torch.no_grad():
        for mine, theirs in ((new.weight, head.weight), (new.bias, head.bias)):
            mine.copy_(rows_for(theirs, known, class_names))
    return new


def rows_for(rows: Tensor, known: Sequence[str], class_names: Sequence[str]) -> Tensor:
    """Convert rows (E, ...) of `known` classes to rows of `class_names`; a no-object row, if any, is kept.

    Classes are matched by name, ignoring case.  A class that `known` lacks gets the mean of the known rows.
    """
    index = {name.lower(): i for i, name in enumerate(known)} | {name: i for i, name in enumerate(known)}
    places = [index.get(name, index.get(name.lower())) for name in class_names]
    mean = rows[: len(known)].mean(0)
    return torch.stack([*(mean if i is None else rows[i] for i in places), *rows[len(known) :]])
