"""The joint batch of a step. A forward pass sees a part of it: a rank's images, or a micro batch of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from sskd_fast import ranks


@dataclass(frozen=True)
class JointBatch:
    """Sums over the joint batch. Every part divides its share of J by them, so that J is the sum over the parts.

    counted: collects the sums of parts in a pass that only counts.  known: sums over the joint batch from that
    pass.  Without both, sums run over all ranks, each of which sees all of its images at once.
    measures: True if the pass takes part in measuring the gradients' shares.  learns: True if its gradients are used.
    parts: number of micro batches of a rank.  last: True for the last of them.
    """

    counted: dict[str, Tensor] | None = None
    known: dict[str, Tensor] | None = None
    measures: bool = True
    learns: bool = True
    parts: int = 1
    last: bool = True
    prefix: str = ""

    def total(self, name: str, own: Tensor) -> Tensor:
        """The sum over the joint batch, without gradient; own: the sum over this part."""
        name = self.prefix + name
        if self.known is not None:
            return self.known[name]
        if self.counted is None:
            return ranks.total(own)
        self.counted[name] = self.counted[name] + own if name in self.counted else own
        return own

    def share(self, name: str, own: Tensor) -> Tensor:
        """This part's share of a sum over the joint batch: the weight of its own mean."""
        return own / self.total(name, own).clamp(min=1e-6)

    def within(self, prefix: str) -> JointBatch:
        """The same joint batch, with the names of sums prefixed."""
        return replace(self, prefix=self.prefix + prefix)


WHOLE = JointBatch()
