// linear: dense bf16 weights, packed by packing.cpp; fp32 activations and sums.
#include "abi.h"
#include "matmul.h"

// out[T,N] = x[T,K] weight[N,K]^T + bias[N]; weight packed bf16, bias bf16 or null.
SHOAL_API const char* shoal_linear(const float* x, const uint16_t* weight, const uint16_t* bias, float* out, int64_t T,
                                   int64_t N, int64_t K) {
  if (T == 0 || N == 0) return nullptr;
  const int32_t offsets[2] = {0, static_cast<int32_t>(T)};
  const RowBlock* blocks;
  const int64_t count = cut_rows(offsets, 1, blocks);
  const float* packed = pack_rows(blocks, count, T, K, [&](int64_t m) { return x + m * K; });
  const auto weights = [&](int64_t) { return Dense(weight, K); };
  multiply(blocks, count, packed, K, N, weights, [&](const RowBlock& block, int64_t chunk, const float* totals) {
    const int64_t from = chunk * kChunk;
    const int width = static_cast<int>(N - from < kChunk ? N - from : kChunk);
    for (int m = 0; m < block.rows; ++m, totals += kChunk) {
      float* to = out + (block.first + m) * N + from;
      for (int n = 0; n < width; ++n) to[n] = bias ? totals[n] + bf16_to_float(bias[from + n]) : totals[n];
    }
  });
  return nullptr;
}
