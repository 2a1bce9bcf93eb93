// gate_up and down: activations grouped by expert times that expert's MXFP4 weights, decoded exactly; the activations
// as they are (matmul.h) or rounded to 8 bits (int8.h).
#include "abi.h"
#include "int8.h"
#include "matmul.h"

namespace {

const char* check_offsets(const int32_t* offsets, int64_t experts, int64_t rows) {
  if (offsets[0] != 0 || offsets[experts] != rows) return "offsets do not run from 0 to the number of rows";
  for (int64_t e = 0; e < experts; ++e)
    if (offsets[e] > offsets[e + 1]) return "offsets descend";
  return nullptr;
}

struct Experts {
  const uint8_t *codes, *scales;
  int64_t N, K;
};

// finish(block, chunk, totals) for the rows row(r) of every expert.
template <class Row, class Finish>
void multiply_experts(const Experts& experts, const int32_t* offsets, int64_t E, bool int8, const Row& row,
                      const Finish& finish) {
  const auto [codes, scales, N, K] = experts;
  const int64_t units = (N + kLanes - 1) / kLanes * kLanes * (K / kStep);
  const auto weights = [&, codes = codes, scales = scales, K = K](int64_t e) {
    return Mxfp4{codes + e * units * 16, scales + e * units, K / kStep};
  };
  const RowBlock* blocks;
  const int64_t count = cut_rows(offsets, E, blocks);
  if (int8) return multiply_int8(blocks, count, offsets[E], K, N, row, weights, finish);
  multiply(blocks, count, pack_rows(blocks, count, offsets[E], K, row), K, N, weights, finish);
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
// Codes and scales packed by packing.cpp; int8: whether activations are rounded to 8 bits.
SHOAL_API const char* shoal_gate_up(const float* x, const int32_t* rows, const int32_t* offsets, const uint8_t* codes,
                                    const uint8_t* scales, const uint16_t* bias, float* out, int64_t T, int64_t R,
                                    int64_t E, int64_t N, int64_t K, int64_t int8, float limit, float alpha) {
  if (const char* wrong = check_offsets(offsets, E, R)) return wrong;
  for (int64_t r = 0; r < R; ++r)
    if (rows[r] < 0 || rows[r] >= T) return "a row index is outside x";
  if (R == 0) return nullptr;
  const auto row = [&](int64_t r) { return x + rows[r] * K; };
  const Experts experts{codes, scales, N, K};
  multiply_experts(experts, offsets, E, int8, row, [&](const RowBlock& block, int64_t chunk, const float* totals) {
    const int64_t from = chunk * kChunk;
    const int width = static_cast<int>(N - from < kChunk ? N - from : kChunk) / 2;
    const uint16_t* biases = bias + block.expert * N + from;
    float gate_bias[kChunk / 2] = {}, up_bias[kChunk / 2] = {}, gate[kChunk / 2] = {}, up[kChunk / 2] = {};
    for (int i = 0; i < width; ++i) {
      gate_bias[i] = bf16_to_float(biases[2 * i]);
      up_bias[i] = bf16_to_float(biases[2 * i + 1]);
    }
    for (int m = 0; m < block.rows; ++m, totals += kChunk) {
      for (int i = 0; i < width; ++i) {
        gate[i] = totals[2 * i] + gate_bias[i];
        up[i] = totals[2 * i + 1] + up_bias[i];
      }
      float* to = out + (block.first + m) * (N / 2) + from / 2;
      for (int i = 0; i < width; i += kLanes) {
        const V value = clamped_swiglu(load(gate + i), load(up + i), set1(limit), set1(alpha));
        store_first(to + i, value, width - i < kLanes ? width - i : kLanes);
      }
    }
  });
  return nullptr;
}

// out[R,N]: for row r of expert e, h[r] weight[e]^T + bias[e].
SHOAL_API const char* shoal_down(const float* h, const int32_t* offsets, const uint8_t* codes, const uint8_t* scales,
                                 const uint16_t* bias, float* out, int64_t R, int64_t E, int64_t N, int64_t K,
                                 int64_t int8) {
  if (const char* wrong = check_offsets(offsets, E, R)) return wrong;
  if (R == 0) return nullptr;
  const auto row = [&](int64_t r) { return h + r * K; };
  const Experts experts{codes, scales, N, K};
  multiply_experts(experts, offsets, E, int8, row, [&](const RowBlock& block, int64_t chunk, const float* totals) {
    const int64_t from = chunk * kChunk;
    const int width = static_cast<int>(N - from < kChunk ? N - from : kChunk);
    const uint16_t* biases = bias + block.expert * N + from;
    for (int m = 0; m < block.rows; ++m, totals += kChunk) {
      float* to = out + (block.first + m) * N + from;
      for (int n = 0; n < width; ++n) to[n] = totals[n] + bf16_to_float(biases[n]);
    }
  });
  return nullptr;
}
