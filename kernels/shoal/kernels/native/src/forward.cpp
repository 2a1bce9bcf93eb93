// A whole step of a model whose experts are all here, in one call: the same functions one after another as the model
// calls them one by one, so the same bits, without a way back to Python after each.
#include <chrono>
#include <cstring>
#include <utility>

#include "operations.h"

namespace {

// Everything about one layer that stays from step to step. Packed weights; see the functions that read them.
struct Layer {
  const float *norm, *sinks, *router_norm;
  const uint16_t *qkv, *qkv_bias, *out, *out_bias, *router, *router_bias;
  float *keys, *values;
  const int32_t* slot_of;
  const uint8_t *up_codes, *up_scales, *down_codes, *down_scales;
  const uint16_t *up_bias, *down_bias;
  int64_t* loads;
  int64_t slots, pool, window;  // pool: 0 full attention, 1 sliding
};

struct Model {
  const Layer* layers;
  const uint16_t *embedding, *unembedding;
  const float *norm, *cos, *sin;
  int64_t count, V, H, hq, hk, hd, E, k, I, P, block_size, int8, blocks[2];
  double eps, scale, limit, alpha;
};

struct Step {
  const int64_t *ids, *positions, *rows, *slots[2];
  const int32_t *cu_q, *context_lens, *tables[2];
  float* logits;
  double* seconds;  // added to: attention, routing, experts, unembedding
  int64_t T, S, L, max_blocks[2];
};

class Watch {
 public:
  explicit Watch(double* seconds) : seconds_(seconds) {}
  void lap(int phase) {
    const auto now = std::chrono::steady_clock::now();
    seconds_[phase] += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  double* seconds_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

enum Phase { kAttention, kRouting, kExperts, kUnembedding };

const char* run_layer(const Model& m, const Step& step, const Layer& layer, float*& x, float*& other, char* memory,
                      Watch& watch) {
  const int64_t T = step.T, p = layer.pool, R = T * m.k;
  if (const char* wrong = shoal_attention_block(
          x, layer.norm, layer.qkv, layer.qkv_bias, layer.out, layer.out_bias, layer.sinks, step.positions, m.cos,
          m.sin, layer.keys, layer.values, step.slots[p], step.cu_q, step.context_lens, step.tables[p], other, T, m.H,
          m.hq, m.hk, m.hd, m.P, step.S, m.blocks[p], m.block_size, step.max_blocks[p], layer.window,
          static_cast<float>(m.eps), static_cast<float>(m.scale)))
    return wrong;
  std::swap(x, other);
  watch.lap(kAttention);
  float *normed = carve<float>(memory, T * m.H), *logits = carve<float>(memory, T * m.E);
  float *weights = carve<float>(memory, R), *rows = carve<float>(memory, R * m.H);
  int32_t* ids = carve<int32_t>(memory, R);
  if (const char* wrong = shoal_norm_linear(x, layer.router_norm, layer.router, layer.router_bias, normed, logits, T,
                                            m.E, m.H, static_cast<float>(m.eps)))
    return wrong;
  if (const char* wrong = shoal_route(logits, ids, weights, T, m.E, m.k)) return wrong;
  watch.lap(kRouting);
  int64_t pairs = 0;
  if (const char* wrong = shoal_expert_rows(normed, ids, layer.slot_of, layer.up_codes, layer.up_scales, layer.up_bias,
                                            layer.down_codes, layer.down_scales, layer.down_bias, rows, layer.loads,
                                            &pairs, T, m.k, m.E, layer.slots, m.H, m.I, m.int8,
                                            static_cast<float>(m.limit), static_cast<float>(m.alpha)))
    return wrong;
  watch.lap(kExperts);
  if (const char* wrong = shoal_combine(rows, weights, other, T, m.k, m.H)) return wrong;
  for (int64_t i = 0; i < T * m.H; ++i) x[i] += other[i];
  watch.lap(kRouting);
  return nullptr;
}

}  // namespace

// logits[L,V] of tokens rows[L]; keys and values of all T tokens are written.
SHOAL_API const char* shoal_forward(const Model* model, const Step* given) {
  const Model& m = *model;
  const Step& step = *given;
  const int64_t T = step.T, R = T * m.k;
  for (int64_t t = 0; t < T; ++t)
    if (step.ids[t] < 0 || step.ids[t] >= m.V) return "a token is outside the vocabulary";
  for (int64_t l = 0; l < step.L; ++l)
    if (step.rows[l] < 0 || step.rows[l] >= T) return "a row whose logits are wanted does not exist";
  Watch watch(step.seconds);
  const int64_t floats = (3 * T + 2 * step.L) * m.H + T * m.E + R * (m.H + 2);
  char* memory = static_cast<char*>(shoal::scratch(shoal::kForward, sizeof(float) * floats + 10 * 64));
  float *x = carve<float>(memory, T * m.H), *other = carve<float>(memory, T * m.H);
  float *wanted = carve<float>(memory, step.L * m.H), *normed = carve<float>(memory, step.L * m.H);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < m.H; ++i) {
      const uint32_t bits = static_cast<uint32_t>(m.embedding[step.ids[t] * m.H + i]) << 16;
      std::memcpy(x + t * m.H + i, &bits, sizeof bits);
    }
  for (int64_t i = 0; i < m.count; ++i)
    if (const char* wrong = run_layer(m, step, m.layers[i], x, other, memory, watch)) return wrong;
  for (int64_t l = 0; l < step.L; ++l) std::memcpy(wanted + l * m.H, x + step.rows[l] * m.H, sizeof(float) * m.H);
  const char* wrong = shoal_norm_linear(wanted, m.norm, m.unembedding, nullptr, normed, step.logits, step.L, m.V, m.H,
                                        static_cast<float>(m.eps));
  watch.lap(kUnembedding);
  return wrong;
}
