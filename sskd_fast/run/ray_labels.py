"""Labelling of shards by Ray Data workers on one machine or many: a row is a shard, a worker loads the teacher once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import torch

from sskd_fast.run.shard_labels import Shard, ShardLabeller


@dataclass(frozen=True)
class RayWorkers:
    """A pool of workers.  Images and the run folder must be on disks that all workers see.

    Starts Ray on this machine, unless its own settings (RAY_ADDRESS) name a cluster.  If a worker dies, another takes
    its place and labels its shard again.
    """

    workers: int
    cpus: float = 1.0
    gpus: float = 0.0

    def __call__(self, labeller: ShardLabeller, shards: Sequence[Shard]) -> Iterator[tuple[int, str]]:
        """Yields each finished shard's number, and the reason if it failed."""
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        labeller.model.to("cpu")
        held = ray.put(labeller)  # held to the end, since a replacement worker reads it again
        items = [{"shard": pickle.dumps(shard)} for shard in shards]
        worker: Any = _Worker
        rows = ray.data.from_items(items, override_num_blocks=len(items)).map(
            worker,
            fn_constructor_args=(held, self.cpus, self.gpus > 0),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(self.workers, len(shards))),
            num_cpus=self.cpus,
            num_gpus=self.gpus,
        )
        for row in rows.iter_rows():
            yield row["number"], row["error"]


class _Worker:
    """A Ray worker process with the teacher."""

    def __init__(self, labeller: Any, cpus: float, gpu: bool) -> None:
        torch.set_num_threads(max(1, int(cpus)))
        self.labeller: ShardLabeller = ray.get(labeller)
        self.labeller.model.to("cuda" if gpu else "cpu")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard: Shard = pickle.loads(row["shard"])
        return {"number": shard.number, "error": self.labeller.label(shard)}
