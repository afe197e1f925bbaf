"""How a training process uses threads and memory. To be imported before torch: OpenMP reads its settings on loading."""

from __future__ import annotations

import ctypes
import os
import sys

from sskd_fast import _env

# Threads that wait for work spin, with GNU's OpenMP for some milliseconds. Where other processes want the cores too,
# they take cores from the very thread they wait for. `python -m benchmarks.training_step` measures what this number of
# spins, and the memory kept below, are worth.
SPINS = 10_000
_env.set_default("GOMP_SPINCOUNT", str(SPINS), unless=("OMP_WAIT_POLICY",))

# From glibc's malloc.h, and what a user sets who wants other values.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_OWN_CHOICE = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Has the C library use freed memory again instead of giving it back to the system; returns whether it will.

    Otherwise many large tensors of a step are fresh memory, which the system clears and maps page by page.  The process
    stays as large as it once was.  glibc only, and not where the user has set it up (MALLOC_..., GLIBC_TUNABLES).
    """
    if _env.any_set(_OWN_CHOICE) or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No allocation gets a mapping of its own, none is given back, and the heap grows by 64 MB at a time.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)


def cpu_seconds() -> float:
    """The CPU seconds that this process, with all of its threads, and its child processes that have ended have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
