"""The engine of a training: Hugging Face accelerate around model and objective, on one rank or many, in micro batches.

J of the joint batch is the sum over its parts: the images of each rank, or their micro batches.  Every part divides by
sums over the joint batch.  So ranks and micro batches give the gradients of one process that sees all images at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor

from sskd_fast import ranks
from sskd_fast.data.instances import Batch
from sskd_fast.losses.joint_batch import WHOLE, JointBatch
from sskd_fast.losses.objective import ModelObjective, Objective, ObjectiveOutput
from sskd_fast.models.segmenter import Segmenter
from sskd_fast.train.compiled import CAPTURING, begin_pass, check_compiler, compile_training
from sskd_fast.train.random_state import RandomState
from sskd_fast.train.sharding import asked_to_shard, check_sharding, let_methods_gather, sharding_of, whole
from sskd_fast.typed_settings import ConfigError

_DISTRIBUTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
Images: TypeAlias = tuple[Batch, Batch | None]


class Engine:
    """Gradients of J and updates of a model's weights.

    micro_batch: the most images that a rank sees at once.  With 0, all of them.  If the GPU's memory is too small, the
    first two steps halve the number until it fits, except with FSDP.  After the first step there are the optimizer's
    moments, too.  compiler: backend of torch.compile, "" for none.
    scaler: of the loss, for float16 only.
    """

    def __init__(
        self,
        model: Segmenter,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        micro_batch: int = 0,
        compiler: str = "",
    ) -> None:
        device = next(model.parameters()).device
        self.accelerator = accelerator_on(device)
        self.sharded = asked_to_shard(self.accelerator)
        if compiler:
            check_compiler(compiler, sharded=self.sharded)
        self.compiled = bool(compiler) and compile_training(model, objective, compiler)
        if self.sharded:
            plugin = self.accelerator.state.fsdp_plugin = sharding_of(model)
            check_sharding(plugin, model, objective)
            model.to(memory_format=torch.contiguous_format)  # FSDP takes no other
            objective = dataclasses.replace(objective, sharded=True)
        self.plain = ModelObjective(model, objective)
        if self.compiled and compiler == CAPTURING:
            self.plain.register_forward_pre_hook(begin_pass)
        self.module, self.optimizer = self.accelerator.prepare(self.plain, optimizer)
        let_methods_gather(model)
        self.scaler = torch.amp.GradScaler(device.type, enabled=model.config.precision == "float16")
        self.micro_batch = micro_batch
        self._to_try = 2 if micro_batch == 0 and device.type == "cuda" and not self.sharded else 0

    def gradients(self, images: Images, progress: float, seed: int) -> ObjectiveOutput:
        """Sets the parameters' gradients to those of J over the joint batch; returns J and its parts, detached.

        images: this rank's labelled and pseudo-labelled images of the joint batch.  Other arguments as in `Objective`.
        """
        if self._to_try:
            self._to_try -= 1
            self.find_micro_batch(images, progress, seed)
        self.optimizer.zero_grad(set_to_none=True)
        return of_all_ranks(self._step(images, progress, seed))

    def update(self, clip: float) -> Tensor:
        """Takes an optimizer step with gradients clipped to this norm; returns their norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        norm = whole(self.accelerator.clip_grad_norm_(self.plain.parameters(), clip))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def _step(self, images: Images, progress: float, seed: int) -> ObjectiveOutput:
        parts = micro_batches(images, self.micro_batch)
        if len(parts) == 1:
            return self._learn(parts[0], progress, seed, WHOLE)
        counted: dict[str, Tensor] = {}
        with self._undone(), torch.no_grad():
            for part in parts:
                self.plain(*part, progress, seed, JointBatch(counted=counted, measures=False, learns=False))
        known = {name: ranks.total(own) for name, own in sorted(counted.items())}
        seen = [
            JointBatch(known=known, measures=False, parts=len(parts), last=number == len(parts))
            for number in range(1, len(parts) + 1)
        ]
        share = self.plain.objective.gradient_share
        if share is not None and share.due:
            with self._undone():
                for part, joint in zip(parts, seen, strict=True):
                    self.plain(*part, progress, seed, dataclasses.replace(joint, measures=True, learns=False))
        return joined([self._learn(part, progress, seed, joint) for part, joint in zip(parts, seen, strict=True)])

    def _learn(self, images: Images, progress: float, seed: int, joint: JointBatch) -> ObjectiveOutput:
        """Adds the gradients of a part; the last part also reduces the gradients over ranks."""
        with contextlib.nullcontext() if joint.last else self.accelerator.no_sync(self.module):
            output: ObjectiveOutput = self.module(*images, progress, seed, joint)
            clock = time.perf_counter()
            # Gradients are averaged over ranks, but J is the sum over ranks.
            self.accelerator.backward(self.scaler.scale(output.loss * ranks.count()))
        output.seconds["backward"] = time.perf_counter() - clock
        parts = {name: value.detach() for name, value in output.parts.items()}
        return dataclasses.replace(output, loss=output.loss.detach(), parts=parts)

    def find_micro_batch(self, images: Images, progress: float, seed: int) -> None:
        """Halves the micro batch until a trial step fits into every rank's memory; the trials leave no trace."""
        everything = len(images[0].image_ids) + (0 if images[1] is None else len(images[1].image_ids))
        while not all(ranks.gathered(self._fits(images, progress, seed))):
            self.micro_batch = math.ceil((self.micro_batch or everything) / 2)

    def _fits(self, images: Images, progress: float, seed: int) -> bool:
        """True if memory suffices for this rank's images.  Raises OutOfMemoryError if not even for a single one."""
        trial = JointBatch(counted={}, measures=False, learns=False)
        try:
            with self._undone(), ranks.alone():
                for part in micro_batches(images, self.micro_batch):
                    self.plain(*part, progress, seed, trial).loss.backward()
        except torch.OutOfMemoryError:
            if self.micro_batch == 1:
                raise
            fits = False
        else:
            fits = True
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return fits

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Restores random states and batch statistics at the end of the context."""
        random, buffers = RandomState.now(), [buffer.clone() for buffer in self.plain.buffers()]
        try:
            yield
        finally:
            random.restore()
            for buffer, before in zip(self.plain.buffers(), buffers, strict=True):
                buffer.copy_(before)


def accelerator_on(device: torch.device) -> Accelerator:
    """Accelerate by the launcher's settings, but those that are settings of a run: precision, micro batches, compiler.

    Raises ConfigError for a kind of parallel training that is neither DDP nor FSDP2.
    """
    found = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        dynamo_backend="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # a term may have weight 0
    )
    if not asked_to_shard(found) and found.distributed_type not in _DISTRIBUTED:
        raise ConfigError(
            f"accelerate: found the settings of {found.distributed_type.value}; expected DDP or FSDP: launch with "
            "torchrun, or accelerate launch with --multi_gpu or --use_fsdp"
        )
    return found


def micro_batches(images: Images, size: int) -> list[Images]:
    """Split the images of a step, labelled ones first, into parts of `size`; 0 for a single part."""
    labeled, unlabeled = images
    count, rest = len(labeled.image_ids), 0 if unlabeled is None else len(unlabeled.image_ids)
    if not 0 < size < count + rest:
        return [images]
    found: list[Images] = []
    for first in range(0, count + rest, size):
        last = first + size
        own = labeled.part(slice(min(first, count), min(last, count)))
        others = slice(max(first - count, 0), max(last - count, 0))
        found.append((own, None if unlabeled is None or others.stop == 0 else unlabeled.part(others)))
    return found


def joined(outputs: Sequence[ObjectiveOutput]) -> ObjectiveOutput:
    """J of several parts: terms are summed, means are averaged over the parts that have them."""
    means = frozenset().union(*(output.means for output in outputs))
    parts: dict[str, Tensor] = {}
    for name in {name: None for output in outputs for name in output.parts}:
        values = torch.stack([output.parts[name] for output in outputs if name in output.parts])
        parts[name] = values.nanmean() if name in means else values.sum()
    seconds = {name: sum(output.seconds[name] for output in outputs) for name in outputs[0].seconds}
    return ObjectiveOutput(torch.stack([output.loss for output in outputs]).sum(), parts, seconds, means)


def of_all_ranks(output: ObjectiveOutput) -> ObjectiveOutput:
    """J of the joint batch: the sum over ranks, the same on every rank."""
    if ranks.count() == 1:
        return output
    found = [
        dataclasses.replace(output, loss=loss, parts=parts)
        for loss, parts in ranks.gathered((output.loss.cpu(), {n: v.cpu() for n, v in output.parts.items()}))
    ]
    return dataclasses.replace(joined(found), seconds=output.seconds)
