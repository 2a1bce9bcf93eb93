// Rows of activations times rows of weights, sixteen lanes at a time, one order for every output.
//
//   lane l of an output sums x[16 s + l] * w[16 s + l] for s = 0, 1, 2, ..., fused, from zero;
//   the sixteen sums are then added over the fixed tree of `reduce_add`.
//
// That order knows neither how many rows there are nor which tile an output falls into, so a row's result is the same
// bits alone or in any batch. Two ways of getting there: few activation rows decode the weights in registers, many decode
// a panel of weight rows to fp32 once and run register tiles over it.
//
// A kind of weights `W` says: `steps` (32 inputs each), `tail` (0..31 inputs after them), `row(n)` a cursor, and
// read(cursor, step, front, back), read_tail(...), prefetch(cursor, step).
#pragma once

#include "lanes.h"
#include "pool.h"

namespace {

constexpr int kChunk = 32;       // weight rows per task; an even number, so that gate and up rows stay together
constexpr int kRowBlock = 60;    // activation rows between two decodes of a panel: they fit a second-level cache
constexpr int64_t kWide = 32;    // inputs per step

// Weight rows n .. n+kDirectRows-1 times M activation rows; rows from `valid` on repeat the last and are dropped.
template <int M, class W>
SHOAL_INLINE void direct_tile(const W& weights, int64_t n, int valid, const float* const* x, float* raw) {
  typename W::Cursor at[kDirectRows];
#pragma GCC unroll 8
  for (int r = 0; r < kDirectRows; ++r) at[r] = weights.row(n + (r < valid ? r : valid - 1));
  V sum[M][kDirectRows];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int r = 0; r < kDirectRows; ++r) sum[m][r] = zero();
  for (int64_t s = 0; s < weights.steps; ++s) {
#pragma GCC unroll 8
    for (int r = 0; r < kDirectRows; ++r) {
      V front, back;
      W::prefetch(at[r], s, kDirectRows);
      W::read(at[r], s, front, back);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
        sum[m][r] = fma(back, load(x[m] + kWide * s + 16), fma(front, load(x[m] + kWide * s), sum[m][r]));
    }
  }
  if (weights.tail)
    for (int r = 0; r < kDirectRows; ++r) {
      V front, back;
      weights.read_tail(at[r], front, back);
      const int64_t s = weights.steps;
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
        sum[m][r] = fma(back, load(x[m] + kWide * s + 16), fma(front, load(x[m] + kWide * s), sum[m][r]));
    }
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < valid; ++r) raw[m * kChunk + r] = reduce_add(sum[m][r]);
}

// The same, over a panel of decoded weights: panel[half step][kPanelRows][16].
template <int M>
SHOAL_INLINE void panel_tile(const float* panel, int64_t half_steps, int valid, const float* const* x, float* raw) {
  V sum[M][kPanelRows];
  const float* row[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    row[m] = x[m];
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) sum[m][r] = zero();
  }
  for (int64_t s = 0; s < half_steps; ++s, panel += kPanelRows * kLanes) {
    V weight[kPanelRows];
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) weight[r] = load(panel + r * kLanes);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const V value = load(row[m] + s * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kPanelRows; ++r) sum[m][r] = fma(weight[r], value, sum[m][r]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < valid; ++r) raw[m * kChunk + r] = reduce_add(sum[m][r]);
}

// Calls tile<min(M, count)>: the number of rows must be known to the compiler.
template <int M, class W>
void direct_rows(int count, const W& weights, int64_t n, int valid, const float* const* x, float* raw) {
  if constexpr (M > 1)
    if (count < M) return direct_rows<M - 1>(count, weights, n, valid, x, raw);
  direct_tile<M>(weights, n, valid, x, raw);
}
template <int M>
void panel_rows(int count, const float* panel, int64_t half_steps, int valid, const float* const* x, float* raw) {
  if constexpr (M > 1)
    if (count < M) return panel_rows<M - 1>(count, panel, half_steps, valid, x, raw);
  panel_tile<M>(panel, half_steps, valid, x, raw);
}

template <class W>
void decode_panel(const W& weights, int64_t n, int valid, float* panel) {
  for (int r = 0; r < kPanelRows; ++r) {
    const typename W::Cursor at = weights.row(n + (r < valid ? r : valid - 1));
    float* out = panel + r * kLanes;
    for (int64_t s = 0; s < weights.steps; ++s, out += 2 * kPanelRows * kLanes) {
      V front, back;
      W::prefetch(at, s, kPanelRows);
      W::read(at, s, front, back);
      store(out, front);
      store(out + kPanelRows * kLanes, back);
    }
    if (weights.tail) {
      V front, back;
      weights.read_tail(at, front, back);
      store(out, front);
      store(out + kPanelRows * kLanes, back);
    }
  }
}

// Weight rows from .. from+width-1 (width <= kChunk) times rows x[0..count-1], each padded with zeros to whole steps.
// finish(m, raw) then turns the `width` dot products of activation row m into output.
template <class W, class Finish>
void multiply_chunk(const W& weights, int64_t from, int width, const float* const* x, int64_t count, Finish finish) {
  const int64_t half_steps = 2 * (weights.steps + (weights.tail ? 1 : 0));
  float* raw = static_cast<float*>(shoal::scratch(shoal::kRaw, sizeof(float) * kRowBlock * kChunk));
  if (count <= kDirectTokens) {
    for (int n = 0; n < width; n += kDirectRows) {
      const int valid = width - n < kDirectRows ? width - n : kDirectRows;
      direct_rows<kDirectTokens>(static_cast<int>(count), weights, from + n, valid, x, raw + n);
    }
    for (int64_t m = 0; m < count; ++m) finish(m, raw + m * kChunk);
    return;
  }
  const size_t panel_floats = static_cast<size_t>(half_steps) * kPanelRows * kLanes;
  float* panel = static_cast<float*>(shoal::scratch(shoal::kPanel, sizeof(float) * panel_floats));
  for (int64_t block = 0; block < count; block += kRowBlock) {
    const int64_t rows = count - block < kRowBlock ? count - block : kRowBlock;
    for (int n = 0; n < width; n += kPanelRows) {
      const int valid = width - n < kPanelRows ? width - n : kPanelRows;
      decode_panel(weights, from + n, valid, panel);
      for (int64_t m = 0; m < rows; m += kPanelTokens) {
        const int tokens = static_cast<int>(rows - m < kPanelTokens ? rows - m : kPanelTokens);
        panel_rows<kPanelTokens>(tokens, panel, half_steps, valid, x + block + m, raw + m * kChunk + n);
      }
    }
    for (int64_t m = 0; m < rows; ++m) finish(block + m, raw + m * kChunk);
  }
}

}  // namespace
