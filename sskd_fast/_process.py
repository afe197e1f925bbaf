"""How a training process uses threads and memory. To be imported before torch: OpenMP reads its settings on loading."""

from __future__ import annotations

import ctypes
import sys

from sskd_fast import _env

# Threads that wait for work look for it in a tight loop, GNU's OpenMP for some milliseconds. Where other processes want
# the cores too, they take them from the thread they wait for: a step of two threads took three times as long beside two
# other jobs. In a loop as short as this one it does not, and alone it is as fast.
_env.set_default("GOMP_SPINCOUNT", "10000", unless=("OMP_WAIT_POLICY",))

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Has the C library use freed memory again instead of giving it back to the system; whether it could (glibc only).

    Otherwise every large tensor of a step is fresh memory, which the system clears and maps page by page: 13,000 pages
    a step of the small student, a quarter of its CPU time.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 2**26))
    return all(mallopt(name, value) == 1 for name, value in settings)
