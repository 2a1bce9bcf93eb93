// MXFP4 weights times activations rounded to 8 bits: the inexact option, with numerics of its own.
//
//   a step of 32 activations becomes q = round(x / s), s = max|x| / 127;
//   the step's sum of q[k] * w[k] is a whole number and exact; total = sum * (scale * s) + total, fused, step by step.
//
// Whole numbers have no order of summing, so all instruction sets agree here too where they agree in `fma`.
#pragma once

#include "matmul.h"

namespace {

constexpr int kInt8Tokens = 8;  // activation rows of a register tile

// One step of one activation row: the dwords that meet low and high nibbles of each quarter, s / 2 (weights are held
// doubled), and what takes the weights' offset of 12 away.
struct Int8Step {
  int32_t low[4], high[4];
  float half_scale;
  int32_t correction;
};

// A step with a number that is not finite becomes NaN as a whole: a broken token shows in its own row.
Int8Step quantize(const float* x) {
  const V front = load(x), back = load(x + kLanes);
  const bool finite = reduce_add(mul(add(mul(front, zero()), mul(back, zero())), zero())) == 0.0f;
  const V size = maximum(maximum(front, sub(zero(), front)), maximum(back, sub(zero(), back)));
  const float scale = finite ? reduce_max(size) / 127.0f : std::nanf("");
  const V inverse = set1(scale > 1e-30f ? 1.0f / scale : 0.0f);  // NaN too gives zeros here
  float rounded[kStep] = {};
  if (finite) {
    store(rounded, round_even(mul(front, inverse)));
    store(rounded + kLanes, round_even(mul(back, inverse)));
  }
  int8_t q[kStep];
  int32_t sum = 0;
  for (int k = 0; k < kStep; ++k) {
    q[k] = static_cast<int8_t>(rounded[k] > 127.0f ? 127.0f : rounded[k] < -127.0f ? -127.0f : rounded[k]);
    sum += q[k];
  }
  Int8Step step;
  for (int quarter = 0; quarter < 4; ++quarter) {
    const int8_t* at = q + 8 * quarter;
    const int8_t low[4] = {at[0], at[4], at[1], at[5]}, high[4] = {at[2], at[6], at[3], at[7]};
    std::memcpy(&step.low[quarter], low, 4);
    std::memcpy(&step.high[quarter], high, 4);
  }
  step.half_scale = 0.5f * scale;
  step.correction = -12 * sum;
  return step;
}

// Groups `group` .. group+R-1 of a chunk times M activation rows x[steps][M]: totals[m][kChunk].
template <int M, int R>
void int8_tile(const Mxfp4& weights, Mxfp4::Place place, int group, const Int8Step* x, float* totals) {
  V total[M][R];
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) total[m][r] = zero();
  for (int64_t s = 0; s < weights.steps; ++s, place.next(), x += M) {
    I sum[M][R];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) sum[m][r] = set1_int(x[m].correction);
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter)
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        place.prefetch(group + r, quarter);
        const Codes codes = place.octet(group + r, quarter).codes;
        const I low = twice<false>(codes), high = twice<true>(codes);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m)
          sum[m][r] = dot(dot(sum[m][r], low, x[m].low[quarter]), high, x[m].high[quarter]);
      }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V scale = place.scale(group + r);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m)
        total[m][r] = fma(to_float(sum[m][r]), mul(scale, set1(x[m].half_scale)), total[m][r]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) store(totals + m * kChunk + (group + r) * kLanes, total[m][r]);
}

template <int M>
void int8_rows(const Mxfp4& weights, const Mxfp4::Place& place, int groups, const Int8Step* x, int rows, float* totals) {
  if constexpr (M > 1)
    if (rows < M) return int8_rows<M - 1>(weights, place, groups, x, rows, totals);
  constexpr int R = M <= 2 ? 4 : 2;
  int group = 0;
  for (; group + R <= groups; group += R) int8_tile<M, R>(weights, place, group, x, totals);
  for (; group < groups; ++group) int8_tile<M, 1>(weights, place, group, x, totals);
}

// What `pack_rows` and `multiply` of matmul.h do, with 8-bit activations.
template <class Row, class Weights, class Finish>
void multiply_int8(const RowBlock* blocks, int64_t count, int64_t total_rows, int64_t inputs, int64_t outputs,
                   const Row& row, const Weights& weights, const Finish& finish) {
  const int64_t steps = steps_of(inputs), chunks = chunks_of(outputs);
  auto* packed = static_cast<Int8Step*>(shoal::scratch(shoal::kSplit, sizeof(Int8Step) * total_rows * steps));
  shoal::parallel_for(count, [&](int64_t i) {
    for (int from = 0; from < blocks[i].rows; from += kInt8Tokens) {
      const int rows = blocks[i].rows - from < kInt8Tokens ? blocks[i].rows - from : kInt8Tokens;
      Int8Step* to = packed + (blocks[i].first + from) * steps;
      for (int m = 0; m < rows; ++m)
        for (int64_t s = 0; s < steps; ++s)
          to[s * rows + m] = quantize(row(blocks[i].first + from + m) + s * kStep);
    }
  });
  shoal::parallel_for(count * chunks, [&](int64_t task) {
    const RowBlock& block = blocks[task / chunks];
    const int64_t chunk = task % chunks;
    float* totals = static_cast<float*>(shoal::scratch(shoal::kRaw, sizeof(float) * kRowBlock * kChunk));
    const int groups = groups_of(outputs, chunk);
    const Mxfp4 matrix = weights(block.expert);
    for (int from = 0; from < block.rows; from += kInt8Tokens) {
      const int rows = block.rows - from < kInt8Tokens ? block.rows - from : kInt8Tokens;
      int8_rows<kInt8Tokens>(matrix, matrix.at(chunk, groups), groups, packed + (block.first + from) * steps, rows,
                             totals + from * kChunk);
    }
    finish(block, chunk, totals);
  });
}

}  // namespace
