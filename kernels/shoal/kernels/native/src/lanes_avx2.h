// V in two 256-bit registers, lanes 0-7 and 8-15. Needs AVX2 and FMA.
#pragma once
#include <immintrin.h>

namespace {

constexpr bool kFused = true;  // fma rounds once

// Register tiles, in groups of 16 weight rows by activation rows: of weights decoded on the way (at most kDirectTokens
// activation rows), and of weights decoded into a panel before.
constexpr int kDirectTokens = 3;
constexpr int direct_groups(int M) { return M == 1 ? 2 : 1; }
constexpr int kPanelGroups = 2, kPanelTokens = 3;

struct V { __m256 a, b; };

SHOAL_INLINE V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
SHOAL_INLINE V set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SHOAL_INLINE V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SHOAL_INLINE void store(float* p, V x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
SHOAL_INLINE V load_first(const float* p, int n) {
  alignas(32) float padded[kLanes] = {};
  std::memcpy(padded, p, static_cast<size_t>(n) * sizeof(float));
  return load(padded);
}
SHOAL_INLINE void store_first(float* p, V x, int n) {
  alignas(32) float padded[kLanes];
  store(padded, x);
  std::memcpy(p, padded, static_cast<size_t>(n) * sizeof(float));
}
SHOAL_INLINE V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
SHOAL_INLINE V sub(V x, V y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
SHOAL_INLINE V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
SHOAL_INLINE V div(V x, V y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
SHOAL_INLINE V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
// minimum and maximum give y where either is NaN
SHOAL_INLINE V minimum(V x, V y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
SHOAL_INLINE V maximum(V x, V y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
SHOAL_INLINE V round_even(V x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
SHOAL_INLINE __m256 power_of_two_8(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
SHOAL_INLINE V power_of_two(V n) { return {power_of_two_8(n.a), power_of_two_8(n.b)}; }
// Lanes from <= i < to keep their value, the others take `other`.
SHOAL_INLINE V keep_range(V x, int from, int to, float other) {
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
  const __m256i under = _mm256_set1_epi32(from - 1), over = _mm256_set1_epi32(to);
  const __m256i keep_a = _mm256_and_si256(_mm256_cmpgt_epi32(low, under), _mm256_cmpgt_epi32(over, low));
  const __m256i keep_b = _mm256_and_si256(_mm256_cmpgt_epi32(high, under), _mm256_cmpgt_epi32(over, high));
  const __m256 rest = _mm256_set1_ps(other);
  return {_mm256_blendv_ps(rest, x.a, _mm256_castsi256_ps(keep_a)),
          _mm256_blendv_ps(rest, x.b, _mm256_castsi256_ps(keep_b))};
}
// Tree: i + (i+8), then i + (i+4), i + (i+2), i + (i+1).
SHOAL_INLINE float reduce_add(V x) {
  const __m256 v8 = _mm256_add_ps(x.a, x.b);
  const __m128 v4 = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  const __m128 v2 = _mm_add_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_add_ss(v2, _mm_shuffle_ps(v2, v2, 1)));
}
SHOAL_INLINE float reduce_max(V x) {
  const __m256 v8 = _mm256_max_ps(x.a, x.b);
  const __m128 v4 = _mm_max_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
  const __m128 v2 = _mm_max_ps(v4, _mm_movehl_ps(v4, v4));
  return _mm_cvtss_f32(_mm_max_ss(v2, _mm_shuffle_ps(v2, v2, 1)));
}

struct Codes { __m256i a, b; };  // eight codes of each of 16 weight rows: see packing.cpp
SHOAL_INLINE __m256i load_8(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
SHOAL_INLINE Codes load_codes(const uint8_t* p) { return {load_8(p), load_8(p + 32)}; }
// Magnitude from the table by the low three bits, sign from bit 3.
template <int shift>
SHOAL_INLINE __m256 decode_8(__m256i codes) {
  const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(codes, 28 - shift), _mm256_set1_epi32(INT32_MIN));
  const __m256 magnitude = _mm256_permutevar8x32_ps(_mm256_load_ps(kE2m1), _mm256_srli_epi32(codes, shift));
  return _mm256_or_ps(magnitude, _mm256_castsi256_ps(sign));
}
template <int shift>
SHOAL_INLINE V decode(Codes codes) { return {decode_8<shift>(codes.a), decode_8<shift>(codes.b)}; }
SHOAL_INLINE __m256 load_scales_8(const uint8_t* p) {
  const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m256i subnormal = _mm256_cmpeq_epi32(bytes, _mm256_setzero_si256());
  return _mm256_castsi256_ps(_mm256_blendv_epi8(_mm256_slli_epi32(bytes, 23), _mm256_set1_epi32(1 << 22), subnormal));
}
SHOAL_INLINE V load_scales(const uint8_t* p) { return {load_scales_8(p), load_scales_8(p + 8)}; }  // byte 0 is 2^-127
// Two bf16 inputs of each of 16 weight rows, the first in the low halves.
SHOAL_INLINE __m256 low_8(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
SHOAL_INLINE __m256 high_8(__m256i pairs) {
  return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
}
SHOAL_INLINE V load_low(const uint16_t* p) { return {low_8(load_8(p)), low_8(load_8(p + 16))}; }
SHOAL_INLINE V load_high(const uint16_t* p) { return {high_8(load_8(p)), high_8(load_8(p + 16))}; }

// Whole numbers, for activations of 8 bits. `twice` holds the codes of low or of high nibbles as unsigned bytes,
// 2 * value + 12; dot adds four products of such bytes and of x's signed bytes to each lane, exactly.
struct I { __m256i a, b; };
SHOAL_INLINE I set1_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
SHOAL_INLINE V to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
template <bool high>
SHOAL_INLINE __m256i twice_8(__m256i codes) {
  const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kTwice)));
  return _mm256_shuffle_epi8(table, _mm256_and_si256(high ? _mm256_srli_epi32(codes, 4) : codes, _mm256_set1_epi8(15)));
}
template <bool high>
SHOAL_INLINE I twice(Codes codes) { return {twice_8<high>(codes.a), twice_8<high>(codes.b)}; }
SHOAL_INLINE __m256i dot_8(__m256i sum, __m256i weights, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(weights, x);  // at most 2 * 24 * 127
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
SHOAL_INLINE I dot(I sum, I weights, int32_t x) {
  const __m256i four = _mm256_set1_epi32(x);
  return {dot_8(sum.a, weights.a, four), dot_8(sum.b, weights.b, four)};
}

}  // namespace
