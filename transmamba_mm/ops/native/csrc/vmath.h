// Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
// Elementary functions on the vectors of simd_*.h.
#pragma once

namespace {

// exp(-|x|).
inline vf exp_minus_abs(vf x) {
  return exp2(minus_abs(x) * splat(1.44269504f));
}

// log(1 + e) for 0 <= e <= 1, relative error 1.3e-7. Independent products
// (Estrin's scheme) keep the chain of dependent operations short.
inline vf log1p_unit(vf e) {
  vf e2 = e * e, e4 = e2 * e2;
  vf p01 = fma(splat(-0.4999949314f), e, splat(0.9999999699f));
  vf p23 = fma(splat(-0.2484298221f), e, splat(0.3331909681f));
  vf p45 = fma(splat(-0.1366324580f), e, splat(0.1910600676f));
  vf p67 = fma(splat(-0.0295052388f), e, splat(0.0782259520f));
  vf low = fma(p23, e2, p01), high = fma(p67, e2, p45);
  return fma(fma(splat(0.0052326943f), e4, high), e4, low) * e;
}

// With e = exp(-|x|): log(1 + exp(x)), which above 20 is x in float32, and its
// derivative.
inline vf softplus(vf x, vf e) { return vmax(splat(0.0f), x) + log1p_unit(e); }
inline vf sigmoid(vf x, vf e) {
  vf one = splat(1.0f);
  return select_gt(splat(0.0f), x, e, one) * reciprocal(one + e);
}

inline vf softplus(vf x) { return softplus(x, exp_minus_abs(x)); }
inline vf sigmoid(vf x) { return sigmoid(x, exp_minus_abs(x)); }

}  // namespace
