// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// The selective scan, forward. For each block of W channels of a chunk the
// step sizes are computed, then the states advance, a few of the N at a time in
// registers; the last few finish the output.
#pragma once
#include "scan_common.h"

namespace {

// Advances the states of one block of channels through a chunk. The first
// piece of the N states starts the output, the last one finishes it.
struct AdvanceStates {
  int count;
  int64_t N;
  bool softplus, gated, add;
  vf bias, skip;
  Rows u, delta, z, out;
  Ahead &ahead;
  const float *b, *c, *a;
  float *h, *dt, *y;

  explicit AdvanceStates(Ahead &ahead) : ahead(ahead) {}

  vf step_size(int t) const {
    vf x = load(delta[t]) + bias;
    return softplus ? ::softplus(x) : x;
  }

  template <int M>
  INLINE void run(int64_t n) {
    bool first = n == 0, last = n + M == N;
    if (first && last)
      steps<M, true, true>(n);
    else if (first)
      steps<M, true, false>(n);
    else if (last)
      steps<M, false, true>(n);
    else
      steps<M, false, false>(n);
  }

  template <int M, bool FIRST, bool LAST>
  INLINE void steps(int64_t n) {
    vf aa[M], hh[M];
    for (int j = 0; j < M; j++) {
      aa[j] = load(a + (n + j) * W);
      hh[j] = load(h + (n + j) * W);
    }
    const float *bt = b + n, *ct = c + n;
    if (FIRST)
      for (int t = 0; t < count; t++) store(dt + t * W, step_size(t));
    for (int t = 0; t < count; t++, bt += N, ct += N) {
      if (FIRST) ahead.fetch(t);
      vf dt_ = load(dt + t * W);
      vf u_ = load(u[t]), du = dt_ * u_;
      vf y_ = FIRST ? skip * u_ : load(y + t * W);
      for (int j = 0; j < M; j++) {
        vf decay = exp2(dt_ * aa[j]);
        hh[j] = fma(decay, hh[j], du * splat(bt[j]));
        y_ = fma(hh[j], splat(ct[j]), y_);
      }
      if (!LAST) {
        store(y + t * W, y_);
        continue;
      }
      if (gated) {
        vf x = load(z[t]);
        y_ = y_ * x * sigmoid(x);
      }
      if (add) y_ = y_ + load(out[t]);
      store(out[t], y_);
    }
    for (int j = 0; j < M; j++) store(h + (n + j) * W, hh[j]);
  }
};

struct ForwardScratch {
  float *b, *c, *a, *h, *dt, *y, *tiles[4];

  ForwardScratch(Scratch &s, int64_t blocks, int64_t N) {
    b = s.take<float>(T * N);
    c = s.take<float>(T * N);
    a = s.take<float>(blocks * N * W);
    h = s.take<float>(blocks * N * W);
    dt = s.take<float>(T * W);
    y = s.take<float>(T * W);
    for (float *&tile : tiles) tile = s.take<float>(T * W);
  }
};

struct ForwardPass {
  const TmScan &p;
  const int64_t index;
  const Task task;
  ForwardScratch s;
  Stream u, delta, z, out;

  ForwardPass(const TmScan &p, int64_t index, Scratch scratch)
      : p(p), index(index), task(make_task(p, index)), s(scratch, task.blocks(), p.N), u(p.u),
        delta(p.delta), z(p.z), out(p.out) {}

  void run() {
    for (int64_t k = 0; k < p.K; k++) direction(k);
  }

  void direction(int64_t k) {
    int64_t bk = task.b * p.K + k, chunks = (p.L + T - 1) / T;
    for (Stream *x : {&u, &delta, &z, &out}) x->start(task.b, k);
    read_states(p.a + k * p.a_sk, p.N, p.D, task, s.a);
    clear(s.h, task.blocks() * p.N * W);
    for (int64_t i = 0; i < chunks; i++) {
      if (p.states)
        write_states(s.h, p.N, p.D, task,
                     p.states + (bk * chunks + i) * p.N * p.D);
      chunk(k, i);
    }
    float *last = p.last + bk * p.D * p.N;
    for (int64_t i = 0; i < task.blocks(); i++)
      for (int64_t n = 0; n < p.N; n++)
        for (int j = 0; j < task.width(i); j++)
          last[(task.channel(i) + j) * p.N + n] = s.h[(i * p.N + n) * W + j];
  }

  void chunk(int64_t k, int64_t i) {
    Chunk now(p, k, i), next;
    Stop stop = {task, k, i};
    if (following(p, 1, index, stop)) next = Chunk(p, stop.k, stop.chunk);
    const Places &coefs = now.coefs(p);
    for (Stream *x : {&u, &z, &out}) x->move(now.tokens, next.tokens, stop);
    delta.move(coefs, next.coefs(p), stop);
    read_coefs(p.b, coef_item(p.b, task.b, k, task.g), p.N, coefs, s.b);
    read_coefs(p.c, coef_item(p.c, task.b, k, task.g), p.N, coefs, s.c);
    Ahead ahead(stop.task, next.tokens);
    for (Stream *x : {&u, &delta, &out}) ahead.add(*x);
    for (int64_t j = 0; j < task.blocks(); j++) block(k, j, coefs.count, ahead);
  }

  void block(int64_t k, int64_t i, int count, Ahead &ahead) {
    int64_t d = task.channel(i);
    int width = task.width(i);
    AdvanceStates advance(ahead);
    advance.count = count;
    advance.N = p.N;
    advance.softplus = p.softplus;
    advance.gated = bool(z);
    advance.add = out.add;
    advance.bias = channel_vector(p.bias, p.bias_sk, k, d, width);
    advance.skip = channel_vector(p.d, p.d_sk, k, d, width);
    advance.u = u.read(d, width, s.tiles[0]);
    advance.delta = delta.read(d, width, s.tiles[1]);
    if (z) advance.z = z.read(d, width, s.tiles[2]);
    advance.out = out.open(d, width, s.tiles[3]);
    advance.b = s.b;
    advance.c = s.c;
    advance.a = s.a + i * p.N * W;
    advance.h = s.h + i * p.N * W;
    advance.dt = s.dt;
    advance.y = s.y;
    for_state_pieces(p.N, advance);
    out.close(d, width, advance.out);
  }
};

void scan_forward(const TmScan &p, int64_t index, char *buffer) {
  ForwardPass(p, index, Scratch{buffer}).run();
}

int64_t scan_forward_scratch(const TmScan &p) {
  Scratch scratch = {nullptr};
  ForwardScratch(scratch, most_blocks(p), p.N);
  return (int64_t)scratch.at;
}

}  // namespace
