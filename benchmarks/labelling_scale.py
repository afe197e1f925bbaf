"""Labelling of many generated images in shards, with Ray and without: memory, throughput, restarts -> JSON lines.

    python -m benchmarks.labelling_scale FOLDER --images 1000 --shard 250 --ray 2 [--kill worker|driver]

Images of 32 x 32 pixels in tar archives and a tiny teacher with random weights: this measures all but the teacher. The
images are listed and hashed first, as a run does.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sskd_fast.data.folder import ImageFolder
from sskd_fast.models.augmented import IDENTITY
from sskd_fast.models.build import build_segmenter
from sskd_fast.models.inference import InferenceConfig
from sskd_fast.models.settings import ModelConfig
from sskd_fast.pseudo_labels import Selection, cache_key
from sskd_fast.pseudo_labels.shards import shard_files
from sskd_fast.run.contents import digests_of
from sskd_fast.run.shard_labels import ShardLabeller, label_shards, one_process, shards_of

SIDE, CLASSES = 32, ("disc", "ring")
_POLL = 0.5


def write_tars(folder: Path, images: int, shard: int) -> None:
    """Write archives of `shard` generated images each, with discs on noise; existing ones are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, images, shard):
        path = folder / f"images-{start // shard:05d}.tar"
        if not path.exists():
            partial = path.with_suffix(".partial")
            with tarfile.open(partial, "w") as tar:
                for number in range(start, min(start + shard, images)):
                    content = _png(number)
                    member = tarfile.TarInfo(f"{number:09d}.png")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            partial.rename(path)


def _png(seed: int) -> bytes:
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    rows, columns = np.indices((SIDE, SIDE))
    for _ in range(int(draw.integers(1, 4))):
        top, left, radius = draw.uniform(4, SIDE - 4), draw.uniform(4, SIDE - 4), draw.uniform(2, 6)
        pixels[(rows - top) ** 2 + (columns - left) ** 2 < radius**2] = draw.integers(120, 255, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tiny_labeller(images: ImageFolder, folder: Path) -> ShardLabeller:
    """A teacher with random weights of seed 0; all its predictions become labels, at most 5 for an image."""
    torch.manual_seed(0)
    model = build_segmenter(ModelConfig(num_queries=8), list(CLASSES)).eval()
    selection = Selection({1: 0.0, 2: 0.0}, None, nms_iou=0.6, max_per_image=5)
    inference = InferenceConfig(tile=(SIDE, SIDE), zoom=1.0, score_floor=0.0, overlap=0)
    key = cache_key(model.state_dict(), {"benchmark": 1})
    return ShardLabeller(model, inference, IDENTITY, [1, 2], selection, images.images_dir, False, folder, key)


def label(arguments: argparse.Namespace) -> None:
    """The work to measure, in its own process; prints a line for each shard."""
    start = time.perf_counter()
    source = ImageFolder(arguments.folder / "images")
    listed = time.perf_counter()
    digests = digests_of(source)  # as a run does before it labels
    hashed = time.perf_counter()
    labeller = tiny_labeller(source, arguments.folder / "labels")
    torch.set_num_threads(1)
    work = one_process
    if arguments.ray:
        from sskd_fast.run.ray_labels import RayWorkers

        work = RayWorkers(arguments.ray)
    labels = label_shards(labeller, shards_of(source, digests, arguments.shard), work)
    seconds = {"listing_s": round(listed - start, 1), "hashing_s": round(hashed - listed, 1)}
    print(json.dumps({"images": len(labels), "labels": labels.sure, **seconds}))


class Peaks:
    """Peak resident memory, in MB, of a process and of its Ray workers, sampled while they run."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.driver, self.workers = 0, dict[int, int]()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(_POLL):
            self.driver = max(self.driver, _memory(self.pid))
            for pid in workers_of(self.pid):
                self.workers[pid] = max(self.workers.get(pid, 0), _memory(pid))

    def stop(self) -> dict[str, Any]:
        """The peaks found."""
        self._end.set()
        self._thread.join()
        return {"driver_mb": self.driver, "workers_mb": sorted(self.workers.values(), reverse=True)[:4]}


def _memory(pid: int) -> int:
    """Unshared resident memory of a process in MB; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") >> 20


def workers_of(pid: int) -> list[int]:
    """The Ray workers with a teacher among the descendants of `pid`."""
    parents = {pid}
    pairs = [(int(p.name), *_parent_and_name(p)) for p in Path("/proc").iterdir() if p.name.isdigit()]
    for _ in range(4):
        parents |= {child for child, parent, _ in pairs if parent in parents}
    return [child for child, _, name in pairs if child in parents and "MapWorker" in name]


def _parent_and_name(process: Path) -> tuple[int, str]:
    try:
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        return parent, (process / "cmdline").read_text().replace("\0", " ")
    except (OSError, IndexError, ValueError):
        return 0, ""


def timed(arguments: argparse.Namespace, kill: str = "") -> dict[str, Any]:
    """Runs `label` once; kill: "worker" or "driver" to kill once a third of the shards is written, "" for none."""
    labels, shards = arguments.folder / "labels", -(-arguments.images // arguments.shard)
    before, start = len(shard_files(labels)), time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.labelling_scale", str(arguments.folder), "--work"]
    for name in ("images", "shard", "ray"):
        command += [f"--{name}", str(getattr(arguments, name))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, stdout=subprocess.PIPE)
    peaks, first, done = Peaks(process.pid), 0.0, before
    while process.poll() is None:
        time.sleep(_POLL)
        done = len(shard_files(labels))
        first = first or (time.perf_counter() - start if done > before else 0.0)
        if kill and done - before >= max(1, shards // 3):
            victim = process.pid if kill == "driver" else next(iter(workers_of(process.pid)), process.pid)
            os.kill(victim, signal.SIGKILL)
            kill = ""
    out, err = process.communicate()
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {
        "shards_before": before,
        "shards_after": done,
        "seconds": round(seconds, 1),
        "first_shard_s": round(first, 1),
    }
    row |= {"status": process.returncode, **peaks.stop()}
    if process.returncode > 0:
        row["error"] = err.strip().splitlines()[-1]
    last = [line for line in out.splitlines() if line.startswith('{"images"')][-1:]  # Ray prints beside it
    return row | (json.loads(last[0]) if last else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Measures one size; prints a JSON line for each run of the work."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--images", type=int, default=1000)
    p.add_argument("--shard", type=int, default=250)
    p.add_argument("--ray", type=int, default=0, help="number of Ray workers; 0 for none")
    p.add_argument("--kill", choices=("worker", "driver"), help="process to kill once a third of the shards is written")
    p.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = p.parse_args(argv)
    if arguments.work:
        label(arguments)
        return 0
    write_tars(arguments.folder / "images", arguments.images, arguments.shard)
    about = {name: getattr(arguments, name) for name in ("images", "shard", "ray", "kill")}
    print(json.dumps(about | timed(arguments, arguments.kill or "")), flush=True)
    if arguments.kill == "driver":
        kept = {path: path.stat().st_mtime_ns for path in shard_files(arguments.folder / "labels")}
        again = timed(arguments)
        changed = sum(path.stat().st_mtime_ns != stamp for path, stamp in kept.items())
        print(json.dumps(about | {"kill": "then restarted", "rewritten": changed} | again), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
