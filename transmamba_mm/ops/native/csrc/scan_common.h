// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// What the two passes of the selective scan share. A task is one batch item and
// one piece of the channels, all directions; W channels are in the lanes of a
// vector. Time is cut into chunks of T steps, so that what belongs to a chunk
// stays in the caches.
#pragma once
#include <initializer_list>

#include "tiles.h"
#include "vmath.h"

namespace {

// One unit of parallel work: the channels d0 .. d1 - 1 (all of one group) of
// batch item b.
struct Task {
  int64_t b, g, part, d0, d1;
  int64_t blocks() const { return (d1 - d0 + W - 1) / W; }
  int64_t channel(int64_t i) const { return d0 + i * W; }
  int width(int64_t i) const {
    int64_t left = d1 - channel(i);
    return left < W ? (int)left : W;
  }
};

Task make_task(const TmScan &p, int64_t index) {
  Task task;
  task.part = index % p.parts;
  task.g = index / p.parts % p.G;
  task.b = index / p.parts / p.G;
  int64_t channels = p.D / p.G, blocks = (channels + W - 1) / W;
  int64_t first = task.part * blocks / p.parts * W;
  int64_t end = (task.part + 1) * blocks / p.parts * W;
  task.d0 = task.g * channels + first;
  task.d1 = task.g * channels + (end < channels ? end : channels);
  return task;
}

int64_t most_blocks(const TmScan &p) {
  int64_t blocks = (p.D / p.G + W - 1) / W;
  return (blocks + p.parts - 1) / p.parts;
}

// Hands out pieces of one buffer, each aligned to a cache line. Without a
// buffer it only counts.
struct Scratch {
  char *at;
  template <typename X>
  X *take(int64_t count) {
    X *piece = (X *)at;
    at += (count * sizeof(X) + 63) / 64 * 64;
    return piece;
  }
};

// Where the tokens and, if they are indexed by step, the step sizes and weights
// of a chunk are.
struct Chunk {
  Places tokens, steps;

  Chunk() { tokens.count = steps.count = 0; }
  Chunk(const TmScan &p, int64_t k, int64_t index) {
    int64_t t0 = index * T, left = p.L - t0;
    int count = left < T ? (int)left : T;
    bool reverse = p.reverse >> k & 1;
    tokens.count = steps.count = count;
    steps.step = 1;
    tokens.step = p.orders ? 0 : reverse ? -1 : 1;
    for (int t = 0; t < count; t++) {
      int64_t s = reverse ? p.L - 1 - (t0 + t) : t0 + t;
      steps.token[t] = t0 + t;
      tokens.token[t] = p.orders ? p.orders[k * p.L + s] : s;
    }
  }
  const Places &coefs(const TmScan &p) const {
    return p.by_step ? steps : tokens;
  }
};

// A chunk of a direction of a task.
struct Stop {
  Task task;
  int64_t k, chunk;
};

// The stop after this one, in the order in which one thread works: the
// direction's next chunk (in the sense of `step`), else the first of the next
// direction or task. False after the last.
bool following(const TmScan &p, int step, int64_t index, Stop &stop) {
  int64_t chunks = (p.L + T - 1) / T;
  stop.chunk += step;
  if (stop.chunk >= 0 && stop.chunk < chunks) return true;
  stop.chunk = step > 0 ? 0 : chunks - 1;
  if (++stop.k < p.K) return true;
  stop.k = 0;
  if (index + 1 == p.B * p.G * p.parts) return false;
  stop.task = make_task(p, index + 1);
  return true;
}

// A tensor of tokens on its way through a task.
struct Stream {
  const TmTokens &x;
  char *item = nullptr;
  bool add = false;  // an output to which an earlier direction has written
  const Places *places = nullptr;
  const char *coming_item = nullptr;
  int64_t at[T], coming[T];

  explicit Stream(const TmTokens &x) : x(x) {}
  explicit operator bool() const { return x.data; }
  void start(int64_t b, int64_t k) {
    if (x.data) item = batch_item(x, b, k);
    add = k > 0 && x.sk == 0;
  }
  void move(const Places &now, const Places &next, const Stop &stop) {
    places = &now;
    set_offsets(at, now, x.sl);
    set_offsets(coming, next, x.sl);
    if (x.data) coming_item = batch_item(x, stop.task.b, stop.k);
  }
  Rows read(int64_t d, int width, float *tile) const {
    return read_tile(x, item, d, width, *places, at, tile);
  }
  // Rows to put results in, which hold what they are to be added to.
  Rows open(int64_t d, int width, float *tile) const {
    return open_tile(x, item, d, width, *places, at, tile, add);
  }
  void close(int64_t d, int width, Rows rows) const {
    close_tile(x, item, d, width, *places, at, rows);
  }
};

// The chunk to come is asked for while this one is computed, in the order of
// memory: the processor follows lines, but not blocks of short rows.
class Ahead {
 public:
  Ahead(const Task &task, const Places &next)
      : rows(next.count), begin(task.d0), end(task.d1), d(begin),
        block(task.d0) {
    int last = next.step < 0 ? next.count - 1 : 0;
    if (next.step && rows) first = next.token[last];
  }
  void add(const Stream &stream) {
    const TmTokens &x = stream.x;
    if (direct(x, W)) {
      base[tensors] = (const float *)stream.coming_item;
      offset[tensors++] = stream.coming;
    } else if (x.dtype == TM_F32 && x.sl == 1 && first >= 0) {
      column[columns] = (const float *)stream.coming_item + first;
      stride[columns++] = x.sd;
    }
  }
  // To be called for step t of each block.
  void fetch(int t) {
    if (row == rows) return;
    for (int i = 0; i < tensors; i++)
      __builtin_prefetch(base[i] + offset[i][row] + d, 0, 2);
    // Of a tensor stored along time, the lines of a channel, one a step.
    for (int i = 0; i < columns; i++)
      __builtin_prefetch(column[i] + (block + t % W) * stride[i] + t / W * 16,
                         0, 2);
    if (t == T - 1) block += W;
    d += W;
    if (d < end) return;
    d = begin;
    row++;
  }

 private:
  int rows, row = 0, tensors = 0, columns = 0;
  int64_t begin, end, d, block, first = -1;
  const float *base[6], *column[6];
  const int64_t *offset[6];
  int64_t stride[6];
};

inline void clear(float *x, int64_t count) {
  for (int64_t i = 0; i < count; i += W) store(x + i, splat(0.0f));
}

// Copies the channels of a task from (N, D) to blocks of N rows of W.
void read_states(const float *x, int64_t N, int64_t D, const Task &task,
                 float *out) {
  for (int64_t i = 0; i < task.blocks(); i++)
    for (int64_t n = 0; n < N; n++, out += W)
      store(out, load_part(x + n * D + task.channel(i), task.width(i)));
}

void write_states(const float *x, int64_t N, int64_t D, const Task &task,
                  float *out) {
  for (int64_t i = 0; i < task.blocks(); i++)
    for (int64_t n = 0; n < N; n++, x += W)
      store_part(out + n * D + task.channel(i), load(x), task.width(i));
}

inline vf channel_vector(const float *x, int64_t sk, int64_t k, int64_t d,
                         int count) {
  return x ? load_part(x + k * sk + d, count) : splat(0.0f);
}

// Calls f.run<M>(n) for pieces of M = 4, 2 or 1 of the N states: as many as
// the registers hold. Each call gets a copy of f, lest the compiler fear that
// what is stored overwrites its members.
template <typename F>
void for_state_pieces(int64_t N, const F &f) {
  int64_t n = 0;
  for (; n + 4 <= N; n += 4) F(f).template run<4>(n);
  if (n + 2 <= N) {
    F(f).template run<2>(n);
    n += 2;
  }
  if (n < N) F(f).template run<1>(n);
}

}  // namespace
