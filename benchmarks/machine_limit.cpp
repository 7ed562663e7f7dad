// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// What one core can do at best: exp2, multiply-add, memory. Compiled and
// called by machine_limit.py, with -ffp-contract=off: the additions that
// round to an integer run beside the multiply-adds, unless the compiler turns
// them into multiply-adds.
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__
#define LANES 16
typedef __m512 vf;
typedef __m512i vi;
INLINE vf splat(float x) { return _mm512_set1_ps(x); }
INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vi bits(vf x) { return _mm512_castps_si512(x); }
#else
#define LANES 8
typedef __m256 vf;
typedef __m256i vi;
INLINE vf splat(float x) { return _mm256_set1_ps(x); }
INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vi bits(vf x) { return _mm256_castps_si256(x); }
#endif
const float LN2 = 0.6931471806f;

// A polynomial of degree 5, relative error 1.6e-7.
struct Polynomial {
  INLINE vf exp2(vf dt, vf a) {
    vf x = dt * a;
#if LANES == 16
    vf r = _mm512_reduce_ps(x, 0), n = x - r;
#else
    vf n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT), r = x - n;
#endif
    vf p = fma(splat(0.0013300264f), r, splat(0.0096697084f));
    p = fma(p, r, splat(0.0555055999f));
    p = fma(p, r, splat(0.2402228161f));
    p = fma(p, r, splat(LN2));
    p = fma(p, r, splat(1.0f));
#if LANES == 16
    return _mm512_scalef_ps(p, n);
#else
    vi e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(bits(p), e));
#endif
  }
};

// 2^(j / LANES) from a table in a register times a polynomial of degree 3 in
// the rest, relative error 1.1e-7: a third less work for the multipliers.
alignas(64) float table[LANES];

struct Table {
  INLINE vf exp2(vf dt, vf a) {
    vf magic = splat(12582912.0f / LANES);
#if LANES == 16
    vf t = fma(dt, a, magic), n = t - magic, r = _mm512_fmsub_ps(dt, a, n);
    vf s = _mm512_permutexvar_ps(bits(t), _mm512_load_ps(table));
    s = _mm512_scalef_ps(s, n);
    vf p = fma(splat(0.0555042827f), r, splat(0.2402342721f));
#else
    vf t = fma(dt, a, magic), n = t - magic, r = _mm256_fmsub_ps(dt, a, n);
    vf s = _mm256_permutevar8x32_ps(_mm256_load_ps(table), bits(t));
    // The entries are less their index, which the shifted sum adds again.
    vi e = _mm256_slli_epi32(bits(t), 20);
    s = _mm256_castsi256_ps(_mm256_add_epi32(bits(s), e));
    vf p = fma(splat(0.0555047504f), r, splat(0.2402574873f));
#endif
    p = fma(p, r, splat(LN2));
    return fma(s * r, p, s);
  }
};

template <typename Method>
static void chains(int64_t count) {
  vf dt = splat(0.01f), a[8];
  for (int j = 0; j < 8; j++) {
    a[j] = splat(-1.0f - j);
    asm volatile("" : "+v"(a[j]));
  }
  for (int64_t i = 0; i < count; i += 8) {
    asm volatile("" : "+v"(dt));  // each time, it may be another
    for (int j = 0; j < 8; j++) {
      vf decay = Method::exp2(dt, a[j]);
      asm volatile("" ::"v"(decay));  // it is needed
    }
  }
}

extern "C" {

int64_t lanes() { return LANES; }

// The table has 2^(j / LANES).
void set_table(const float *values) {
  memcpy(table, values, sizeof table);
#if LANES == 8
  for (int j = 0; j < LANES; j++) {
    int32_t x;
    memcpy(&x, table + j, 4);
    x -= j << 20;
    memcpy(table + j, &x, 4);
  }
#endif
}

// One vector, to check the error.
void exp2_polynomial(const float *x, float *y) {
  vf v;
  memcpy(&v, x, sizeof v);
  v = Polynomial::exp2(v, splat(1.0f));
  memcpy(y, &v, sizeof v);
}
void exp2_table(const float *x, float *y) {
  vf v;
  memcpy(&v, x, sizeof v);
  v = Table::exp2(v, splat(1.0f));
  memcpy(y, &v, sizeof v);
}

// ``count`` vectors of exp2(dt * a), independent, in registers.
void run_polynomial(int64_t count) { chains<Polynomial>(count); }
void run_table(int64_t count) { chains<Table>(count); }

// ``count`` multiply-adds of vectors in 12 chains: the latency is hidden.
void run_fma(int64_t count) {
  vf x[12], b = splat(0.5f), c = splat(0.25f);
  asm volatile("" : "+v"(b), "+v"(c));
  for (int j = 0; j < 12; j++) x[j] = splat(1.0f + j);
  for (int64_t i = 0; i < count; i += 12)
    for (int j = 0; j < 12; j++) x[j] = fma(b, c, x[j]);
  for (int j = 0; j < 12; j++) asm volatile("" ::"v"(x[j]));
}

// STREAM's triad: reads two floats and writes one per element.
void run_triad(const float *a, const float *b, float *c, int64_t count) {
  for (int64_t i = 0; i < count; i++) c[i] = a[i] + 3.0f * b[i];
}

}  // extern "C"
