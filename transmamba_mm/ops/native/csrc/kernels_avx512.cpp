// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
#include "simd_avx512.h"

#include "conv.h"
#include "kernels.h"
#include "norm.h"
#include "scan_backward.h"
#include "scan_forward.h"

const TmKernels tm_avx512 = {
    scan_forward, scan_forward_scratch, scan_backward, scan_backward_scratch,
    conv_forward, conv_backward,        conv_scratch,  norm_forward,
    norm_backward,
};
