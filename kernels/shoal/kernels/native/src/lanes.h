// Sixteen floats at a time, with the same meaning on every instruction set.
//
// Every kernel is written once, against `V`. An instruction set supplies the file included below; AVX-512 holds a V in
// one register, AVX2 in two, the portable one in four. A V's operations round each lane as IEEE 754 says, `fma` rounds
// once where the machine can, and reductions run over one fixed tree, so AVX-512 and AVX2 give the same bits.
// Nothing here is fast because it is approximate.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define SHOAL_INLINE static inline __attribute__((always_inline))
#define SHOAL_MEMBER inline __attribute__((always_inline))

namespace {

constexpr int kLanes = 16;

// E2M1 values by their four-bit code.
alignas(64) constexpr float kE2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                         -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

// The same as unsigned bytes, twice the value plus 12.
alignas(16) constexpr uint8_t kTwice[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

SHOAL_INLINE float bf16_to_float(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

#if defined(__AVX512F__)
#include "lanes_avx512.h"
#elif defined(__AVX2__)
#include "lanes_avx2.h"
#else
#include "lanes_portable.h"
#endif

namespace {

// e^x for x <= 88.3 (larger x give e^88.3), at least 2^-126: two-step reduction by ln 2, Taylor polynomial of degree 7
// whose remainder on |r| <= ln(2)/2 is below a tenth of a unit in the last place. exp(0) is exactly 1.
SHOAL_INLINE V exponential(V x) {
  x = minimum(set1(88.3f), maximum(set1(-87.3f), x));
  const V n = round_even(mul(x, set1(1.44269504f)));
  V r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.0f / 5040.0f);
  p = fma(p, r, set1(1.0f / 720.0f));
  p = fma(p, r, set1(1.0f / 120.0f));
  p = fma(p, r, set1(1.0f / 24.0f));
  p = fma(p, r, set1(1.0f / 6.0f));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return mul(p, power_of_two(n));
}

}  // namespace
