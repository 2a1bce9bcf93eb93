// V in four 128-bit vectors of the compiler's own kind (GCC and Clang): SSE2, NEON or plain code.
// Without a fused multiply-add in hardware `fma` rounds twice: results then differ in the last bits from those of AVX2
// and AVX-512.
#pragma once

namespace {

#if defined(__FP_FAST_FMAF)
constexpr bool kFused = true;  // fma rounds once
#else
constexpr bool kFused = false;  // fma rounds the product and the sum
#endif

// Register tiles, in groups of 16 weight rows by activation rows: of weights decoded on the way (at most kDirectTokens
// activation rows), and of weights decoded into a panel before.
constexpr int kDirectTokens = 1;
constexpr int direct_groups(int) { return 1; }
constexpr int kPanelGroups = 1, kPanelTokens = 2;

typedef float F4 __attribute__((vector_size(16)));
struct V { F4 q[4]; };

#define SHOAL_EACH_LANE(EXPRESSION)       \
  V out;                                  \
  for (int i = 0; i < 4; ++i)             \
    for (int j = 0; j < 4; ++j) out.q[i][j] = EXPRESSION; \
  return out

SHOAL_INLINE V set1(float x) {
  const F4 q = {x, x, x, x};
  return {{q, q, q, q}};
}
SHOAL_INLINE V zero() { return set1(0.0f); }
SHOAL_INLINE V load(const float* p) {
  V out;
  std::memcpy(&out, p, sizeof out);
  return out;
}
SHOAL_INLINE void store(float* p, V x) { std::memcpy(p, &x, sizeof x); }
SHOAL_INLINE V load_first(const float* p, int n) {
  float padded[kLanes] = {};
  std::memcpy(padded, p, static_cast<size_t>(n) * sizeof(float));
  return load(padded);
}
SHOAL_INLINE void store_first(float* p, V x, int n) { std::memcpy(p, &x, static_cast<size_t>(n) * sizeof(float)); }
SHOAL_INLINE V add(V x, V y) { return {{x.q[0] + y.q[0], x.q[1] + y.q[1], x.q[2] + y.q[2], x.q[3] + y.q[3]}}; }
SHOAL_INLINE V sub(V x, V y) { return {{x.q[0] - y.q[0], x.q[1] - y.q[1], x.q[2] - y.q[2], x.q[3] - y.q[3]}}; }
SHOAL_INLINE V mul(V x, V y) { return {{x.q[0] * y.q[0], x.q[1] * y.q[1], x.q[2] * y.q[2], x.q[3] * y.q[3]}}; }
SHOAL_INLINE V div(V x, V y) { return {{x.q[0] / y.q[0], x.q[1] / y.q[1], x.q[2] / y.q[2], x.q[3] / y.q[3]}}; }
SHOAL_INLINE V fma(V x, V y, V z) {
#if defined(__FP_FAST_FMAF)
  SHOAL_EACH_LANE(__builtin_fmaf(x.q[i][j], y.q[i][j], z.q[i][j]));
#else
  return add(mul(x, y), z);
#endif
}
SHOAL_INLINE V minimum(V x, V y) { SHOAL_EACH_LANE(x.q[i][j] < y.q[i][j] ? x.q[i][j] : y.q[i][j]); }
SHOAL_INLINE V maximum(V x, V y) { SHOAL_EACH_LANE(x.q[i][j] > y.q[i][j] ? x.q[i][j] : y.q[i][j]); }
SHOAL_INLINE V round_even(V x) {  // |x| < 2^22 here: adding 1.5 * 2^23 leaves no fraction bits
  const V magic = set1(12582912.0f);
  return sub(add(x, magic), magic);
}
SHOAL_INLINE V power_of_two(V n) {
  V out;
  for (int i = 0; i < kLanes; ++i) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.q[i / 4][i % 4]) + 127) << 23;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    out.q[i / 4][i % 4] = value;
  }
  return out;
}
// Lanes from <= i < to keep their value, the others take `other`.
SHOAL_INLINE V keep_range(V x, int from, int to, float other) {
  SHOAL_EACH_LANE(4 * i + j >= from && 4 * i + j < to ? x.q[i][j] : other);
}
// Tree: i + (i+8), then i + (i+4), i + (i+2), i + (i+1).
SHOAL_INLINE float reduce_add(V x) {
  const F4 v4 = (x.q[0] + x.q[2]) + (x.q[1] + x.q[3]);
  return (v4[0] + v4[2]) + (v4[1] + v4[3]);
}
SHOAL_INLINE float reduce_max(V x) {
  float best = x.q[0][0];
  for (int i = 1; i < kLanes; ++i) best = x.q[i / 4][i % 4] > best ? x.q[i / 4][i % 4] : best;
  return best;
}

SHOAL_INLINE V from_bits(const uint32_t* bits) {
  V out;
  std::memcpy(&out, bits, sizeof out);
  return out;
}
struct Codes { uint32_t v[kLanes]; };  // eight codes of each of 16 weight rows: see packing.cpp
SHOAL_INLINE Codes load_codes(const uint8_t* p) {
  Codes codes;
  std::memcpy(&codes, p, sizeof codes);
  return codes;
}
template <int shift>
SHOAL_INLINE V decode(const Codes& codes) { SHOAL_EACH_LANE(kE2m1[codes.v[4 * i + j] >> shift & 15]); }
SHOAL_INLINE V load_scales(const uint8_t* p) {  // powers of two; byte 0 is 2^-127
  uint32_t bits[kLanes];
  for (int i = 0; i < kLanes; ++i) bits[i] = p[i] == 0 ? 1u << 22 : static_cast<uint32_t>(p[i]) << 23;
  return from_bits(bits);
}
// Two bf16 inputs of each of 16 weight rows, the first in the low halves.
SHOAL_INLINE V load_low(const uint16_t* p) {
  uint32_t bits[kLanes];
  for (int i = 0; i < kLanes; ++i) bits[i] = static_cast<uint32_t>(p[2 * i]) << 16;
  return from_bits(bits);
}
SHOAL_INLINE V load_high(const uint16_t* p) {
  uint32_t bits[kLanes];
  for (int i = 0; i < kLanes; ++i) bits[i] = static_cast<uint32_t>(p[2 * i + 1]) << 16;
  return from_bits(bits);
}

// Whole numbers, for activations of 8 bits. `twice` holds the codes of low or of high nibbles as unsigned bytes,
// 2 * value + 12; dot adds four products of such bytes and of x's signed bytes to each lane, exactly.
struct I { int32_t v[kLanes]; };
SHOAL_INLINE I set1_int(int32_t x) {
  I out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = x;
  return out;
}
SHOAL_INLINE V to_float(I x) { SHOAL_EACH_LANE(static_cast<float>(x.v[4 * i + j])); }
template <bool high>
SHOAL_INLINE I twice(const Codes& codes) {
  I out;
  for (int i = 0; i < kLanes; ++i) {
    uint32_t bytes = 0;
    for (int b = 0; b < 4; ++b) bytes |= static_cast<uint32_t>(kTwice[codes.v[i] >> (8 * b + 4 * high) & 15]) << 8 * b;
    out.v[i] = static_cast<int32_t>(bytes);
  }
  return out;
}
SHOAL_INLINE I dot(I sum, I weights, int32_t x) {
  for (int i = 0; i < kLanes; ++i)
    for (int b = 0; b < 4; ++b)
      sum.v[i] += static_cast<uint8_t>(weights.v[i] >> 8 * b) * static_cast<int8_t>(x >> 8 * b);
  return sum;
}

}  // namespace
