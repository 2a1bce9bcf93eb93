// Whole parts of a layer in one call: the same functions one after another, so the same bits, without a way back to
// Python after each.
#include <cstring>

#include "operations.h"

// normed[T,H] = rms_norm(x[T,H]); out[T,N] = normed weight[N,H]^T + bias; weight and bias bf16, bias may be null.
SHOAL_API const char* shoal_norm_linear(const float* x, const float* norm, const uint16_t* weight, const uint16_t* bias,
                                        float* normed, float* out, int64_t T, int64_t N, int64_t H, float eps) {
  shoal_rms_norm(x, norm, normed, T, H, eps);
  return shoal_linear(normed, weight, bias, out, T, N, H);
}

// out[T,H] = x + projection(attention(rope(qkv(rms_norm(x))))), keys and values written to the caches at slots[T].
// For the shapes of everything else see the functions called.
SHOAL_API const char* shoal_attention_block(
    const float* x, const float* norm, const uint16_t* qkv, const uint16_t* qkv_bias, const uint16_t* projection,
    const uint16_t* projection_bias, const float* sinks, const int64_t* positions, const float* cos, const float* sin,
    float* k_cache, float* v_cache, const int64_t* slots, const int32_t* cu_q, const int32_t* context_lens,
    const int32_t* tables, float* out, int64_t T, int64_t H, int64_t hq, int64_t hk, int64_t hd, int64_t P, int64_t S,
    int64_t blocks, int64_t block_size, int64_t max_blocks, int64_t window, float eps, float scale) {
  const int64_t q_size = hq * hd, kv_size = hk * hd, fused_size = q_size + 2 * kv_size;
  char* memory = static_cast<char*>(
      shoal::scratch(shoal::kBlock, sizeof(float) * T * (H + fused_size + 2 * (q_size + kv_size)) + 6 * 64));
  float *normed = carve<float>(memory, T * H), *fused = carve<float>(memory, T * fused_size);
  float *q = carve<float>(memory, T * q_size), *attended = carve<float>(memory, T * q_size);
  float *k = carve<float>(memory, T * kv_size), *v = carve<float>(memory, T * kv_size);
  shoal_rms_norm(x, norm, normed, T, H, eps);
  if (const char* wrong = shoal_linear(normed, qkv, qkv_bias, fused, T, fused_size, H)) return wrong;
  for (int64_t t = 0; t < T; ++t) {
    const float* row = fused + t * fused_size;
    std::memcpy(q + t * q_size, row, sizeof(float) * q_size);
    std::memcpy(k + t * kv_size, row + q_size, sizeof(float) * kv_size);
    std::memcpy(v + t * kv_size, row + q_size + kv_size, sizeof(float) * kv_size);
  }
  if (const char* wrong = shoal_apply_rope(q, k, positions, cos, sin, T, hq, hk, hd / 2, P)) return wrong;
  if (const char* wrong = shoal_write_kv(k, v, k_cache, v_cache, slots, T, kv_size, blocks * block_size)) return wrong;
  if (const char* wrong = shoal_attention(q, k_cache, v_cache, cu_q, context_lens, tables, sinks, attended, T, S, hq,
                                          hk, hd, blocks, block_size, max_blocks, window, scale))
    return wrong;
  if (const char* wrong = shoal_linear(attended, projection, projection_bias, out, T, H, q_size)) return wrong;
  for (int64_t i = 0; i < T * H; ++i) out[i] += x[i];
  return nullptr;
}

// One row of out[pairs,H] per (token, choice) whose expert is here, in the order of ids[T,k]; slot_of[E] says where an
// expert's weights lie, -1 that they are elsewhere; a negative id is elsewhere too. loads[slots] counts rows up.
// x[T,H]; gate_up [slots,2I,H], down [slots,H,I].
SHOAL_API const char* shoal_expert_rows(const float* x, const int32_t* ids, const int32_t* slot_of,
                                        const uint8_t* up_blocks, const uint8_t* up_scales, const uint16_t* up_bias,
                                        const uint8_t* down_blocks, const uint8_t* down_scales,
                                        const uint16_t* down_bias, float* out, int64_t* loads, int64_t* pairs,
                                        int64_t T, int64_t k, int64_t E, int64_t slots, int64_t H, int64_t I,
                                        int64_t int8, float limit, float alpha) {
  const int64_t R = T * k;
  char* memory = static_cast<char*>(shoal::scratch(
      shoal::kBlock, sizeof(float) * R * (I + H) + sizeof(int32_t) * (4 * R + slots + 1) + 7 * 64));
  float *hidden = carve<float>(memory, R * I), *sorted = carve<float>(memory, R * H);
  int32_t *slot = carve<int32_t>(memory, R), *order = carve<int32_t>(memory, R), *rows = carve<int32_t>(memory, R);
  int32_t *place = carve<int32_t>(memory, R), *offsets = carve<int32_t>(memory, slots + 1);
  int32_t held = 0;
  for (int64_t r = 0; r < R; ++r) {
    if (ids[r] >= E) return "an expert id is too great";
    slot[r] = ids[r] < 0 ? -1 : slot_of[ids[r]];
    place[r] = held;
    held += ids[r] >= 0;
    if (ids[r] >= 0 && slot[r] < 0) return "an expert is asked for that is not here";
  }
  *pairs = held;
  if (const char* wrong = shoal_sort_by_expert(slot, order, offsets, R, slots)) return wrong;
  for (int64_t s = 0; s < slots; ++s) loads[s] += offsets[s + 1] - offsets[s];
  for (int64_t r = 0; r < held; ++r) rows[r] = order[r] / static_cast<int32_t>(k);
  if (const char* wrong = shoal_gate_up(x, rows, offsets, up_blocks, up_scales, up_bias, hidden, T, held, slots, 2 * I,
                                        H, int8, limit, alpha))
    return wrong;
  if (const char* wrong =
          shoal_down(hidden, offsets, down_blocks, down_scales, down_bias, sorted, held, slots, H, I, int8))
    return wrong;
  for (int64_t r = 0; r < held; ++r)
    std::memcpy(out + place[order[r]] * H, sorted + r * H, sizeof(float) * H);
  return nullptr;
}
