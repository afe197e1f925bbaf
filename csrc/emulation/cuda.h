// Replaces nvcc for the files of csrc/cuda/: their kernels run on the CPU, so that machines without a GPU can test them.
// The emulation finds results that depend on the order of threads, deadlocks, and reads from lanes that do not take
// part. It finds shared memory read before it is written (as NaN) and, under AddressSanitizer, accesses out of
// bounds.
#pragma once

#include "emulation/fiber.h"
#include "emulation/grid.h"
#include "emulation/types.h"
#include "emulation/warp.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
