// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// Vectors of 8 floats: AVX2, FMA, F16C.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define W 8
#define INLINE inline __attribute__((always_inline))

namespace {

typedef __m256 vf;

inline vf splat(float x) { return _mm256_set1_ps(x); }
inline vf load(const float *p) { return _mm256_loadu_ps(p); }
inline void store(float *p, vf x) { _mm256_storeu_ps(p, x); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
// 1 / x, rounded but for the last bit; x is about 1.
inline vf reciprocal(vf x) {
  vf y = _mm256_rcp_ps(x);
  return fma(y, fnma(x, y, splat(1.0f)), y);
}
inline vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
inline vf minus_abs(vf a) { return _mm256_or_ps(_mm256_set1_ps(-0.0f), a); }
inline vf select_gt(vf a, vf b, vf yes, vf no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
// 2^x. A table holds 2^(i / 8), so that a polynomial of degree 3 has a
// relative error of 1.1e-7. Its first coefficients are those of Taylor's
// series: slow decays (tiny x) have no bias, which a long memory would add up.
// Adding 1.5 * 2^20 rounds to a multiple of 1 / 8 on the addition units, which
// the products leave free, and puts the index of the table in the low bits.
// Results below 2^-126 become that, those above 2^127.9 that.
inline vf exp2(vf x) {
  // The bits of 2^(i / 8), less what adding t's low bits will add to them.
  alignas(32) static const uint32_t powers[8] = {
      0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a,
      0x3f7744fd, 0x3f7ac0c7};
  // In this order of operands a NaN stays one.
  x = _mm256_min_ps(splat(127.9f), vmax(splat(-126.0f), x));
  vf magic = splat(1572864.0f), t = x + magic, n = t - magic, r = x - n;
  __m256i index = _mm256_castps_si256(t);
  __m256i table = _mm256_load_si256((const __m256i *)powers);
  table = _mm256_permutevar8x32_epi32(table, index);
  vf power = _mm256_castsi256_ps(
      _mm256_add_epi32(table, _mm256_slli_epi32(index, 20)));
  vf p = fma(splat(0.0555047504f), r, splat(0.2402574873f));
  p = fma(p, r, splat(0.6931471806f));
  return fma(power * r, p, power);
}

inline __m256i part(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline vf load_part(const float *p, int count) {
  return _mm256_maskload_ps(p, part(count));
}
inline void store_part(float *p, vf x, int count) {
  _mm256_maskstore_ps(p, part(count), x);
}

inline vf load_bf16(const uint16_t *p) {
  __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
inline void store_bf16(uint16_t *p, vf x) {
  // Round to nearest even; a NaN must not be rounded up to infinity.
  __m256i i = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(i, 16),
                                 _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(i, _mm256_add_epi32(odd,
                                                   _mm256_set1_epi32(0x7fff)));
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000), nan);
  r = _mm256_srli_epi32(r, 16);
  _mm_storeu_si128((__m128i *)p,
                   _mm_packus_epi32(_mm256_castsi256_si128(r),
                                    _mm256_extracti128_si256(r, 1)));
}
inline vf load_f16(const uint16_t *p) {
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
inline void store_f16(uint16_t *p, vf x) {
  _mm_storeu_si128((__m128i *)p,
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

inline float sum(vf x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x),
                        _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// The sums over the lanes of four vectors.
inline void store_sums4(float *p, vf v0, vf v1, vf v2, vf v3) {
  vf s = _mm256_hadd_ps(_mm256_hadd_ps(v0, v1), _mm256_hadd_ps(v2, v3));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(s),
                              _mm256_extractf128_ps(s, 1)));
}

// Transposes 8 x 8: out[i * out_stride + j] = in[j * in_stride + i].
inline void transpose(const float *in, int64_t in_stride, float *out,
                      int64_t out_stride) {
  vf r[8], t[8];
  for (int i = 0; i < 8; i++) r[i] = load(in + i * in_stride);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      __m256d a = _mm256_castps_pd(t[i + j]), b = _mm256_castps_pd(t[i + j + 2]);
      r[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
      r[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
    }
  for (int c = 0; c < 4; c++) {
    store(out + c * out_stride, _mm256_permute2f128_ps(r[c], r[c + 4], 0x20));
    store(out + (c + 4) * out_stride,
          _mm256_permute2f128_ps(r[c], r[c + 4], 0x31));
  }
}

}  // namespace
