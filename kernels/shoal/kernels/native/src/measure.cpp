// What the machine can do at best: the rates that the other kernels are held against.
#include "abi.h"
#include "lanes.h"
#include "pool.h"

namespace {

constexpr int64_t kPiece = 1 << 18;  // floats per task: 1 MiB
constexpr int kChains = 12;          // sums under way at once: enough to hide the latency of a multiply-add

}  // namespace

// Reads floats data[0..count-1] once, the pool's threads together; sums[0..15] keeps the compiler honest.
SHOAL_API const char* shoal_read(const float* data, float* sums, int64_t count) {
  shoal::parallel_for(count / kPiece, [&](int64_t task) {
    const float* from = data + task * kPiece;
    V sum[8];
    for (int i = 0; i < 8; ++i) sum[i] = zero();
    for (int64_t at = 0; at < kPiece; at += 8 * kLanes)
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) sum[i] = add(sum[i], load(from + at + i * kLanes));
    float total = 0.0f;
    for (int i = 0; i < 8; ++i) total += reduce_add(sum[i]);
    if (total == 1.2345678f) sums[0] = total;
  });
  return nullptr;
}

// `tasks` times `steps` rounds of kChains multiply-adds of 16 lanes in registers: 32 * kChains operations a round.
SHOAL_API const char* shoal_multiply_add(float* sums, int64_t tasks, int64_t steps) {
  shoal::parallel_for(tasks, [&](int64_t) {
    V sum[kChains];
    for (int i = 0; i < kChains; ++i) sum[i] = set1(static_cast<float>(i));
    const V a = set1(0.999f), b = set1(0.001f);
    for (int64_t s = 0; s < steps; ++s)
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) sum[i] = fma(sum[i], a, b);
    float total = 0.0f;
    for (int i = 0; i < kChains; ++i) total += reduce_add(sum[i]);
    if (total == 1.2345678f) sums[0] = total;
  });
  return nullptr;
}
