// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// The selective scan, backward: the chunks in reverse. The state before each
// chunk was kept; the others are computed again on the way there, and used on
// the way back.
#pragma once
#include "scan_common.h"

namespace {

const float LN2 = 0.693147181f;

// What a block of channels keeps while its chunk is worked on: for each step
// seven vectors, and for each step and state of a piece two more; all blocks
// share two sums. Vectors that are used together lie together; in arrays of their own, a power of two apart,
// they would compete for the same lines of the cache.
enum { DT, DU, GRAD_Y, GRAD_DU, GRAD_DT, SLOPE, Y, TILES };
enum { DECAY, BEFORE, PATH };
enum { SUM_B, SUM_C, SUMS };

// Goes through the chunk and back for M states of one block of channels.
struct BackwardStates {
  int count;
  int64_t N;
  const float *b, *c, *a, *h;  // h: before the chunk
  float *carry, *grad_a;
  float *tile;   // (T, TILES, W)
  bool ungated;  // compute Y
  float *path;   // (T, M, PATH, W)
  float *sums;   // (N / M, T, M, SUMS, W)
  Ahead &ahead;

  template <int M>
  INLINE void run(int64_t n) {
    there<M>(n);
    if (n == 0)
      back<M, true>(n);
    else
      back<M, false>(n);
  }

  template <int M>
  INLINE void there(int64_t n) {
    vf aa[M], hh[M];
    for (int j = 0; j < M; j++) {
      aa[j] = load(a + (n + j) * W);
      hh[j] = load(h + (n + j) * W);
    }
    const float *bt = b + n, *ct = c + n;
    float *row = tile, *at = path, *sum = sums + n * T * SUMS * W;
    for (int t = 0; t < count; t++, bt += N, row += TILES * W) {
      if (n == 0) ahead.fetch(t);
      vf dt = load(row + DT * W), du = load(row + DU * W);
      vf gy = load(row + GRAD_Y * W);
      for (int j = 0; j < M; j++, at += PATH * W, sum += SUMS * W) {
        vf decay = exp2(dt * aa[j]);
        store(at + DECAY * W, decay);
        store(at + BEFORE * W, hh[j]);
        hh[j] = fma(decay, hh[j], du * splat(bt[j]));
        store(sum + SUM_C * W, fma(hh[j], gy, load(sum + SUM_C * W)));
      }
      if (ungated) {
        vf y = load(row + Y * W);
        for (int j = 0; j < M; j++) y = fma(hh[j], splat(ct[t * N + j]), y);
        store(row + Y * W, y);
      }
    }
  }

  template <int M, bool FIRST>
  INLINE void back(int64_t n) {
    vf aa[M], carry_[M], grad_a_[M];
    for (int j = 0; j < M; j++) {
      aa[j] = load(a + (n + j) * W);
      carry_[j] = load(carry + (n + j) * W);
      grad_a_[j] = load(grad_a + (n + j) * W);
    }
    const float *bt = b + (count - 1) * N + n, *ct = c + (count - 1) * N + n;
    for (int t = count - 1; t >= 0; t--, bt -= N, ct -= N) {
      float *row = tile + t * TILES * W, *at = path + t * M * PATH * W;
      float *sum = sums + (n * T + t * M) * SUMS * W;
      vf dt = load(row + DT * W), du = load(row + DU * W);
      vf gy = load(row + GRAD_Y * W);
      vf gdu = FIRST ? splat(0.0f) : load(row + GRAD_DU * W);
      vf gdt = FIRST ? splat(0.0f) : load(row + GRAD_DT * W);
      for (int j = 0; j < M; j++, at += PATH * W, sum += SUMS * W) {
        vf g = fma(gy, splat(ct[j]), carry_[j]);
        store(sum + SUM_B * W, fma(g, du, load(sum + SUM_B * W)));
        gdu = fma(g, splat(bt[j]), gdu);
        carry_[j] = g * load(at + DECAY * W);
        vf e = carry_[j] * load(at + BEFORE * W);
        gdt = fma(e, aa[j], gdt);
        grad_a_[j] = fma(e, dt, grad_a_[j]);
      }
      store(row + GRAD_DU * W, gdu);
      store(row + GRAD_DT * W, gdt);
    }
    for (int j = 0; j < M; j++) {
      store(carry + (n + j) * W, carry_[j]);
      store(grad_a + (n + j) * W, grad_a_[j]);
    }
  }
};

// The sums over the channels, M states.
struct ReduceSums {
  const float *sums;
  const Places &coefs;
  int64_t N;
  float *grad_b, *grad_c;  // (L, N)

  template <int M>
  INLINE void run(int64_t n) {
    const float *at = sums + n * T * SUMS * W;
    for (int t = 0; t < coefs.count; t++, at += M * SUMS * W) {
      int64_t to = coefs.token[t] * N + n;
      reduce<M>(at + SUM_B * W, grad_b + to);
      reduce<M>(at + SUM_C * W, grad_c + to);
    }
  }

  template <int M>
  static INLINE void reduce(const float *x, float *out) {
    const int64_t next = SUMS * W;
    if (M == 4)
      store_sums4(out, load(x), load(x + next), load(x + 2 * next),
                  load(x + 3 * next));
    else
      for (int j = 0; j < M; j++) out[j] = sum(load(x + j * next));
  }
};

struct BackwardScratch {
  float *b, *c, *a, *h, *carry, *grad_a, *grad_d, *grad_bias;
  float *tile, *path, *sums, *tiles[3];

  BackwardScratch(Scratch &s, int64_t blocks, int64_t N) {
    b = s.take<float>(T * N);
    c = s.take<float>(T * N);
    for (float **x : {&a, &h, &carry, &grad_a})
      *x = s.take<float>(blocks * N * W);
    grad_d = s.take<float>(blocks * W);
    grad_bias = s.take<float>(blocks * W);
    tile = s.take<float>(T * TILES * W);
    path = s.take<float>(T * 4 * PATH * W);
    sums = s.take<float>(T * N * SUMS * W);
    for (float *&x : tiles) x = s.take<float>(T * W);
  }
};

struct BackwardPass {
  const TmScan &p;
  const int64_t index;
  const Task task;
  BackwardScratch s;
  Stream u, delta, z, grad_out, grad_u, grad_delta, grad_z;

  BackwardPass(const TmScan &p, int64_t index, Scratch scratch)
      : p(p), index(index), task(make_task(p, index)), s(scratch, task.blocks(), p.N), u(p.u),
        delta(p.delta), z(p.z), grad_out(p.grad_out), grad_u(p.grad_u),
        grad_delta(p.grad_delta), grad_z(p.grad_z) {}

  void run() {
    for (int64_t k = 0; k < p.K; k++) direction(k);
  }

  void direction(int64_t k) {
    int64_t bk = task.b * p.K + k, chunks = (p.L + T - 1) / T;
    for (Stream *x :
         {&u, &delta, &z, &grad_out, &grad_u, &grad_delta, &grad_z})
      x->start(task.b, k);
    read_states(p.a + k * p.a_sk, p.N, p.D, task, s.a);
    clear(s.carry, task.blocks() * p.N * W);
    clear(s.grad_a, task.blocks() * p.N * W);
    clear(s.grad_d, task.blocks() * W);
    clear(s.grad_bias, task.blocks() * W);
    for (int64_t i = chunks - 1; i >= 0; i--) {
      read_states(p.states + (bk * chunks + i) * p.N * p.D, p.N, p.D, task,
                  s.h);
      chunk(k, i);
    }
    write_states(s.grad_a, p.N, p.D, task, p.grad_a + bk * p.N * p.D);
    for (int64_t i = 0; i < task.blocks(); i++) {
      int64_t to = bk * p.D + task.channel(i);
      store_part(p.grad_d + to, load(s.grad_d + i * W), task.width(i));
      store_part(p.grad_bias + to, load(s.grad_bias + i * W), task.width(i));
    }
  }

  void chunk(int64_t k, int64_t i) {
    Chunk now(p, k, i), next;
    Stop stop = {task, k, i};
    if (following(p, -1, index, stop)) next = Chunk(p, stop.k, stop.chunk);
    const Places &coefs = now.coefs(p);
    for (Stream *x : {&u, &z, &grad_out, &grad_u, &grad_z})
      x->move(now.tokens, next.tokens, stop);
    for (Stream *x : {&delta, &grad_delta}) x->move(coefs, next.coefs(p), stop);
    read_coefs(p.b, coef_item(p.b, task.b, k, task.g), p.N, coefs, s.b);
    read_coefs(p.c, coef_item(p.c, task.b, k, task.g), p.N, coefs, s.c);
    Ahead ahead(stop.task, next.tokens);
    for (Stream *x : {&u, &delta, &grad_out, &grad_u, &grad_delta})
      ahead.add(*x);
    clear(s.sums, T * p.N * SUMS * W);
    for (int64_t j = 0; j < task.blocks(); j++) {
      prepare(k, j, coefs.count);
      int64_t at = j * p.N * W;
      BackwardStates states = {coefs.count,  p.N,
                               s.b,          s.c,
                               s.a + at,     s.h + at,
                               s.carry + at, s.grad_a + at,
                               s.tile,       bool(grad_z),
                               s.path,       s.sums,
                               ahead};
      for_state_pieces(p.N, states);
      finish(k, j, coefs.count);
      if (grad_z) finish_gate(j, coefs.count);
    }
    int64_t bkg = ((task.part * p.B + task.b) * p.K + k) * p.G + task.g;
    ReduceSums reduce = {s.sums, coefs, p.N, p.grad_b + bkg * p.L * p.N,
                         p.grad_c + bkg * p.L * p.N};
    for_state_pieces(p.N, reduce);
  }

  void prepare(int64_t k, int64_t i, int count) {
    int64_t d = task.channel(i);
    int width = task.width(i);
    Rows u_ = u.read(d, width, s.tiles[0]);
    Rows delta_ = delta.read(d, width, s.tiles[1]);
    Rows grad = grad_out.read(d, width, s.tiles[2]);
    vf bias = channel_vector(p.bias, p.bias_sk, k, d, width);
    vf skip = channel_vector(p.d, p.d_sk, k, d, width);
    float *row = s.tile;
    for (int t = 0; t < count; t++, row += TILES * W) {
      vf x = load(u_[t]), dt = load(delta_[t]) + bias;
      if (p.softplus) {
        vf e = exp_minus_abs(dt);
        store(row + SLOPE * W, sigmoid(dt, e));
        dt = softplus(dt, e);
      }
      store(row + DT * W, dt);
      store(row + DU * W, dt * x);
      store(row + GRAD_Y * W, load(grad[t]));
      if (grad_z) store(row + Y * W, skip * x);
    }
    if (!z) return;
    Rows z_ = z.read(d, width, s.tiles[0]);
    row = s.tile;
    for (int t = 0; t < count; t++, row += TILES * W) {
      vf x = load(z_[t]);
      store(row + GRAD_Y * W, load(row + GRAD_Y * W) * x * sigmoid(x));
    }
  }

  void finish(int64_t k, int64_t i, int count) {
    int64_t d = task.channel(i);
    int width = task.width(i);
    Rows u_ = u.read(d, width, s.tiles[0]);
    Rows to_u = grad_u.open(d, width, s.tiles[1]);
    Rows to_delta = grad_delta.open(d, width, s.tiles[2]);
    vf skip = channel_vector(p.d, p.d_sk, k, d, width);
    vf sum_d = load(s.grad_d + i * W), sum_bias = load(s.grad_bias + i * W);
    const float *row = s.tile;
    for (int t = 0; t < count; t++, row += TILES * W) {
      vf x = load(u_[t]), gy = load(row + GRAD_Y * W);
      vf dt = load(row + DT * W), gdu = load(row + GRAD_DU * W);
      vf gdt = fma(load(row + GRAD_DT * W), splat(LN2), gdu * x);
      if (p.softplus) gdt = gdt * load(row + SLOPE * W);
      vf gx = fma(gdu, dt, skip * gy);
      sum_d = fma(gy, x, sum_d);
      sum_bias = sum_bias + gdt;
      store(to_u[t], grad_u.add ? gx + load(to_u[t]) : gx);
      store(to_delta[t], grad_delta.add ? gdt + load(to_delta[t]) : gdt);
    }
    store(s.grad_d + i * W, sum_d);
    store(s.grad_bias + i * W, sum_bias);
    grad_u.close(d, width, to_u);
    grad_delta.close(d, width, to_delta);
  }

  void finish_gate(int64_t i, int count) {
    int64_t d = task.channel(i);
    int width = task.width(i);
    Rows z_ = z.read(d, width, s.tiles[0]);
    Rows grad = grad_out.read(d, width, s.tiles[1]);
    Rows to_z = grad_z.open(d, width, s.tiles[2]);
    const float *row = s.tile;
    for (int t = 0; t < count; t++, row += TILES * W) {
      vf x = load(z_[t]), gate = sigmoid(x), one = splat(1.0f);
      vf slope = gate * fma(x, one - gate, one);
      vf g = load(grad[t]) * load(row + Y * W) * slope;
      store(to_z[t], grad_z.add ? g + load(to_z[t]) : g);
    }
    grad_z.close(d, width, to_z);
  }
};

void scan_backward(const TmScan &p, int64_t index, char *buffer) {
  BackwardPass(p, index, Scratch{buffer}).run();
}

int64_t scan_backward_scratch(const TmScan &p) {
  Scratch scratch = {nullptr};
  BackwardScratch(scratch, most_blocks(p), p.N);
  return (int64_t)scratch.at;
}

}  // namespace
