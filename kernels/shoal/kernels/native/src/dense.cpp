// linear: dense weights as published (bf16) or in fp32, fp32 activations and sums.
#include "abi.h"
#include "matmul.h"

namespace {

SHOAL_INLINE V load_values(const uint16_t* p) { return load_bf16(p); }
SHOAL_INLINE V load_values(const float* p) { return load(p); }
SHOAL_INLINE V load_first_values(const uint16_t* p, int n) { return load_bf16_first(p, n); }
SHOAL_INLINE V load_first_values(const float* p, int n) { return load_first(p, n); }

// Rows of bf16 (as uint16_t) or of fp32, widened as they are read.
template <class Value>
struct DenseWeights {
  struct Place {
    const Value* data;
    int64_t stride;
    SHOAL_MEMBER void read(int r, V& front, V& back) const {
      front = load_values(data + r * stride);
      back = load_values(data + r * stride + 16);
    }
    void read_tail(int r, int64_t tail, V& front, V& back) const {
      const Value* from = data + r * stride;
      front = load_first_values(from, static_cast<int>(tail < 16 ? tail : 16));
      back = tail > 16 ? load_first_values(from + 16, static_cast<int>(tail - 16)) : zero();
    }
    SHOAL_MEMBER void advance() { data += kWide; }
    template <int R>
    SHOAL_MEMBER void prefetch() const {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) __builtin_prefetch(data + r * stride + 2048 / sizeof(Value));
    }
  };
  const Value* data;
  int64_t inputs, steps, tail;
  DenseWeights(const void* weights, int64_t K)
      : data(static_cast<const Value*>(weights)), inputs(K), steps(K / kWide), tail(K % kWide) {}
  Place at(int64_t n) const { return {data + n * inputs, inputs}; }
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
  if (weight_is_fp32)
    multiply(DenseWeights<float>(weight, K), rows, bias, out, T, N);
  else
    multiply(DenseWeights<uint16_t>(weight, K), rows, bias, out, T, N);
  return nullptr;
}
