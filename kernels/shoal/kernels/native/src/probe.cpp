// Which instruction set the running machine has: 3 AVX-512 (F, BW, DQ, VL) with VNNI, 2 without, 1 AVX2 with FMA, 0 none.
// Compiled by itself for the plain architecture, since it runs before the answer is known.
#include "abi.h"

SHOAL_API int64_t shoal_probe() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
  return avx2 ? 1 : 0;
#else
  return 0;
#endif
}
