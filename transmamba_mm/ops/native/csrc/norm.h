// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// RMS normalisation of contiguous float32 rows; a task is a range of rows.
#pragma once

#include "tiles.h"

namespace {

template <typename F>
inline void for_blocks(int64_t D, F f) {
  int64_t d = 0;
  for (; d + W <= D; d += W) f(d, W);
  if (d < D) f(d, (int)(D - d));
}

// Two accumulators hide the latency of the additions.
template <typename F>
inline float sum_blocks(int64_t D, F f) {
  vf a = splat(0.0f), b = splat(0.0f);
  for_blocks(D, [&](int64_t d, int width) {
    vf swap = f(d, width, a);
    a = b;
    b = swap;
  });
  return sum(a + b);
}

inline vf get(const float *x, int width) {
  return width == W ? load(x) : load_part(x, width);
}
inline void put(float *x, vf v, int width) {
  if (width == W)
    store(x, v);
  else
    store_part(x, v, width);
}

void norm_forward(const TmNorm &p, int64_t part, char *) {
  int64_t end = (part + 1) * p.rows / p.parts;
  for (int64_t row = part * p.rows / p.parts; row < end; row++) {
    const float *x = p.x + row * p.D;
    float *out = p.out + row * p.D;
    float squares = sum_blocks(p.D, [&](int64_t d, int width, vf s) {
      vf v = get(x + d, width);
      return fma(v, v, s);
    });
    float rstd = 1.0f / __builtin_sqrtf(squares / p.D + (float)p.eps);
    p.rstd[row] = rstd;
    for_blocks(p.D, [&](int64_t d, int width) {
      put(out + d, get(x + d, width) * splat(rstd) * get(p.weight + d, width),
          width);
    });
  }
}

void norm_backward(const TmNorm &p, int64_t part, char *) {
  float *grad_weight = p.grad_weight + part * p.D;
  for (int64_t d = 0; d < p.D; d++) grad_weight[d] = 0.0f;
  int64_t end = (part + 1) * p.rows / p.parts;
  for (int64_t row = part * p.rows / p.parts; row < end; row++) {
    const float *x = p.x + row * p.D, *g = p.grad_out + row * p.D;
    float *grad_x = p.grad_x + row * p.D;
    vf rstd = splat(p.rstd[row]);
    float mean = sum_blocks(p.D, [&](int64_t d, int width, vf s) {
      vf gw = get(g + d, width) * get(p.weight + d, width);
      return fma(gw, get(x + d, width), s);
    });
    vf slope = splat(mean / p.D) * rstd * rstd;
    for_blocks(p.D, [&](int64_t d, int width) {
      vf v = get(x + d, width), gv = get(g + d, width);
      vf gw = gv * get(p.weight + d, width);
      put(grad_x + d, rstd * fnma(v, slope, gw), width);
      put(grad_weight + d, fma(gv, v * rstd, get(grad_weight + d, width)),
          width);
    });
  }
}

}  // namespace
