// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// What Python calls: chooses the instruction set, shares out the tasks.
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

namespace {

const TmKernels *chosen = nullptr;
const char *chosen_name = "";

// One buffer per thread, kept: fresh memory costs a page fault per 4 KiB.
struct Buffer {
  char *data = nullptr;
  int64_t size = 0;
  ~Buffer() { free(data); }
  char *get(int64_t wanted) {
    if (wanted > size) {
      free(data);
      data = nullptr;
      size = 0;
      void *fresh;
      if (posix_memalign(&fresh, 64, wanted)) return nullptr;
      data = (char *)fresh;
      size = wanted;
    }
    return data;
  }
};

template <typename Task>
int run_tasks(int64_t count, int64_t threads, int64_t scratch, Task task) {
  static thread_local Buffer buffers;
  int failed = 0;
#ifdef _OPENMP
  if (threads > count) threads = count;
  if (threads > 1) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) \
    reduction(| : failed)
    for (int64_t i = 0; i < count; i++) {
      char *buffer = buffers.get(scratch);
      if (buffer)
        task(i, buffer);
      else
        failed = 1;
    }
    return failed;
  }
#endif
  char *buffer = buffers.get(scratch);
  if (!buffer) return 1;
  for (int64_t i = 0; i < count; i++) task(i, buffer);
  return failed;
}

}  // namespace

#define TM_API __attribute__((visibility("default")))

extern "C" {

// Digest of the sources this was built from.
TM_API const char *tm_source_key() { return TM_SOURCE_KEY; }

// Checked against Python's mirror of abi.h.
TM_API int64_t tm_chunk() { return TM_CHUNK; }
TM_API int64_t tm_scan_sizeof() { return sizeof(TmScan); }
TM_API int64_t tm_conv_sizeof() { return sizeof(TmConv); }
TM_API int64_t tm_norm_sizeof() { return sizeof(TmNorm); }

TM_API const char *tm_isa() { return chosen_name; }

// Picks an instruction set by name, or the best one for an empty name.
// Returns its name, or an empty string if this processor has none.
TM_API const char *tm_select_isa(const char *name) {
  __builtin_cpu_init();
  bool avx512 = __builtin_cpu_supports("avx512f") &&
                __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl");
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
  bool any = !name[0];
  chosen = nullptr;
  chosen_name = "";
  if (avx512 && (any || !strcmp(name, "avx512"))) {
    chosen = &tm_avx512;
    chosen_name = "avx512";
  } else if (avx2 && (any || !strcmp(name, "avx2"))) {
    chosen = &tm_avx2;
    chosen_name = "avx2";
  }
  return chosen_name;
}

// These return 0, or 1 if memory ran out.
TM_API int tm_scan_forward(const TmScan *p) {
  return run_tasks(p->B * p->G * p->parts, p->threads,
                   chosen->scan_forward_scratch(*p), [&](int64_t i, char *buffer) {
                     chosen->scan_forward(*p, i, buffer);
                   });
}

TM_API int tm_scan_backward(const TmScan *p) {
  return run_tasks(p->B * p->G * p->parts, p->threads,
                   chosen->scan_backward_scratch(*p), [&](int64_t i, char *buffer) {
                     chosen->scan_backward(*p, i, buffer);
                   });
}

TM_API int tm_conv_forward(const TmConv *p) {
  return run_tasks(p->B, p->threads, chosen->conv_scratch(*p),
                   [&](int64_t i, char *buffer) {
                     chosen->conv_forward(*p, i, buffer);
                   });
}

TM_API int tm_conv_backward(const TmConv *p) {
  return run_tasks(p->B, p->threads, chosen->conv_scratch(*p),
                   [&](int64_t i, char *buffer) {
                     chosen->conv_backward(*p, i, buffer);
                   });
}

TM_API int tm_norm_forward(const TmNorm *p) {
  return run_tasks(p->parts, p->threads, 64, [&](int64_t i, char *buffer) {
    chosen->norm_forward(*p, i, buffer);
  });
}

TM_API int tm_norm_backward(const TmNorm *p) {
  return run_tasks(p->parts, p->threads, 64, [&](int64_t i, char *buffer) {
    chosen->norm_backward(*p, i, buffer);
  });
}
}
