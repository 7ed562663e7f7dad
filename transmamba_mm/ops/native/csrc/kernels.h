// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// The functions that every instruction set provides.
#pragma once
#include "abi.h"

struct TmKernels {
  // Each works off one task of many, in a buffer of its own.
  void (*scan_forward)(const TmScan &, int64_t task, char *buffer);
  int64_t (*scan_forward_scratch)(const TmScan &);
  void (*scan_backward)(const TmScan &, int64_t task, char *buffer);
  int64_t (*scan_backward_scratch)(const TmScan &);
  void (*conv_forward)(const TmConv &, int64_t task, char *buffer);
  void (*conv_backward)(const TmConv &, int64_t task, char *buffer);
  int64_t (*conv_scratch)(const TmConv &);
  void (*norm_forward)(const TmNorm &, int64_t task, char *buffer);
  void (*norm_backward)(const TmNorm &, int64_t task, char *buffer);
};

extern const TmKernels tm_avx512, tm_avx2;
