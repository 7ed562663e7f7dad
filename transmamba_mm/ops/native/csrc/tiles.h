// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// Blocks of TM_CHUNK steps by W channels, read from and written to tensors of
// any dtype and strides.
#pragma once
#include "abi.h"

namespace {

const int T = TM_CHUNK;

// Row t of a block of W floats is base + offset[t].
struct Rows {
  float *base;
  const int64_t *offset;
  float *operator[](int t) const { return base + offset[t]; }
};

// Where the steps of a chunk are.
struct Places {
  int count;
  int step;          // +1 or -1 if the tokens are neighbours, else 0
  int64_t token[T];  // of step t
};

const int64_t *tile_offsets() {
  static const struct Table {
    int64_t at[T];
    Table() {
      for (int t = 0; t < T; t++) at[t] = t * W;
    }
  } table;
  return table.at;
}

inline void set_offsets(int64_t *offset, const Places &places, int64_t sl) {
  for (int t = 0; t < places.count; t++) offset[t] = places.token[t] * sl;
}

inline char *batch_item(const TmTokens &x, int64_t b, int64_t k) {
  int64_t size = x.dtype == TM_F32 ? 4 : 2;
  return x.data + (b * x.sb + k * x.sk) * size;
}

inline float half_to_float(uint16_t x) {
  uint16_t buf[W] = {x};
  float out[W];
  store(out, load_f16(buf));
  return out[0];
}

inline float scalar(const char *data, int64_t dtype, int64_t i) {
  if (dtype == TM_F32) return ((const float *)data)[i];
  uint16_t x = ((const uint16_t *)data)[i];
  if (dtype == TM_F16) return half_to_float(x);
  union {
    uint32_t i;
    float f;
  } wide = {(uint32_t)x << 16};
  return wide.f;
}

// True if rows of the tensor can be used where they are.
inline bool direct(const TmTokens &x, int count) {
  return x.dtype == TM_F32 && x.sd == 1 && count == W;
}

// Channels d .. d + count - 1 at some places, as float32; the other lanes are
// zero. `tile` is used where the tensor itself cannot be.
inline Rows read_tile(const TmTokens &x, const char *item, int64_t d, int count,
                      const Places &places, const int64_t *offset,
                      float *tile) {
  if (direct(x, count)) return {(float *)item + d, offset};
  Rows rows = {tile, tile_offsets()};
  int n = places.count, t = 0;
  if (x.sd == 1 && x.dtype == TM_F32) {
    for (; t < n; t++)
      store(rows[t], load_part((const float *)item + d + offset[t], count));
  } else if (x.sd == 1 && count == W) {
    const uint16_t *data = (const uint16_t *)item + d;
    if (x.dtype == TM_BF16)
      for (; t < n; t++) store(rows[t], load_bf16(data + offset[t]));
    else
      for (; t < n; t++) store(rows[t], load_f16(data + offset[t]));
  } else {
    if (x.sl == 1 && x.dtype == TM_F32 && count == W && places.step)
      for (; t + W <= n; t += W) {
        // Backwards, the last place comes first in memory.
        bool forward = places.step > 0;
        const float *data = (const float *)item + d * x.sd;
        transpose(data + offset[forward ? t : t + W - 1], x.sd,
                  rows[forward ? t : t + W - 1], forward ? W : -W);
      }
    for (; t < n; t++) {
      store(rows[t], splat(0.0f));
      for (int i = 0; i < count; i++)
        rows[t][i] = scalar(item, x.dtype, (d + i) * x.sd + offset[t]);
    }
  }
  return rows;
}

// Where a block of an output is to be computed: in place if that is possible.
// With `add`, it holds what is there.
inline Rows open_tile(const TmTokens &x, const char *item, int64_t d, int count,
                      const Places &places, const int64_t *offset, float *tile,
                      bool add) {
  if (add || direct(x, count))
    return read_tile(x, item, d, count, places, offset, tile);
  return {tile, tile_offsets()};
}

// Puts the rows from `first` on in place.
inline void close_tile(const TmTokens &x, char *item, int64_t d, int count,
                       const Places &places, const int64_t *offset, Rows rows,
                       int first = 0) {
  if (direct(x, count)) return;
  for (int t = first; t < places.count; t++) {
    vf row = load(rows[t]);
    if (x.dtype == TM_F32) {
      store_part((float *)item + d + offset[t], row, count);
      continue;
    }
    uint16_t *data = (uint16_t *)item + d + offset[t], part[W];
    uint16_t *to = count == W ? data : part;
    if (x.dtype == TM_BF16)
      store_bf16(to, row);
    else
      store_f16(to, row);
    if (count < W)
      for (int i = 0; i < count; i++) data[i] = part[i];
  }
}

// Rows of N weights at some places, packed.
inline void read_coefs(const TmCoefs &x, const char *item, int64_t N,
                       const Places &places, float *out) {
  for (int t = 0; t < places.count; t++, out += N) {
    int64_t at = places.token[t] * x.sl;
    int64_t n = 0;
    if (x.sn == 1 && x.dtype == TM_F32) {
      const float *data = (const float *)item + at;
      for (; n + W <= N; n += W) store(out + n, load(data + n));
      if (n < N) store_part(out + n, load_part(data + n, N - n), N - n);
      continue;
    }
    if (x.sn == 1) {
      const uint16_t *data = (const uint16_t *)item + at;
      for (; n + W <= N; n += W)
        store(out + n, x.dtype == TM_BF16 ? load_bf16(data + n)
                                          : load_f16(data + n));
    }
    for (; n < N; n++) out[n] = scalar(item, x.dtype, at + n * x.sn);
  }
}

inline char *coef_item(const TmCoefs &x, int64_t b, int64_t k, int64_t g) {
  int64_t size = x.dtype == TM_F32 ? 4 : 2;
  return x.data + (b * x.sb + k * x.sk + g * x.sg) * size;
}

}  // namespace
