// What is done to each token by itself: rms_norm, rotary embedding, routing, the sum over experts, the KV write.
#include "abi.h"
#include "lanes.h"
#include "pool.h"

namespace {

constexpr int64_t kRowsPerTask = 16;

template <class Body>
void for_each_row(int64_t rows, const Body& body) {
  shoal::parallel_for((rows + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t last = (task + 1) * kRowsPerTask < rows ? (task + 1) * kRowsPerTask : rows;
    for (int64_t row = task * kRowsPerTask; row < last; ++row) body(row);
  });
}

// One head, NeoX halves: (a, b) -> (a cos - b sin, b cos + a sin), each operation rounded once as in torch.
void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[half + i];
    head[i] = a * cos[i] - b * sin[i];
    head[half + i] = b * cos[i] + a * sin[i];
  }
}

}  // namespace

// out[T,H] = x / sqrt(mean(x^2) + eps) * weight
SHOAL_API const char* shoal_rms_norm(const float* x, const float* weight, float* out, int64_t T, int64_t H, float eps) {
  for_each_row(T, [&](int64_t t) {
    const float* row = x + t * H;
    V squares = zero();
    int64_t i = 0;
    for (; i + kLanes <= H; i += kLanes) {
      const V value = load(row + i);
      squares = fma(value, value, squares);
    }
    const int rest = static_cast<int>(H - i);
    if (rest) {
      const V value = load_first(row + i, rest);
      squares = fma(value, value, squares);
    }
    const V scale = set1(1.0f / std::sqrt(reduce_add(squares) / static_cast<float>(H) + eps));
    for (i = 0; i + kLanes <= H; i += kLanes) store(out + t * H + i, mul(mul(load(row + i), scale), load(weight + i)));
    if (rest) {
      const V value = mul(mul(load_first(row + i, rest), scale), load_first(weight + i, rest));
      store_first(out + t * H + i, value, rest);
    }
  });
  return nullptr;
}

// q[T,hq,2*half] and k[T,hk,2*half] turned in place by cos, sin [P,half] at positions[T].
SHOAL_API const char* shoal_apply_rope(float* q, float* k, const int64_t* positions, const float* cos, const float* sin,
                                       int64_t T, int64_t hq, int64_t hk, int64_t half, int64_t P) {
  for (int64_t t = 0; t < T; ++t)
    if (positions[t] < 0 || positions[t] >= P) return "a position is outside the rotary table";
  for_each_row(T, [&](int64_t t) {
    const float *c = cos + positions[t] * half, *s = sin + positions[t] * half;
    for (int64_t h = 0; h < hq; ++h) rotate(q + (t * hq + h) * 2 * half, c, s, half);
    for (int64_t h = 0; h < hk; ++h) rotate(k + (t * hk + h) * 2 * half, c, s, half);
  });
  return nullptr;
}

// k, v [T,width] to rows slots[T] of the caches [slots_total,width]; a negative slot is skipped.
SHOAL_API const char* shoal_write_kv(const float* k, const float* v, float* k_cache, float* v_cache,
                                     const int64_t* slots, int64_t T, int64_t width, int64_t slots_total) {
  for (int64_t t = 0; t < T; ++t)
    if (slots[t] >= slots_total) return "a slot is outside the cache";
  for (int64_t t = 0; t < T; ++t) {
    if (slots[t] < 0) continue;
    std::memcpy(k_cache + slots[t] * width, k + t * width, sizeof(float) * width);
    std::memcpy(v_cache + slots[t] * width, v + t * width, sizeof(float) * width);
  }
  return nullptr;
}

// The k greatest of logits[T,E], descending, equal ones by ascending expert; weights are their softmax.
SHOAL_API const char* shoal_route(const float* logits, int32_t* ids, float* weights, int64_t T, int64_t E, int64_t k) {
  if (k < 1 || k > E) return "k is not in 1..E";
  const int64_t padded = (k + kLanes - 1) / kLanes * kLanes;
  for_each_row(T, [&](int64_t t) {
    const float* row = logits + t * E;
    float* chosen = static_cast<float*>(shoal::scratch(shoal::kState, sizeof(float) * padded));
    bool* taken = static_cast<bool*>(shoal::scratch(shoal::kKeys, sizeof(bool) * E));
    std::memset(taken, 0, sizeof(bool) * E);
    for (int64_t j = 0; j < k; ++j) {
      int64_t best = -1;
      for (int64_t e = 0; e < E; ++e)
        if (!taken[e] && (best < 0 || row[e] > row[best])) best = e;
      taken[best] = true;
      ids[t * k + j] = static_cast<int32_t>(best);
      chosen[j] = row[best] - row[ids[t * k]];
    }
    for (int64_t j = k; j < padded; ++j) chosen[j] = 0.0f;
    for (int64_t j = 0; j < padded; j += kLanes) store(chosen + j, exponential(load(chosen + j)));
    float sum = 0.0f;
    for (int64_t j = 0; j < k; ++j) sum += chosen[j];
    for (int64_t j = 0; j < k; ++j) weights[t * k + j] = chosen[j] / sum;
  });
  return nullptr;
}

// order[R'], offsets[E+1]: the indices of ids[R] grouped by expert, stable; negative ids are left out. R' = offsets[E].
SHOAL_API const char* shoal_sort_by_expert(const int32_t* ids, int32_t* order, int32_t* offsets, int64_t R, int64_t E) {
  for (int64_t r = 0; r < R; ++r)
    if (ids[r] >= E) return "an expert id is too great";
  int32_t* next = static_cast<int32_t*>(shoal::scratch(shoal::kTasks, sizeof(int32_t) * (E + 1)));
  std::memset(next, 0, sizeof(int32_t) * (E + 1));
  for (int64_t r = 0; r < R; ++r)
    if (ids[r] >= 0) ++next[ids[r] + 1];
  for (int64_t e = 0; e < E; ++e) next[e + 1] += next[e];
  std::memcpy(offsets, next, sizeof(int32_t) * (E + 1));
  for (int64_t r = 0; r < R; ++r)
    if (ids[r] >= 0) order[next[ids[r]]++] = static_cast<int32_t>(r);
  return nullptr;
}

// out[T,H] = sum over j of weights[T,j] * rows[T,j,H], in the order of j.
SHOAL_API const char* shoal_combine(const float* rows, const float* weights, float* out, int64_t T, int64_t k,
                                    int64_t H) {
  for_each_row(T, [&](int64_t t) {
    for (int64_t i = 0; i < H; i += kLanes) {
      const int width = static_cast<int>(H - i < kLanes ? H - i : kLanes);
      V sum = zero();
      for (int64_t j = 0; j < k; ++j)
        sum = fma(set1(weights[t * k + j]), load_first(rows + (t * k + j) * H + i, width), sum);
      store_first(out + t * H + i, sum, width);
    }
  });
  return nullptr;
}
