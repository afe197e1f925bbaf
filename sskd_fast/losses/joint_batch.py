"""The joint batch of a step, of which a forward pass sees a part: a rank's images, or a micro batch of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from sskd_fast import ranks


@dataclass(frozen=True)
class JointBatch:
    """Sums over the joint batch, by which every part divides what it adds to J, so that J is the sum of its parts.

    counted: takes in the sums of the parts that are only counted.  known: sums over the joint batch, counted before;
    without both, a sum is that of all ranks, each of which sees all of its images at once.
    measures, learns: the pass takes part in measuring the gradients' shares; its gradients are used.  parts, last: how
    many micro batches the images of a rank are seen in, and True for the last of them.
    """

    counted: dict[str, Tensor] | None = None
    known: dict[str, Tensor] | None = None
    measures: bool = True
    learns: bool = True
    parts: int = 1
    last: bool = True
    prefix: str = ""

    def total(self, name: str, own: Tensor) -> Tensor:
        """The sum over the joint batch of `own`, the sum over the part that is seen; without gradient."""
        name = self.prefix + name
        if self.known is not None:
            return self.known[name]
        if self.counted is None:
            return ranks.total(own)
        self.counted[name] = self.counted[name] + own if name in self.counted else own
        return own

    def share(self, name: str, own: Tensor) -> Tensor:
        """The share that this part has in a sum over the joint batch: what its own mean counts for."""
        return own / self.total(name, own).clamp(min=1e-6)

    def within(self, prefix: str) -> JointBatch:
        """The same with sums under names of their own."""
        return replace(self, prefix=self.prefix + prefix)


WHOLE = JointBatch()
