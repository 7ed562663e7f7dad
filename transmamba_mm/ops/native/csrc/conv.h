// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// Causal depth-wise convolution followed by SiLU, one batch item a task.
#pragma once
#include "vmath.h"
#include "tiles.h"

namespace {

// The tokens first - (M - 1) .. first + count - 1 of the walk; those before
// the walk are taken to be zero.
struct Window {
  Places places;
  int before;  // how many of the M - 1 tokens before `first` there are
};

void place_window(const TmConv &p, int64_t first, int history, Window &w) {
  int64_t left = p.L - first;
  int most = T - history;
  int count = left < most ? (int)left : most;
  w.before = first < history ? (int)first : history;
  w.places.count = w.before + count;
  w.places.step = p.reverse ? -1 : 1;
  for (int t = 0; t < w.places.count; t++) {
    int64_t s = first - w.before + t;
    w.places.token[t] = p.reverse ? p.L - 1 - s : s;
  }
}

inline int width_of(int64_t d, int64_t D) { return D - d < W ? (int)(D - d) : W; }

template <int M>
struct Taps {
  vf weight[M], bias;
  Taps(const TmConv &p, int64_t d, int width) {
    for (int m = 0; m < M; m++)
      weight[m] = load_part(p.weight + m * p.D + d, width);
    bias = p.bias ? load_part(p.bias + d, width) : splat(0.0f);
  }
  vf apply(const vf *x) const {
    vf y = bias;
    for (int m = 0; m < M; m++) y = fma(weight[m], x[m], y);
    return y;
  }
};

template <int M>
void conv_forward(const TmConv &p, int64_t b, char *buffer) {
  float *tile_x = (float *)buffer, *tile_out = tile_x + T * W;
  int64_t at_x[T], at_out[T];
  const char *x_item = batch_item(p.x, b, 0);
  char *out_item = batch_item(p.out, b, 0);
  Window w;
  for (int64_t first = 0; first < p.L; first += T - (M - 1)) {
    place_window(p, first, M - 1, w);
    set_offsets(at_x, w.places, p.x.sl);
    set_offsets(at_out, w.places, p.out.sl);
    for (int64_t d = 0; d < p.D; d += W) {
      int width = width_of(d, p.D);
      Rows x = read_tile(p.x, x_item, d, width, w.places, at_x, tile_x);
      Rows out = open_tile(p.out, out_item, d, width, w.places, at_out,
                           tile_out, false);
      Taps<M> taps(p, d, width);
      vf past[M];
      for (int m = 0; m < M; m++) past[m] = splat(0.0f);
      for (int t = 0; t < w.before; t++) past[M - 1 - w.before + t] = load(x[t]);
      for (int t = w.before; t < w.places.count; t++) {
        past[M - 1] = load(x[t]);
        vf y = taps.apply(past);
        store(out[t], y * sigmoid(y));
        for (int m = 0; m + 1 < M; m++) past[m] = past[m + 1];
      }
      close_tile(p.out, out_item, d, width, w.places, at_out, out, w.before);
    }
  }
}

template <int M>
void conv_backward(const TmConv &p, int64_t b, char *buffer) {
  float *tile_x = (float *)buffer, *tile_g = tile_x + T * W;
  float *tile_gx = tile_g + T * W, *carry = tile_gx + T * W;
  int64_t blocks = (p.D + W - 1) / W;
  // Per block: the gradients before SiLU of the M - 1 tokens that follow in
  // the walk, then the sums for the weights and the bias.
  const int64_t kept = (2 * M) * W;
  for (int64_t i = 0; i < blocks * kept; i++) carry[i] = 0.0f;
  int64_t at_x[T], at_g[T], at_gx[T];
  const char *x_item = batch_item(p.x, b, 0);
  const char *g_item = batch_item(p.grad_out, b, 0);
  char *gx_item = batch_item(p.grad_x, b, 0);
  Window w;
  const int64_t step = T - (M - 1);
  for (int64_t first = (p.L - 1) / step * step; first >= 0; first -= step) {
    place_window(p, first, M - 1, w);
    set_offsets(at_x, w.places, p.x.sl);
    set_offsets(at_g, w.places, p.grad_out.sl);
    set_offsets(at_gx, w.places, p.grad_x.sl);
    for (int64_t d = 0; d < p.D; d += W) {
      int width = width_of(d, p.D);
      float *own = carry + d / W * kept;
      Rows x = read_tile(p.x, x_item, d, width, w.places, at_x, tile_x);
      Rows g = read_tile(p.grad_out, g_item, d, width, w.places, at_g, tile_g);
      Rows gx = open_tile(p.grad_x, gx_item, d, width, w.places, at_gx, tile_gx,
                          false);
      Taps<M> taps(p, d, width);
      vf next[M], grad_weight[M], past[M], zero = splat(0.0f);
      for (int m = 0; m < M; m++) {
        next[m] = m ? load(own + (m - 1) * W) : zero;
        grad_weight[m] = load(own + (M - 1 + m) * W);
      }
      vf grad_bias = load(own + (2 * M - 1) * W);
      for (int t = w.places.count - 1; t >= w.before; t--) {
        for (int m = 0; m < M; m++) {
          int from = t - (M - 1) + m;
          past[m] = from >= 0 ? load(x[from]) : zero;
        }
        vf y = taps.apply(past), gate = sigmoid(y), one = splat(1.0f);
        next[0] = load(g[t]) * gate * fma(y, one - gate, one);
        vf grad_x = zero;
        for (int m = 0; m < M; m++) {
          grad_x = fma(taps.weight[M - 1 - m], next[m], grad_x);
          grad_weight[m] = fma(next[0], past[m], grad_weight[m]);
        }
        grad_bias = grad_bias + next[0];
        store(gx[t], grad_x);
        for (int m = M - 1; m > 0; m--) next[m] = next[m - 1];
      }
      for (int m = 0; m < M; m++) {
        if (m) store(own + (m - 1) * W, next[m]);
        store(own + (M - 1 + m) * W, grad_weight[m]);
      }
      store(own + (2 * M - 1) * W, grad_bias);
      close_tile(p.grad_x, gx_item, d, width, w.places, at_gx, gx, w.before);
    }
  }
  for (int64_t i = 0; i < blocks; i++) {
    int64_t d = i * W;
    int width = width_of(d, p.D);
    const float *own = carry + i * kept;
    for (int m = 0; m < M; m++)
      store_part(p.grad_weight + (b * M + m) * p.D + d,
                 load(own + (M - 1 + m) * W), width);
    store_part(p.grad_bias + b * p.D + d, load(own + (2 * M - 1) * W), width);
  }
}

void conv_forward(const TmConv &p, int64_t b, char *buffer) {
  if (p.width == 2) conv_forward<2>(p, b, buffer);
  if (p.width == 3) conv_forward<3>(p, b, buffer);
  if (p.width == 4) conv_forward<4>(p, b, buffer);
}

void conv_backward(const TmConv &p, int64_t b, char *buffer) {
  if (p.width == 2) conv_backward<2>(p, b, buffer);
  if (p.width == 3) conv_backward<3>(p, b, buffer);
  if (p.width == 4) conv_backward<4>(p, b, buffer);
}

int64_t conv_scratch(const TmConv &p) {
  int64_t blocks = (p.D + W - 1) / W;
  return (3 * T + blocks * 2 * p.width) * W * sizeof(float);
}

}  // namespace
