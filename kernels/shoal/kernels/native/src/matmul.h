// Rows of activations times rows of weights, sixteen lanes at a time, one order for every output.
//
//   lane l of an output sums x[16 s + l] * w[16 s + l] for s = 0, 1, 2, ..., fused, from zero;
//   the sixteen sums are then added over the fixed tree of `reduce_add`.
//
// That order knows neither how many rows there are nor which tile an output falls into, so a row's result is the same
// bits alone or in any batch. Two ways of getting there: few activation rows decode the weights in registers, many
// decode a panel of weight rows to fp32 once and run register tiles over it.
//
// A kind of weights `W` says: `steps` (32 inputs each), `tail` (0..31 inputs after them) and at(n), a place in the
// matrix that starts at row n and knows read(r, front, back) (row n + r, one step), read_tail(r, ...), advance() to the
// next step and prefetch<R>() for a walk over R rows.
#pragma once

#include "lanes.h"
#include "pool.h"

namespace {

constexpr int kChunk = 32;       // weight rows per task; an even number, so that gate and up rows stay together
constexpr int kRowBlock = 60;    // activation rows between two decodes of a panel: they fit a second-level cache
constexpr int kPanelSteps = 32;  // of a panel: it and one tile's activations fit a first-level cache
constexpr int64_t kWide = 32;    // inputs per step

// Weight rows n .. n+R-1 times M activation rows.
template <int M, int R, class W>
void direct_tile(const W& weights, int64_t n, const float* const* x, float* raw) {
  typename W::Place place = weights.at(n);
  V sum[M][R];
  const float* row[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    row[m] = x[m];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) sum[m][r] = zero();
  }
  const auto multiply = [&](int r, V front, V back, int64_t at) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum[m][r] = fma(back, load(row[m] + at + 16), fma(front, load(row[m] + at), sum[m][r]));
  };
  const int64_t whole = weights.steps * kWide;
  for (int64_t at = 0; at < whole; at += kWide, place.advance()) {
    place.template prefetch<R>();
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      V front, back;
      place.read(r, front, back);
      multiply(r, front, back, at);
    }
  }
  if (weights.tail) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      V front, back;
      place.read_tail(r, weights.tail, front, back);
      multiply(r, front, back, whole);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) raw[m * kChunk + r] = reduce_add(sum[m][r]);
}

// All `width` weight rows from `from` on times `count` <= M activation rows, both known to the compiler tile by tile.
template <int M, class W>
void direct_chunk(const W& weights, int64_t from, int width, const float* const* x, int count, float* raw) {
  if constexpr (M > 1)
    if (count < M) return direct_chunk<M - 1>(weights, from, width, x, count, raw);
  constexpr int R = direct_rows(M);
  int n = 0;
  for (; n + R <= width; n += R) direct_tile<M, R>(weights, from + n, x, raw + n);
  for (; n < width; ++n) direct_tile<M, 1>(weights, from + n, x, raw + n);
}

// Part of a sum over a panel of decoded weights, panel[half step][kPanelRows][16]: continues `partial` unless it is the
// first part, and leaves it there unless it is the last, whose sums go to raw.
template <int M>
void panel_tile(const float* panel, int half_steps, const float* const* x, int64_t offset, float* partial, bool first,
                bool last, int valid, float* raw) {
  V sum[M][kPanelRows];
  const float* row[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    row[m] = x[m] + offset;
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) sum[m][r] = first ? zero() : load(partial + (m * kPanelRows + r) * kLanes);
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
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int r = 0; r < kPanelRows; ++r) {
      if (!last) store(partial + (m * kPanelRows + r) * kLanes, sum[m][r]);
      else if (r < valid) raw[m * kChunk + r] = reduce_add(sum[m][r]);
    }
}

template <int M, class... Arguments>
void panel_tiles(int count, Arguments... arguments) {
  if constexpr (M > 1)
    if (count < M) return panel_tiles<M - 1>(count, arguments...);
  panel_tile<M>(arguments...);
}

// Decodes `steps` whole steps (and the tail after them) of `valid` rows; rows beyond keep what the panel held.
template <class Place>
void decode_panel(Place& place, int steps, int64_t tail, int valid, float* panel) {
  for (int s = 0; s < steps; ++s, place.advance(), panel += 2 * kPanelRows * kLanes) {
    place.template prefetch<kPanelRows>();
    for (int r = 0; r < valid; ++r) {
      V front, back;
      place.read(r, front, back);
      store(panel + r * kLanes, front);
      store(panel + (kPanelRows + r) * kLanes, back);
    }
  }
  for (int r = 0; tail && r < valid; ++r) {
    V front, back;
    place.read_tail(r, tail, front, back);
    store(panel + r * kLanes, front);
    store(panel + (kPanelRows + r) * kLanes, back);
  }
}

// Weight rows n .. n+valid-1 (valid <= kPanelRows) times `rows` <= kRowBlock activation rows.
template <class W>
void panel_block(const W& weights, int64_t n, int valid, const float* const* x, int rows, float* panel, float* partial,
                 float* raw) {
  typename W::Place place = weights.at(n);
  for (int64_t s = 0, left = weights.steps; s == 0 || left > 0; s += kPanelSteps, left -= kPanelSteps) {
    const bool first = s == 0, last = left <= kPanelSteps;
    const int steps = static_cast<int>(last ? left : kPanelSteps);
    const int64_t tail = last ? weights.tail : 0;
    decode_panel(place, steps, tail, valid, panel);
    for (int m = 0; m < rows; m += kPanelTokens)
      panel_tiles<kPanelTokens>(rows - m, static_cast<const float*>(panel), 2 * (steps + (tail ? 1 : 0)), x + m,
                                s * kWide, partial + m * kPanelRows * kLanes, first, last, valid, raw + m * kChunk);
  }
}

// Weight rows from .. from+width-1 (width <= kChunk) times rows x[0..count-1], each padded with zeros to whole steps.
// finish(m, raw) then turns the `width` dot products of activation row m into output.
template <class W, class Finish>
void multiply_chunk(const W& weights, int64_t from, int width, const float* const* x, int64_t count, Finish finish) {
  static_assert(kRowBlock % kPanelTokens == 0, "a block holds whole tiles");
  constexpr size_t kRawFloats = kRowBlock * kChunk, kPanelFloats = 2 * (kPanelSteps + 1) * kPanelRows * kLanes;
  constexpr size_t kPartialFloats = kRowBlock * kPanelRows * kLanes;
  constexpr size_t kBytes = sizeof(float) * (kRawFloats + kPanelFloats + kPartialFloats);
  float* raw = static_cast<float*>(shoal::scratch(shoal::kRaw, kBytes));
  float *panel = raw + kRawFloats, *partial = panel + kPanelFloats;
  if (count == 0) return;
  const int64_t blocks = (count + kRowBlock - 1) / kRowBlock;  // of equal size, up to whole tiles
  const int64_t tiles = (count + blocks * kPanelTokens - 1) / (blocks * kPanelTokens), step = tiles * kPanelTokens;
  for (int64_t block = 0; block < count; block += step) {
    const int rows = static_cast<int>(count - block < step ? count - block : step);
    if (rows <= kDirectTokens)
      direct_chunk<kDirectTokens>(weights, from, width, x + block, rows, raw);
    else
      for (int n = 0; n < width; n += kPanelRows) {
        const int valid = width - n < kPanelRows ? width - n : kPanelRows;
        panel_block(weights, from + n, valid, x + block, rows, panel, partial, raw + n);
      }
    for (int m = 0; m < rows; ++m) finish(block + m, raw + m * kChunk);
  }
}

}  // namespace
