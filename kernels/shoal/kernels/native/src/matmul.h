// Rows of activations times rows of weights, exactly rounded in one order for every output.
//
// Sixteen weight rows lie side by side, one per lane (packing.cpp), so that a product walks along the inputs with one
// activation for all lanes and nothing is added across lanes:
//
//   within a step of 32 inputs, sum = x[k] * w[k] + sum, fused, for k = 0, 1, ..., 31, from zero;
//   total = sum * the step's scale + total, fused, step after step, from zero (dense weights: sum + total).
//
// That order knows neither how many rows there are nor which tile an output falls into, so a row's result is the same
// bits alone or in any batch. Two ways of getting there: few activation rows decode the weights in registers, many
// decode a panel of weights to fp32 once and run register tiles over it.
//
// A kind of weights `W` says: `steps`; `kScaled`; octet(at, quarter), eight inputs of one group, which know get<k>();
// scale(at), where a place `at` comes from at(chunk, groups) and moves by next() and over(group).
#pragma once

#include <utility>

#include "lanes.h"
#include "pool.h"

namespace {

constexpr int64_t kStep = 32;                  // inputs
constexpr int kGroups = 4;                     // of 16 weight rows each: a chunk, the unit of layout and of work
constexpr int kChunk = kGroups * kLanes;       // weight rows
constexpr int kRowBlock = 72;                  // activation rows of a task at most: they fit a second-level cache
constexpr int kPanelSteps = 1;                 // of a panel: it and one tile's activations fit a first-level cache
constexpr int kPanelStep = (kStep + 1) * kLanes;  // floats of one group's step in a panel: its weights, then its scales

SHOAL_INLINE int64_t steps_of(int64_t inputs) { return (inputs + kStep - 1) / kStep; }
SHOAL_INLINE int64_t chunks_of(int64_t outputs) { return (outputs + kChunk - 1) / kChunk; }
SHOAL_INLINE int groups_of(int64_t outputs, int64_t chunk) {  // in this chunk
  const int64_t left = (outputs - chunk * kChunk + kLanes - 1) / kLanes;
  return static_cast<int>(left < kGroups ? left : kGroups);
}

template <class Body, int... K>
SHOAL_INLINE void for_each_constant(std::integer_sequence<int, K...>, const Body& body) {
  (body(std::integral_constant<int, K>{}), ...);
}

#define SHOAL_OCTET(k) \
  for_each_constant(std::make_integer_sequence<int, 8>{}, [&](auto k) __attribute__((always_inline))

struct Dense {
  static constexpr bool kScaled = false;
  struct Octet {
    const uint16_t* pairs;
    template <int k>
    SHOAL_MEMBER V get() const {
      return k % 2 ? load_high(pairs + k / 2 * 2 * kLanes) : load_low(pairs + k / 2 * 2 * kLanes);
    }
  };
  struct Place {
    const uint16_t* pairs;
    int groups;
    SHOAL_MEMBER Octet octet(int group, int quarter) const {
      return {pairs + (group * kStep + quarter * 8) * kLanes};
    }
    SHOAL_MEMBER V scale(int) const { return zero(); }
    SHOAL_MEMBER void next() { pairs += groups * kStep * kLanes; }
    SHOAL_MEMBER void prefetch(int group, int quarter) const {
      const char* line = reinterpret_cast<const char*>(pairs + (group * kStep + quarter * 8) * kLanes) + 4096;
      for (int i = 0; i < 4; ++i) __builtin_prefetch(line + 64 * i);
    }
  };
  const uint16_t* data;
  int64_t steps;
  Dense(const uint16_t* weights, int64_t inputs) : data(weights), steps(steps_of(inputs)) {}
  Place at(int64_t chunk, int groups) const { return {data + chunk * kChunk * steps * kStep, groups}; }
};

struct Mxfp4 {
  static constexpr bool kScaled = true;
  struct Octet {
    Codes codes;
    template <int k>
    SHOAL_MEMBER V get() const { return decode<k / 2 * 4 + k % 2 * 16>(codes); }
  };
  struct Place {
    const uint8_t *codes, *scales;
    int groups;
    SHOAL_MEMBER Octet octet(int group, int quarter) const { return {load_codes(codes + (group * 4 + quarter) * 64)}; }
    SHOAL_MEMBER V scale(int group) const { return load_scales(scales + group * kLanes); }
    SHOAL_MEMBER void next() { codes += groups * 256, scales += groups * kLanes; }
    SHOAL_MEMBER void prefetch(int group, int quarter) const {
      __builtin_prefetch(codes + (group * 4 + quarter) * 64 + 2048);
      if (group == 0 && quarter == 0) __builtin_prefetch(scales + 512);
    }
  };
  const uint8_t *codes, *scales;  // of one expert
  int64_t steps;
  Place at(int64_t chunk, int groups) const {
    return {codes + chunk * kChunk * steps * 16, scales + chunk * kChunk * steps, groups};
  }
};

// Groups `group` .. group+R-1 of a chunk times M activation rows x[inputs][M]: totals[m][kChunk].
template <int M, int R, class W>
void direct_tile(const W& weights, typename W::Place place, int group, const float* x, float* totals) {
  V total[M][R];
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) total[m][r] = zero();
  for (int64_t s = 0; s < weights.steps; ++s, place.next()) {
    V sum[M][R];
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) sum[m][r] = zero();
#pragma GCC unroll 1
    for (int quarter = 0; quarter < 4; ++quarter, x += 8 * M) {
      typename W::Octet octet[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) place.prefetch(group + r, quarter), octet[r] = place.octet(group + r, quarter);
      SHOAL_OCTET(k) {
        V weight[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) weight[r] = octet[r].template get<k>();
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const V value = set1(x[k * M + m]);
#pragma GCC unroll 4
          for (int r = 0; r < R; ++r) sum[m][r] = fma(weight[r], value, sum[m][r]);
        }
      });
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V scale = place.scale(group + r);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m)
        total[m][r] = W::kScaled ? fma(sum[m][r], scale, total[m][r]) : add(sum[m][r], total[m][r]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < R; ++r) store(totals + m * kChunk + (group + r) * kLanes, total[m][r]);
}

template <int M, int R, class W>
void direct_groups_of(const W& weights, const typename W::Place& place, int groups, const float* x, float* totals) {
  int group = 0;
  for (; group + R <= groups; group += R) direct_tile<M, R>(weights, place, group, x, totals);
  if constexpr (R > 1)
    for (; group < groups; ++group) direct_tile<M, 1>(weights, place, group, x, totals);
}

template <int M, class W>
void direct_chunk(const W& weights, const typename W::Place& place, int groups, const float* x, int rows,
                  float* totals) {
  if constexpr (M > 1)
    if (rows < M) return direct_chunk<M - 1>(weights, place, groups, x, rows, totals);
  direct_groups_of<M, direct_groups(M)>(weights, place, groups, x, totals);
}

// The next `steps` steps of R groups as panel[step]: [32][R][16] weights, then [R][16] scales.
template <int R, class W>
void decode_panel(typename W::Place place, int group, int steps, float* panel) {
  for (int s = 0; s < steps; ++s, place.next(), panel += R * kPanelStep) {
    for (int quarter = 0; quarter < 4; ++quarter)
      for (int r = 0; r < R; ++r) {
        place.prefetch(group + r, quarter);
        const typename W::Octet octet = place.octet(group + r, quarter);
        float* to = panel + (quarter * 8 * R + r) * kLanes;
        SHOAL_OCTET(k) { store(to + k * R * kLanes, octet.template get<k>()); });
      }
    for (int r = 0; W::kScaled && r < R; ++r) store(panel + (kStep * R + r) * kLanes, place.scale(group + r));
  }
}

// Adds a panel's steps to totals[m][kChunk], for M activation rows x[inputs][M].
template <int M, int R, bool scaled>
void panel_tile(const float* panel, int steps, const float* x, float* totals) {
  for (int s = 0; s < steps; ++s, panel += R * kPanelStep) {
    V sum[M][R];
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < R; ++r) sum[m][r] = zero();
    const float* weights = panel;
#pragma GCC unroll 2
    for (int k = 0; k < kStep; ++k, weights += R * kLanes, x += M) {
      V weight[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) weight[r] = load(weights + r * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const V value = set1(x[m]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sum[m][r] = fma(weight[r], value, sum[m][r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const V scale = scaled ? load(weights + r * kLanes) : zero();
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        float* at = totals + m * kChunk + r * kLanes;
        store(at, scaled ? fma(sum[m][r], scale, load(at)) : add(sum[m][r], load(at)));
      }
    }
  }
}

template <int M, int R, bool scaled>
void panel_tiles(int rows, const float* panel, int steps, const float* x, float* totals) {
  if constexpr (M > 1)
    if (rows < M) return panel_tiles<M - 1, R, scaled>(rows, panel, steps, x, totals);
  panel_tile<M, R, scaled>(panel, steps, x, totals);
}

// How a block of activation rows is cut into register tiles: as few as possible, of nearly equal height.
struct Tiles {
  int count, height, taller;  // the first `taller` ones are one row higher
  explicit Tiles(int rows)
      : count(rows <= kDirectTokens ? 1 : (rows + kPanelTokens - 1) / kPanelTokens),
        height(rows / count),
        taller(rows % count) {}
  int rows(int tile) const { return height + (tile < taller); }
};

template <int R, class W>
void panel_group(const W& weights, typename W::Place place, int group, const float* x, int rows, float* panel,
                 float* totals) {
  const Tiles tiles(rows);
  for (int64_t step = 0; step < weights.steps; step += kPanelSteps) {
    const int64_t left = weights.steps - step;
    const int steps = static_cast<int>(left < kPanelSteps ? left : kPanelSteps);
    decode_panel<R, W>(place, group, steps, panel);
    for (int s = 0; s < steps; ++s) place.next();
    for (int tile = 0, row = 0; tile < tiles.count; row += tiles.rows(tile++)) {
      const float* from = x + row * weights.steps * kStep + step * kStep * tiles.rows(tile);
      panel_tiles<kPanelTokens, R, W::kScaled>(tiles.rows(tile), panel, steps, from,
                                               totals + row * kChunk + group * kLanes);
    }
  }
}

// One chunk of weights times a block of `rows` <= kRowBlock activation rows, cut into tiles and packed by `pack_rows`:
// totals[rows][kChunk], in this thread's scratch memory.
template <class W>
const float* multiply_chunk(const W& weights, int64_t outputs, int64_t chunk, const float* x, int rows) {
  constexpr size_t kTotals = kRowBlock * kChunk, kPanel = kPanelSteps * kPanelGroups * kPanelStep;
  float* totals = static_cast<float*>(shoal::scratch(shoal::kRaw, sizeof(float) * (kTotals + kPanel)));
  float* panel = totals + kTotals;
  const int groups = groups_of(outputs, chunk);
  const typename W::Place place = weights.at(chunk, groups);
  if (rows <= kDirectTokens) {
    direct_chunk<kDirectTokens>(weights, place, groups, x, rows, totals);
    return totals;
  }
  std::memset(totals, 0, sizeof(float) * rows * kChunk);
  int group = 0;
  for (; group + kPanelGroups <= groups; group += kPanelGroups)
    panel_group<kPanelGroups>(weights, place, group, x, rows, panel, totals);
  if constexpr (kPanelGroups > 1)
    for (; group < groups; ++group) panel_group<1>(weights, place, group, x, rows, panel, totals);
  return totals;
}

// Activation rows of one expert (or of all, for dense weights) that one task multiplies.
struct RowBlock {
  int64_t expert, first;
  int rows;
};

// Cuts rows offsets[e] .. offsets[e+1]-1 of every expert into blocks of nearly equal size. Returns how many; they lie
// in this thread's scratch memory.
int64_t cut_rows(const int32_t* offsets, int64_t experts, const RowBlock*& blocks) {
  const int64_t most = offsets[experts] / kRowBlock + experts;
  auto* found = static_cast<RowBlock*>(shoal::scratch(shoal::kTasks, sizeof(RowBlock) * most));
  int64_t count = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const int64_t rows = offsets[e + 1] - offsets[e], parts = (rows + kRowBlock - 1) / kRowBlock;
    for (int64_t part = 0, first = offsets[e]; part < parts; ++part) {
      const int64_t size = rows / parts + (part < rows % parts);
      found[count++] = {e, first, static_cast<int>(size)};
      first += size;
    }
  }
  blocks = found;
  return count;
}

// Rows row(first) .. of `inputs` floats as their tiles read them: per tile [inputs, padded to whole steps][its rows].
// The block of rows from `first` on begins at first * the padded inputs. In this thread's scratch memory.
template <class Row>
const float* pack_rows(const RowBlock* blocks, int64_t count, int64_t total_rows, int64_t inputs, const Row& row) {
  const int64_t padded = steps_of(inputs) * kStep;
  float* packed = static_cast<float*>(shoal::scratch(shoal::kSplit, sizeof(float) * total_rows * padded));
  const auto pack = [&](int64_t i) {
    const Tiles tiles(blocks[i].rows);
    float* to = packed + blocks[i].first * padded;
    for (int tile = 0, from = 0; tile < tiles.count; from += tiles.rows(tile++)) {
      const int rows = tiles.rows(tile);
      for (int m = 0; m < rows; ++m) {
        const float* x = row(blocks[i].first + from + m);
        for (int64_t k = 0; k < inputs; ++k) to[k * rows + m] = x[k];
        for (int64_t k = inputs; k < padded; ++k) to[k * rows + m] = 0.0f;
      }
      to += rows * padded;
    }
  };
  if (total_rows * padded < 1 << 15)
    for (int64_t i = 0; i < count; ++i) pack(i);
  else
    shoal::parallel_for(count, pack);
  return packed;
}

// finish(block, chunk, totals) for every block of rows and every chunk of weights(expert), on the pool's threads.
template <class Weights, class Finish>
void multiply(const RowBlock* blocks, int64_t count, const float* packed, int64_t inputs, int64_t outputs,
              const Weights& weights, const Finish& finish) {
  const int64_t chunks = chunks_of(outputs), padded = steps_of(inputs) * kStep;
  shoal::parallel_for(count * chunks, [&](int64_t task) {
    const RowBlock& block = blocks[task / chunks];
    const float* x = packed + block.first * padded;
    finish(block, task % chunks, multiply_chunk(weights(block.expert), outputs, task % chunks, x, block.rows));
  });
}

}  // namespace
