// The operations of the other files, for those that call several of them, and memory for what lies between.
#pragma once

#include "abi.h"
#include "pool.h"

extern "C" {
const char* shoal_linear(const float*, const uint16_t*, const uint16_t*, float*, int64_t, int64_t, int64_t);
const char* shoal_rms_norm(const float*, const float*, float*, int64_t, int64_t, float);
const char* shoal_apply_rope(float*, float*, const int64_t*, const float*, const float*, int64_t, int64_t, int64_t,
                             int64_t, int64_t);
const char* shoal_write_kv(const float*, const float*, float*, float*, const int64_t*, int64_t, int64_t, int64_t);
const char* shoal_attention(const float*, const float*, const float*, const int32_t*, const int32_t*, const int32_t*,
                            const float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                            int64_t, int64_t, float);
const char* shoal_sort_by_expert(const int32_t*, int32_t*, int32_t*, int64_t, int64_t);
const char* shoal_gate_up(const float*, const int32_t*, const int32_t*, const uint8_t*, const uint8_t*,
                          const uint16_t*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float,
                          float);
const char* shoal_down(const float*, const int32_t*, const uint8_t*, const uint8_t*, const uint16_t*, float*, int64_t,
                       int64_t, int64_t, int64_t, int64_t);
const char* shoal_route(const float*, int32_t*, float*, int64_t, int64_t, int64_t);
const char* shoal_combine(const float*, const float*, float*, int64_t, int64_t, int64_t);
const char* shoal_norm_linear(const float*, const float*, const uint16_t*, const uint16_t*, float*, float*, int64_t,
                              int64_t, int64_t, float);
const char* shoal_attention_block(const float*, const float*, const uint16_t*, const uint16_t*, const uint16_t*,
                                  const uint16_t*, const float*, const int64_t*, const float*, const float*, float*,
                                  float*, const int64_t*, const int32_t*, const int32_t*, const int32_t*, float*,
                                  int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                  int64_t, int64_t, float, float);
const char* shoal_expert_rows(const float*, const int32_t*, const int32_t*, const uint8_t*, const uint8_t*,
                              const uint16_t*, const uint8_t*, const uint8_t*, const uint16_t*, float*, int64_t*,
                              int64_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float, float);
}

namespace {

template <class Item>
Item* carve(char*& at, int64_t count) {
  auto* items = reinterpret_cast<Item*>(at);
  at += (sizeof(Item) * count + 63) / 64 * 64;
  return items;
}

}  // namespace
