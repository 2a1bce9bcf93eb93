// attention: paged keys and values, grouped query heads, a sink per head, an optional window; online softmax.
//
// Keys are taken in tiles of 64 that begin at absolute positions 0, 64, 128, ..., so the order of every sum depends on
// the query's own position and range alone, never on how the prompt was cut into chunks or on its neighbours. Of a
// tile, only keys that the query sees enter its sums; what lies beyond them in the cache may be anything, NaN included.
#include <algorithm>
#include <limits>

#include "abi.h"
#include "lanes.h"
#include "pool.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

constexpr int kTile = 64;      // keys
constexpr int kQueries = 8;    // queries of one task: they share the tiles that it gathers
constexpr int kMaxDim = 256;   // of a head
constexpr int kHeads = 8;      // query heads at once

struct Shape { int64_t hq, hk, hd, block_size, max_blocks; };

struct Paged {
  const float *k, *v;
  const int32_t* table;  // of one sequence
  const Shape& shape;
  int64_t row(int64_t position, int64_t head) const {
    const int64_t slot = table[position / shape.block_size] * shape.block_size + position % shape.block_size;
    return (slot * shape.hk + head) * shape.hd;
  }
};

#if defined(__SSE__)
// Columns of four rows of four.
SHOAL_INLINE void transpose4(const float* const* from, int64_t d, float* to) {
  __m128 a = _mm_loadu_ps(from[0] + d), b = _mm_loadu_ps(from[1] + d);
  __m128 c = _mm_loadu_ps(from[2] + d), e = _mm_loadu_ps(from[3] + d);
  _MM_TRANSPOSE4_PS(a, b, c, e);
  _mm_storeu_ps(to, a), _mm_storeu_ps(to + kTile, b);
  _mm_storeu_ps(to + 2 * kTile, c), _mm_storeu_ps(to + 3 * kTile, e);
}
#else
SHOAL_INLINE void transpose4(const float* const* from, int64_t d, float* to) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) to[i * kTile + j] = from[j][d + i];
}
#endif

// Positions base+from .. base+to-1 of one head: keys transposed to [hd][kTile], values as [kTile][hd].
void gather(const Paged& cache, int64_t head, int64_t base, int from, int to, float* keys, float* values) {
  const int64_t hd = cache.shape.hd;
  const float* row[kTile];
  for (int j = 0; j < kTile; ++j) {  // places outside the range repeat a neighbour; nobody's sums use them
    const int inside = j < from ? from : (j < to ? j : to - 1);
    const int64_t at = cache.row(base + inside, head);
    row[j] = cache.k + at;
    if (inside == j) std::memcpy(values + j * hd, cache.v + at, sizeof(float) * hd);
  }
  for (int j = from / 4 * 4; j < to; j += 4)
    for (int64_t d = 0; d < hd; d += 4) transpose4(row + j, d, keys + d * kTile + j);
}

// sum[h] = sum over i of a[h][i] * b[i], i ascending, onto what sum[h] holds; b's rows are `stride` apart.
template <int H>
SHOAL_INLINE void accumulate(V (&sum)[H], const float* a, int64_t a_stride, const float* b, int64_t stride, int from,
                             int to) {
  for (int i = from; i < to; ++i) {
    const V row = load(b + i * stride);
#pragma GCC unroll 8
    for (int h = 0; h < H; ++h) sum[h] = fma(set1(a[h * a_stride + i]), row, sum[h]);
  }
}

// Running state of the softmax of one query and one head.
struct Softmax { float peak, total; };

// One tile for H heads of one query, which sees its keys from .. to-1. q [H][hd], acc [H][hd].
template <int H>
void attend(const float* q, const float* keys, const float* values, int from, int to, int64_t hd, float scale,
            Softmax* state, float* acc) {
  float scores[H][kTile], shrink[kLanes] = {};
  const int first = from / kLanes, last = (to + kLanes - 1) / kLanes;
  float peak[H];
  for (int h = 0; h < H; ++h) peak[h] = state[h].peak;
  for (int i = first; i < last; ++i) {
    V sum[H];
    for (int h = 0; h < H; ++h) sum[h] = zero();
    accumulate<H>(sum, q, hd, keys + i * kLanes, kTile, 0, static_cast<int>(hd));
    for (int h = 0; h < H; ++h) {
      constexpr float hidden = -std::numeric_limits<float>::infinity();
      const V score = keep_range(mul(sum[h], set1(scale)), from - i * kLanes, to - i * kLanes, hidden);
      store(scores[h] + i * kLanes, score);
      peak[h] = std::max(peak[h], reduce_max(score));
    }
  }
  for (int h = 0; h < H; ++h) shrink[h] = state[h].peak - peak[h];
  store(shrink, exponential(load(shrink)));
  for (int h = 0; h < H; ++h) {
    V total = zero();
    for (int i = first; i < last; ++i) {
      const V shifted = sub(load(scores[h] + i * kLanes), set1(peak[h]));
      const V weight = keep_range(exponential(shifted), from - i * kLanes, to - i * kLanes, 0.0f);
      store(scores[h] + i * kLanes, weight);
      total = add(total, weight);
    }
    state[h] = {peak[h], state[h].total * shrink[h] + reduce_add(total)};
  }
  for (int64_t d = 0; d < hd; d += kLanes) {
    V sum[H];
    for (int h = 0; h < H; ++h) sum[h] = mul(load(acc + h * hd + d), set1(shrink[h]));
    accumulate<H>(sum, scores[0], kTile, values + d, hd, from, to);
    for (int h = 0; h < H; ++h) store(acc + h * hd + d, sum[h]);
  }
}

// All heads of a group in steps of eight, four, two, one.
void attend_group(int64_t heads, const float* q, const float* keys, const float* values, int from, int to, int64_t hd,
                  float scale, Softmax* state, float* acc) {
  for (int64_t h = 0; h < heads;) {
    const int64_t left = heads - h;
    const auto run = left >= kHeads ? attend<kHeads> : left >= 4 ? attend<4> : left >= 2 ? attend<2> : attend<1>;
    run(q + h * hd, keys, values, from, to, hd, scale, state + h, acc + h * hd);
    h += left >= kHeads ? kHeads : left >= 4 ? 4 : left >= 2 ? 2 : 1;
  }
}

struct Queries {
  const float* q;       // of the first one
  float* out;
  int64_t count, position;  // of the first one; the others follow
};

void attend_queries(const Queries& queries, const Paged& cache, int64_t head, const float* sinks, int64_t window,
                    float scale) {
  const auto [hq, hk, hd, block_size, max_blocks] = cache.shape;
  const int64_t group = hq / hk, rows = queries.count * group;
  const size_t state_bytes = sizeof(Softmax) * rows + sizeof(float) * rows * hd;
  auto* state = static_cast<Softmax*>(shoal::scratch(shoal::kState, state_bytes));
  float* acc = reinterpret_cast<float*>(state + rows);
  float* keys = static_cast<float*>(shoal::scratch(shoal::kKeys, sizeof(float) * 2 * kTile * hd));
  float* values = keys + kTile * hd;
  for (int64_t r = 0; r < rows; ++r) state[r] = {sinks[head * group + r % group], 1.0f};
  std::memset(acc, 0, sizeof(float) * rows * hd);
  const int64_t end = queries.position + queries.count;  // one past the last key that any of them sees
  const int64_t begin = std::max<int64_t>(0, queries.position - window + 1);
  for (int64_t base = begin / kTile * kTile; base < end; base += kTile) {
    const int from = static_cast<int>(std::max<int64_t>(begin - base, 0));
    const int to = static_cast<int>(std::min<int64_t>(end - base, kTile));
    gather(cache, head, base, from, to, keys, values);
    for (int64_t j = 0; j < queries.count; ++j) {
      const int64_t position = queries.position + j;
      const int low = static_cast<int>(std::max<int64_t>(position - window + 1 - base, 0));
      const int high = static_cast<int>(std::min<int64_t>(position + 1 - base, kTile));
      if (low >= high) continue;
      attend_group(group, queries.q + (j * hq + head * group) * hd, keys, values, low, high, hd, scale,
                   state + j * group, acc + j * group * hd);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* out = queries.out + (r / group * hq + head * group + r % group) * hd;
    for (int64_t d = 0; d < hd; d += kLanes) store(out + d, div(load(acc + r * hd + d), set1(state[r].total)));
  }
}

const char* check(const int32_t* cu_q, const int32_t* context_lens, const int32_t* tables, const Shape& shape,
                  int64_t T, int64_t S, int64_t blocks, int64_t window) {
  if (cu_q[0] != 0 || cu_q[S] != T) return "cu_q does not run from 0 to the number of queries";
  for (int64_t s = 0; s < S; ++s) {
    const int64_t count = cu_q[s + 1] - cu_q[s], context = context_lens[s];
    if (count < 0) return "cu_q descends";
    if (count == 0) continue;
    if (context < count) return "a context is shorter than its queries";
    if (context > shape.max_blocks * shape.block_size) return "a context is longer than its block table";
    const int64_t begin = std::max<int64_t>(0, context - count - window + 1) / shape.block_size;
    const int32_t* table = tables + s * shape.max_blocks;
    for (int64_t b = begin; b <= (context - 1) / shape.block_size; ++b)
      if (table[b] < 0 || table[b] >= blocks) return "a block is outside the cache";
  }
  return nullptr;
}

}  // namespace

// out[T,hq,hd]; q alike; caches [blocks,block_size,hk,hd]; query j of sequence s stands at context - queries + j.
SHOAL_API const char* shoal_attention(const float* q, const float* k_cache, const float* v_cache, const int32_t* cu_q,
                                      const int32_t* context_lens, const int32_t* tables, const float* sinks,
                                      float* out, int64_t T, int64_t S, int64_t hq, int64_t hk, int64_t hd,
                                      int64_t blocks, int64_t block_size, int64_t max_blocks, int64_t window,
                                      float scale) {
  const Shape shape{hq, hk, hd, block_size, max_blocks};
  if (hd % kLanes || hd > kMaxDim) return "head_dim is no multiple of 16 up to 256";
  if (const char* wrong = check(cu_q, context_lens, tables, shape, T, S, blocks, window)) return wrong;
  int64_t count = 0;
  for (int64_t s = 0; s < S; ++s) count += (cu_q[s + 1] - cu_q[s] + kQueries - 1) / kQueries;
  struct Item { int64_t sequence, first; };
  auto* items = static_cast<Item*>(shoal::scratch(shoal::kTasks, sizeof(Item) * count));
  count = 0;
  for (int64_t s = 0; s < S; ++s)
    for (int64_t first = cu_q[s]; first < cu_q[s + 1]; first += kQueries) items[count++] = {s, first};
  shoal::parallel_for(count * hk, [&](int64_t task) {
    const auto [s, first] = items[task / hk];
    const int64_t queries = std::min<int64_t>(kQueries, cu_q[s + 1] - first);
    const int64_t position = context_lens[s] - cu_q[s + 1] + first;
    const Paged cache{k_cache, v_cache, tables + s * max_blocks, shape};
    const Queries together{q + first * hq * hd, out + first * hq * hd, queries, position};
    attend_queries(together, cache, task % hk, sinks, window, scale);
  });
  return nullptr;
}
