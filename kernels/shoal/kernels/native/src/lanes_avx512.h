// V in one 512-bit register. Needs AVX-512 F, BW, DQ and VL.
#pragma once
#include <immintrin.h>

namespace {

constexpr bool kFused = true;  // fma rounds once

// Register tiles, in groups of 16 weight rows by activation rows: of weights decoded on the way (at most kDirectTokens
// activation rows), and of weights decoded into a panel before.
constexpr int kDirectTokens = 12;
constexpr int direct_groups(int M) { return M <= 5 ? 4 : 2; }
constexpr int kPanelGroups = 4, kPanelTokens = 6;

struct V { __m512 v; };

SHOAL_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

SHOAL_INLINE V zero() { return {_mm512_setzero_ps()}; }
SHOAL_INLINE V set1(float x) { return {_mm512_set1_ps(x)}; }
SHOAL_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
SHOAL_INLINE V load_first(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
SHOAL_INLINE void store(float* p, V x) { _mm512_storeu_ps(p, x.v); }
SHOAL_INLINE void store_first(float* p, V x, int n) { _mm512_mask_storeu_ps(p, first(n), x.v); }
SHOAL_INLINE V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
SHOAL_INLINE V sub(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
SHOAL_INLINE V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
SHOAL_INLINE V div(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
SHOAL_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
SHOAL_INLINE V minimum(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }  // b where either is NaN
SHOAL_INLINE V maximum(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
SHOAL_INLINE V round_even(V a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
SHOAL_INLINE V power_of_two(V n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// Lanes from <= i < to keep their value, the others take `other`.
SHOAL_INLINE V keep_range(V a, int from, int to, float other) {
  from = from < 0 ? 0 : from;
  to = to > kLanes ? kLanes : to;
  const __mmask16 keep = from >= to ? 0 : static_cast<__mmask16>(first(to) & ~first(from));
  return {_mm512_mask_blend_ps(keep, _mm512_set1_ps(other), a.v)};
}
// Tree: i + (i+8), then i + (i+4), i + (i+2), i + (i+1).
SHOAL_INLINE float reduce_add(V a) {
  const __m256 v8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps(v2, v2, 1)));
}
SHOAL_INLINE float reduce_max(V a) { return _mm512_reduce_max_ps(a.v); }

struct Codes { __m512i v; };  // eight codes of each of 16 weight rows: see packing.cpp
SHOAL_INLINE Codes load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int shift>
SHOAL_INLINE V decode(Codes codes) {  // takes the low four bits of every lane
  const __m512 table = _mm512_load_ps(kE2m1);
  return {_mm512_permutexvar_ps(shift ? _mm512_srli_epi32(codes.v, shift) : codes.v, table)};
}
SHOAL_INLINE V load_scales(const uint8_t* p) {  // powers of two; byte 0 is 2^-127
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __mmask16 zero_byte = _mm512_testn_epi32_mask(bytes, bytes);
  const __m512i subnormal = _mm512_set1_epi32(1 << 22);
  return {_mm512_castsi512_ps(_mm512_mask_mov_epi32(_mm512_slli_epi32(bytes, 23), zero_byte, subnormal))};
}
// Two bf16 inputs of each of 16 weight rows, the first in the low halves.
SHOAL_INLINE V load_low(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
SHOAL_INLINE V load_high(const uint16_t* p) {
  const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), mask))};
}

// Whole numbers, for activations of 8 bits. `twice` holds the codes of low or of high nibbles as unsigned bytes,
// 2 * value + 12; dot adds four products of such bytes and of x's signed bytes to each lane, exactly.
struct I { __m512i v; };
SHOAL_INLINE I set1_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
SHOAL_INLINE V to_float(I x) { return {_mm512_cvtepi32_ps(x.v)}; }
template <bool high>
SHOAL_INLINE I twice(Codes codes) {
  const __m512i table = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(kTwice)));
  const __m512i nibbles = high ? _mm512_srli_epi32(codes.v, 4) : codes.v;
  return {_mm512_shuffle_epi8(table, _mm512_and_si512(nibbles, _mm512_set1_epi8(15)))};
}
SHOAL_INLINE I dot(I sum, I weights, int32_t x) {
#if defined(__AVX512VNNI__)
  return {_mm512_dpbusd_epi32(sum.v, weights.v, _mm512_set1_epi32(x))};
#else
  const __m512i pairs = _mm512_maddubs_epi16(weights.v, _mm512_set1_epi32(x));  // at most 2 * 24 * 127
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
#endif
}

}  // namespace
