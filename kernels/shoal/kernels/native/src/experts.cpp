// gate_up and down: activations grouped by expert times that expert's MXFP4 weights, decoded exactly.
#include "abi.h"
#include "matmul.h"

namespace {

constexpr int64_t kBlock = 32;  // weights under one scale

struct Mxfp4Weights {
  struct Place {
    const uint8_t *blocks, *scales, *ahead;
    int64_t stride;  // blocks in a row
    SHOAL_MEMBER void read(int r, V& front, V& back) const {
      load_mxfp4(blocks + r * 16 * stride, scales[r * stride], front, back);
    }
    void read_tail(int, int64_t, V& front, V& back) const { front = back = zero(); }
    SHOAL_MEMBER void advance() { blocks += 16, scales += 1; }
    // The R rows that follow lie in one piece; this step's share of it is fetched.
    template <int R>
    SHOAL_MEMBER void prefetch() {
      __builtin_prefetch(ahead + R * 16 * stride);
      ahead += R * 16;
    }
  };
  const uint8_t *blocks, *scales;  // of one expert
  int64_t steps;
  static constexpr int64_t tail = 0;
  Place at(int64_t n) const {
    const uint8_t* first = blocks + n * steps * 16;
    return {first, scales + n * steps, first, steps};
  }
};

// Even elements of each block of 32, then its odd ones: the order in which a byte's two nibbles are decoded.
const float* split_even_odd(const float* x, int64_t rows, int64_t inputs) {
  float* split = static_cast<float*>(shoal::scratch(shoal::kSplit, sizeof(float) * rows * inputs));
  constexpr int64_t kRows = 8;
  shoal::parallel_for((rows + kRows - 1) / kRows, [&](int64_t task) {
    const int64_t end = (task + 1) * kRows < rows ? (task + 1) * kRows : rows;
    for (int64_t at = task * kRows * inputs; at < end * inputs; at += kBlock)
      for (int i = 0; i < 16; ++i) split[at + i] = x[at + 2 * i], split[at + 16 + i] = x[at + 2 * i + 1];
  });
  return split;
}

const char* check_offsets(const int32_t* offsets, int64_t experts, int64_t rows) {
  if (offsets[0] != 0 || offsets[experts] != rows) return "offsets do not run from 0 to the number of rows";
  for (int64_t e = 0; e < experts; ++e)
    if (offsets[e] > offsets[e + 1]) return "offsets descend";
  return nullptr;
}

// work(expert, first weight row, width, first row, number of rows) for every chunk of every expert that has rows.
template <class Work>
void for_each_chunk(const int32_t* offsets, int64_t experts, int64_t N, const Work& work) {
  int64_t* busy = static_cast<int64_t*>(shoal::scratch(shoal::kTasks, sizeof(int64_t) * experts));
  int64_t count = 0;
  for (int64_t e = 0; e < experts; ++e)
    if (offsets[e + 1] > offsets[e]) busy[count++] = e;
  const int64_t chunks = (N + kChunk - 1) / kChunk;
  shoal::parallel_for(count * chunks, [&](int64_t task) {
    const int64_t e = busy[task / chunks], from = task % chunks * kChunk;
    const int width = static_cast<int>(N - from < kChunk ? N - from : kChunk);
    work(e, from, width, offsets[e], offsets[e + 1] - offsets[e]);
  });
}

// sixteen gates and ups: (clamp(up) + 1) * gate * sigmoid(alpha * gate), gate clamped from above only
SHOAL_INLINE V clamped_swiglu(V gate, V up, V limit, V alpha) {
  const V one = set1(1.0f);
  gate = minimum(limit, gate);
  up = maximum(sub(zero(), limit), minimum(limit, up));
  const V sigmoid = div(one, add(one, exponential(sub(zero(), mul(alpha, gate)))));
  return mul(add(up, one), mul(gate, sigmoid));
}

}  // namespace

// out[R,N/2]: for row r of expert e, swiglu(x[rows[r]] weight[e]^T + bias[e]); weight rows alternate gate, up.
SHOAL_API const char* shoal_gate_up(const float* x, const int32_t* rows, const int32_t* offsets, const uint8_t* blocks,
                                    const uint8_t* scales, const uint16_t* bias, float* out, int64_t T, int64_t R,
                                    int64_t E, int64_t N, int64_t K, float limit, float alpha) {
  if (const char* wrong = check_offsets(offsets, E, R)) return wrong;
  for (int64_t r = 0; r < R; ++r)
    if (rows[r] < 0 || rows[r] >= T) return "a row index is outside x";
  if (R == 0) return nullptr;
  const float* split = split_even_odd(x, T, K);
  auto** pointers = static_cast<const float**>(shoal::scratch(shoal::kPointers, sizeof(float*) * R));
  for (int64_t r = 0; r < R; ++r) pointers[r] = split + rows[r] * K;
  const int64_t G = K / kBlock;
  for_each_chunk(offsets, E, N, [&](int64_t e, int64_t from, int width, int64_t first, int64_t count) {
    float gate_bias[16] = {}, up_bias[16] = {};
    for (int i = 0; i < width / 2; ++i) {
      gate_bias[i] = bf16_to_float(bias[e * N + from + 2 * i]);
      up_bias[i] = bf16_to_float(bias[e * N + from + 2 * i + 1]);
    }
    const Mxfp4Weights weights{blocks + e * N * G * 16, scales + e * N * G, G};
    multiply_chunk(weights, from, width, pointers + first, count, [&](int64_t m, const float* raw) {
      float gate[16] = {}, up[16] = {};
      for (int i = 0; i < width / 2; ++i) gate[i] = raw[2 * i], up[i] = raw[2 * i + 1];
      const V biased_gate = add(load(gate), load(gate_bias)), biased_up = add(load(up), load(up_bias));
      const V value = clamped_swiglu(biased_gate, biased_up, set1(limit), set1(alpha));
      store_first(out + (first + m) * (N / 2) + from / 2, value, width / 2);
    });
  });
  return nullptr;
}

// out[R,N]: for row r of expert e, h[r] weight[e]^T + bias[e].
SHOAL_API const char* shoal_down(const float* h, const int32_t* offsets, const uint8_t* blocks, const uint8_t* scales,
                                 const uint16_t* bias, float* out, int64_t R, int64_t E, int64_t N, int64_t K) {
  if (const char* wrong = check_offsets(offsets, E, R)) return wrong;
  if (R == 0) return nullptr;
  const float* split = split_even_odd(h, R, K);
  auto** pointers = static_cast<const float**>(shoal::scratch(shoal::kPointers, sizeof(float*) * R));
  for (int64_t r = 0; r < R; ++r) pointers[r] = split + r * K;
  const int64_t G = K / kBlock;
  for_each_chunk(offsets, E, N, [&](int64_t e, int64_t from, int width, int64_t first, int64_t count) {
    const Mxfp4Weights weights{blocks + e * N * G * 16, scales + e * N * G, G};
    multiply_chunk(weights, from, width, pointers + first, count, [&](int64_t m, const float* raw) {
      float* to = out + (first + m) * N + from;
      for (int n = 0; n < width; ++n) to[n] = raw[n] + bf16_to_float(bias[e * N + from + n]);
    });
  });
  return nullptr;
}
