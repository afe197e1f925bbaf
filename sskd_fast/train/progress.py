"""Progress of a run: one live line for each stage, log.jsonl, TensorBoard, and warnings about common failures."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from sskd_fast import _process
from sskd_fast.data.instances import Batch
from sskd_fast.losses.objective import ObjectiveOutput
from sskd_fast.train.cost import Cost

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Log:
    """log.jsonl and tensorboard/ of a run folder; opened once, then every stage appends to them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.jsonl"
        self.board = _board(folder / "tensorboard")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one line; numbers that are not finite become null, so that the file stays JSON."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")
        stage, step = record.get("stage"), record.get("step")
        if self.board is not None and stage is not None and step is not None:
            fold = f"/fold {record['fold']}" if "fold" in record else ""
            for name, value in clean.items():
                if isinstance(value, float):
                    self.board.add_scalar(f"{stage}{fold}/{name}", value, step)

    shown = True

    @staticmethod
    def say(message: str) -> None:
        """Prints a line above the live one."""
        tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self.board is not None:
            self.board.close()


def _board(folder: Path) -> SummaryWriter | None:
    """The writer of TensorBoard's files; None, with a line, if its package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        Log.say(f"no TensorBoard files are written, since {error.name} is missing: pip install tensorboard")
        return None
    return SummaryWriter(str(folder), flush_secs=10)


class SilentLog(Log):
    """The log of all ranks but the first: no files, no output."""

    shown = False

    def __init__(self) -> None:
        pass

    def write(self, record: Mapping[str, Any]) -> None:
        """Nothing."""

    @staticmethod
    def say(message: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Progress:
    """Follows one training: call begin, then drawn and step for every step, measured for every AP, then end.

    fold: number of the fold that a fold model holds out, 0 for none.  cost: of the steps since the last interruption.
    """

    def __init__(
        self, log: Log, stage: str, title: str, every: int, weights: Mapping[str, float], *, fold: int = 0
    ) -> None:
        self.log, self.stage, self.title, self.every, self.weights = log, stage, title, every, weights
        self._names = {"stage": stage} | ({"fold": fold} if fold else {})
        self.cost = Cost()
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._warned: set[str] = set()
        self._ap = ""
        self._clock, self._cpu_clock = 0.0, 0.0
        self._bar: tqdm[Any] | None = None

    def begin(self, start: int, steps: int) -> None:
        """Opens the live line at step `start` of `steps`."""
        self._steps = steps
        interval = 0.5 if sys.stderr.isatty() else 15.0
        bar_format = "{desc} {percentage:3.0f}% step {n_fmt}/{total_fmt} [{elapsed}, {remaining} left]{postfix}"
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=self.title,
            mininterval=interval,
            maxinterval=interval,
            dynamic_ncols=True,
            bar_format=bar_format,
            disable=not self.log.shown,
        )
        self._clock, self._cpu_clock = time.perf_counter(), _process.cpu_seconds()

    def drawn(self, labeled: Batch, unlabeled: Batch | None) -> None:
        """Counts the batches of a step."""
        self.cost.count(labeled, unlabeled)

    def step(self, step: int, output: ObjectiveOutput, norm: Tensor, lr: float, seconds: Mapping[str, float]) -> None:
        """Records one step; every few steps, writes the means of all parts to the log and the live line."""
        self._read_clocks()
        values = {"loss": output.loss, **output.parts, "grad_norm": norm}
        record = {name: float(v.detach()) for name, v in values.items()} | {
            f"seconds_{n}": v for n, v in seconds.items()
        }
        if not math.isfinite(record["loss"]):
            self._warn(
                step, "nan", f"the loss is {record['loss']} at step {step}: lower train.lr or raise train.warmup"
            )
            raise FloatingPointError(
                f"{self.stage}: the loss is {record['loss']} at step {step}; lower train.lr or raise train.warmup"
            )
        for name, value in record.items():
            if math.isfinite(value):
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._sums["#" + name] = self._sums.get("#" + name, 0.0) + 1
        if self._bar is not None:
            self._bar.update(1)
        if (step + 1) % self.every == 0 or step + 1 == self._steps:
            self._write(step, lr)

    def _read_clocks(self) -> None:
        """Adds the time since the last reading of the clocks to the cost."""
        now, cpu_now = time.perf_counter(), _process.cpu_seconds()
        self.cost.seconds += now - self._clock
        self.cost.cpu_seconds += cpu_now - self._cpu_clock
        self._clock, self._cpu_clock = now, cpu_now

    def _write(self, step: int, lr: float) -> None:
        means = {n: v / self._sums["#" + n] for n, v in self._sums.items() if not n.startswith("#")}
        self._sums = {}
        self._check(step, means)
        seconds = self.cost.seconds
        self.log.write({**self._names, "step": step + 1, "steps": self._steps, "lr": lr, **means, "seconds": seconds})
        if self._bar is not None:
            shown = [
                f"{n.removeprefix('sup_')} {means[n]:.2f}"
                for n in means
                if n == "loss" or n.startswith("sup_") or n == "pxl"
            ]
            self._bar.set_postfix_str(" ".join(s for s in shown if "matched" not in s) + self._ap, refresh=False)

    def _check(self, step: int, means: Mapping[str, float]) -> None:
        """Warns about a loss part that dwarfs another, and about instances that no query is matched to."""
        weighted = {n: w * means[n] for n, w in self.weights.items() if w * means.get(n, 0.0) > 0}
        if weighted:
            high, low = max(weighted, key=lambda n: weighted[n]), min(weighted, key=lambda n: weighted[n])
            if weighted[high] > 100 * weighted[low] and step > self.every:
                times = weighted[high] / weighted[low]
                text = f"{high} weighs {times:.0f} times {low}: the smaller one hardly trains; change its weight"
                self._warn(step, f"{high}/{low}", text)
        for part, instances in (("sup_matched", "instance"), ("semi_matched", "pseudo-label")):
            if means.get(part, 1.0) == 0.0:
                text = (
                    f"no {instances} is matched to a query: are there any in the crops (views.size, views.scale), "
                    "and num_queries > 0?"
                )
                self._warn(step, part, text)

    def _warn(self, step: int, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self.log.write({**self._names, "step": step + 1, "event": "warning", "message": message})
            self.log.say(f"warning ({self.stage}): {message}")

    def measured(self, step: int, result: Mapping[str, float]) -> None:
        """Records an AP on the held-out fold."""
        self._ap = f" | AP {result['ap']:.1f}"
        self.log.write({**self._names, "step": step + 1, "event": "eval", **result})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count as training time."""
        self._read_clocks()
        yield
        self._clock, self._cpu_clock = time.perf_counter(), _process.cpu_seconds()

    def end(self) -> None:
        """Closes the live line; counts the CPU seconds of loader processes that have ended."""
        if self._bar is not None:
            self._read_clocks()
            self._bar.close()
            self._bar = None
