// linear: dense weights as published (bf16) or in fp32, fp32 activations and sums.
#include "abi.h"
#include "matmul.h"

namespace {

struct Bf16Weights {
  using Cursor = const uint16_t*;
  const uint16_t* data;
  int64_t inputs, steps, tail;
  Cursor row(int64_t n) const { return data + n * inputs; }
  SHOAL_INLINE void read(Cursor at, int64_t step, V& front, V& back) {
    front = load_bf16(at + kWide * step);
    back = load_bf16(at + kWide * step + 16);
  }
  void read_tail(Cursor at, V& front, V& back) const {
    at += kWide * steps;
    front = load_bf16_first(at, static_cast<int>(tail < 16 ? tail : 16));
    back = tail > 16 ? load_bf16_first(at + 16, static_cast<int>(tail - 16)) : zero();
  }
  SHOAL_INLINE void prefetch(Cursor at, int64_t step, int) { __builtin_prefetch(at + kWide * (step + 32)); }
};

struct Fp32Weights {
  using Cursor = const float*;
  const float* data;
  int64_t inputs, steps, tail;
  Cursor row(int64_t n) const { return data + n * inputs; }
  SHOAL_INLINE void read(Cursor at, int64_t step, V& front, V& back) {
    front = load(at + kWide * step);
    back = load(at + kWide * step + 16);
  }
  void read_tail(Cursor at, V& front, V& back) const {
    at += kWide * steps;
    front = load_first(at, static_cast<int>(tail < 16 ? tail : 16));
    back = tail > 16 ? load_first(at + 16, static_cast<int>(tail - 16)) : zero();
  }
  SHOAL_INLINE void prefetch(Cursor at, int64_t step, int) { __builtin_prefetch(at + kWide * (step + 16)); }
};

// One pointer per activation row; rows whose length is no multiple of 32 are copied and padded with zeros.
const float* const* padded_rows(const float* x, int64_t rows, int64_t inputs) {
  const int64_t padded = (inputs + kWide - 1) / kWide * kWide;
  auto** pointers = static_cast<const float**>(shoal::scratch(shoal::kPointers, sizeof(float*) * rows));
  if (padded == inputs) {
    for (int64_t m = 0; m < rows; ++m) pointers[m] = x + m * inputs;
    return pointers;
  }
  float* copy = static_cast<float*>(shoal::scratch(shoal::kSplit, sizeof(float) * rows * padded));
  for (int64_t m = 0; m < rows; ++m) {
    std::memcpy(copy + m * padded, x + m * inputs, sizeof(float) * inputs);
    std::memset(copy + m * padded + inputs, 0, sizeof(float) * (padded - inputs));
    pointers[m] = copy + m * padded;
  }
  return pointers;
}

template <class W>
void multiply(const W& weights, const float* const* rows, const uint16_t* bias, float* out, int64_t T, int64_t N) {
  shoal::parallel_for((N + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const int64_t from = chunk * kChunk;
    const int width = static_cast<int>(N - from < kChunk ? N - from : kChunk);
    multiply_chunk(weights, from, width, rows, T, [&](int64_t m, const float* raw) {
      float* to = out + m * N + from;
      for (int n = 0; n < width; ++n) to[n] = bias ? raw[n] + bf16_to_float(bias[from + n]) : raw[n];
    });
  });
}

}  // namespace

// out[T,N] = x[T,K] weight[N,K]^T + bias[N]; weight is bf16, or fp32 if weight_is_fp32; bias bf16 or null.
SHOAL_API const char* shoal_linear(const float* x, const void* weight, const uint16_t* bias, float* out, int64_t T,
                                   int64_t N, int64_t K, int64_t weight_is_fp32) {
  if (T == 0 || N == 0) return nullptr;
  const float* const* rows = padded_rows(x, T, K);
  const int64_t steps = K / kWide, tail = K % kWide;
  if (weight_is_fp32)
    multiply(Fp32Weights{static_cast<const float*>(weight), K, steps, tail}, rows, bias, out, T, N);
  else
    multiply(Bf16Weights{static_cast<const uint16_t*>(weight), K, steps, tail}, rows, bias, out, T, N);
  return nullptr;
}
