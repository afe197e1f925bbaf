"""Thread and memory settings of a training process. Import it before torch: OpenMP reads its settings on loading."""

from __future__ import annotations

import ctypes
import os
import sys

from sskd_fast import _env

# Threads that wait for work spin, for some milliseconds with GNU's OpenMP. If other processes use the cores too, the
# spinning threads can starve the very thread they wait for. `python -m benchmarks.training_step` measures the effect of
# this spin count and of keeping freed memory.
SPINS = 10_000
_env.set_default("GOMP_SPINCOUNT", str(SPINS), unless=("OMP_WAIT_POLICY",))

# Constants of glibc's malloc.h, and the variables by which a user sets other values.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_OWN_CHOICE = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Makes the C library reuse freed memory instead of returning it to the system. Returns True on success.

    Otherwise many large tensors of a step are fresh memory, which the system clears and maps page by page.  The cost:
    the process never shrinks.  glibc only; does nothing if the user has tuned malloc (MALLOC_..., GLIBC_TUNABLES).
    """
    if _env.any_set(_OWN_CHOICE) or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No mmap for single allocations, no trimming, and the heap grows by 64 MB at a time.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)


def cpu_seconds() -> float:
    """CPU seconds used so far by this process, all its threads, and its finished child processes."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
