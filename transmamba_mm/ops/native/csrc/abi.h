// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// What Python passes: plain C structs, every field 8 bytes, so that ctypes
// can mirror them. Strides count elements. See ../library.py.
#pragma once
#include <stdint.h>

enum { TM_F32 = 0, TM_BF16 = 1, TM_F16 = 2 };

// Tokens (B, K, L, D). Stride 0 along K: shared by the directions.
typedef struct {
  char *data;  // null if absent
  int64_t dtype, sb, sk, sl, sd;
} TmTokens;

// Weights of the states in time, (B, K, G, L, N).
typedef struct {
  char *data;
  int64_t dtype, sb, sk, sg, sl, sn;
} TmCoefs;

typedef struct {
  int64_t B, K, G, L, D, N;
  TmTokens u, delta, z, out;
  TmCoefs b, c;
  const float *a;  // (K, N, D): A * log2(e); a_sk = 0 if shared
  int64_t a_sk;
  const float *d;  // (K, D), null if absent
  int64_t d_sk;
  const float *bias;  // (K, D), null if absent
  int64_t bias_sk;
  const int32_t *orders;  // (K, L), null if natural
  int64_t reverse;        // bit k: direction k
  int64_t softplus, by_step;
  float *last;    // (B, K, D, N)
  float *states;  // (B, K, chunks, N, D), null if not kept
  // Backward only. The gradients of what is shared by the directions are
  // sums over them; others of these are summed by the caller.
  TmTokens grad_out, grad_u, grad_delta, grad_z;  // grad_z may be absent
  float *grad_b, *grad_c;  // (parts, B, K, G, L, N)
  float *grad_a;           // (B, K, N, D)
  float *grad_d;           // (B, K, D)
  float *grad_bias;        // (B, K, D)
  int64_t parts;           // pieces of the D / G channels of a group
  int64_t threads;
} TmScan;

// Causal depth-wise convolution and SiLU over (B, L, D); K of TmTokens is 1.
typedef struct {
  int64_t B, L, D, width, reverse, threads;
  TmTokens x, out;
  const float *weight;  // (width, D)
  const float *bias;    // (D,), null if absent
  TmTokens grad_out, grad_x;
  float *grad_weight;  // (B, width, D)
  float *grad_bias;    // (B, D)
} TmConv;

// RMS normalisation of contiguous rows.
typedef struct {
  int64_t rows, D, threads, parts;
  const float *x, *weight;
  float *out;
  float *rstd;  // (rows,)
  double eps;
  const float *grad_out;
  float *grad_x;
  float *grad_weight;  // (parts, D)
} TmNorm;

// Steps between two kept states.
#define TM_CHUNK 32
