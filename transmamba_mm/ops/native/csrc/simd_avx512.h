// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// Vectors of 16 floats: AVX-512 F, BW, DQ, VL.
#pragma once
#include <immintrin.h>
#include <stdint.h>

#define W 16
#define INLINE inline __attribute__((always_inline))

namespace {

typedef __m512 vf;

inline vf splat(float x) { return _mm512_set1_ps(x); }
inline vf load(const float *p) { return _mm512_loadu_ps(p); }
inline void store(float *p, vf x) { _mm512_storeu_ps(p, x); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
// 1 / x, rounded but for the last bit; x is about 1.
inline vf reciprocal(vf x) {
  vf y = _mm512_rcp14_ps(x);
  return fma(y, fnma(x, y, splat(1.0f)), y);
}
inline vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
inline vf minus_abs(vf a) { return _mm512_or_ps(_mm512_set1_ps(-0.0f), a); }
inline vf select_gt(vf a, vf b, vf yes, vf no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
// 2^x. A table holds 2^(i / 16), so that a polynomial of degree 3 has a
// relative error of 1.1e-7. Its first coefficients are those of Taylor's
// series: slow decays (tiny x) have no bias, which a long memory would add up.
// Adding 1.5 * 2^19 rounds to a multiple of 1 / 16 on the addition units, which
// the products leave free, and puts the index of the table in the low bits.
inline vf exp2(vf x) {
  alignas(64) static const float powers[16] = {
      1.0f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f,
      1.29683959f, 1.35425556f, 1.41421354f, 1.47682619f, 1.54221082f,
      1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f, 1.91520655f};
  vf magic = splat(786432.0f), t = x + magic, n = t - magic, r = x - n;
  vf power = _mm512_permutexvar_ps(_mm512_castps_si512(t), load(powers));
  vf p = fma(splat(0.05550428271f), r, splat(0.24023427207f));
  p = fma(p, r, splat(0.6931471806f));
  return _mm512_scalef_ps(fma(power * r, p, power), n);
}

inline vf load_part(const float *p, int count) {
  return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
}
inline void store_part(float *p, vf x, int count) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), x);
}

inline vf load_bf16(const uint16_t *p) {
  __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
inline void store_bf16(uint16_t *p, vf x) {
  // Round to nearest even; a NaN must not be rounded up to infinity.
  __m512i i = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(i, 16),
                                 _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(i, _mm512_add_epi32(odd,
                                                   _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc00000));
  _mm256_storeu_si256((__m256i *)p,
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}
inline vf load_f16(const uint16_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
inline void store_f16(uint16_t *p, vf x) {
  _mm256_storeu_si256((__m256i *)p,
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

inline float sum(vf x) { return _mm512_reduce_add_ps(x); }

// The sums over the lanes of four vectors.
inline void store_sums4(float *p, vf v0, vf v1, vf v2, vf v3) {
  vf a = _mm512_add_ps(_mm512_unpacklo_ps(v0, v1), _mm512_unpackhi_ps(v0, v1));
  vf b = _mm512_add_ps(_mm512_unpacklo_ps(v2, v3), _mm512_unpackhi_ps(v2, v3));
  __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  vf s = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(s),
                           _mm512_extractf32x8_ps(s, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(h),
                              _mm256_extractf128_ps(h, 1)));
}

// Transposes 16 x 16: out[i * out_stride + j] = in[j * in_stride + i].
inline void transpose(const float *in, int64_t in_stride, float *out,
                      int64_t out_stride) {
  vf r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = load(in + i * in_stride);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  // r[i + c] holds column c of every 128-bit lane of the rows i .. i + 3.
  for (int c = 0; c < 4; c++) {
    vf a = _mm512_shuffle_f32x4(r[c], r[c + 4], 0x88);
    vf b = _mm512_shuffle_f32x4(r[c], r[c + 4], 0xdd);
    vf d = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0x88);
    vf e = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0xdd);
    store(out + c * out_stride, _mm512_shuffle_f32x4(a, d, 0x88));
    store(out + (c + 8) * out_stride, _mm512_shuffle_f32x4(a, d, 0xdd));
    store(out + (c + 4) * out_stride, _mm512_shuffle_f32x4(b, e, 0x88));
    store(out + (c + 12) * out_stride, _mm512_shuffle_f32x4(b, e, 0xdd));
  }
}

}  // namespace
