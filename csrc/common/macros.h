// Macros that let host and device compilers share headers.
#pragma once

#if defined(__CUDACC__)
#define SSKD_HOST_DEVICE __host__ __device__
#else
#define SSKD_HOST_DEVICE
#endif
