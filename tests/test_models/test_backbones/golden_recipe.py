# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Regenerates the weights of golden files that store none.

A tensor is a pure function of (seed, state-dict key, shape), from NumPy's
frozen legacy stream; the golden files hold checksums of the result.
"""

import re
import zlib

import numpy as np


def _stream(seed, key):
    return np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)


def recipe_tensor(seed, key, shape, is_norm=False):
    """float64 array for one state-dict entry."""
    stream = _stream(seed, key)
    leaf = key.rsplit('.', 1)[-1]
    if leaf == 'num_batches_tracked':
        return np.zeros(shape, dtype=np.int64)
    noise = stream.standard_normal(shape)
    if leaf == 'running_mean':
        return 0.1 * noise
    if leaf == 'running_var':
        return np.exp(0.3 * noise)
    if leaf in ('A_log', 'A_b_log', 'A_logs'):
        return np.log(np.arange(1.0, shape[-1] + 1))[None] + 0.2 * noise
    if leaf in ('D', 'D_b', 'Ds'):
        return 1.0 + 0.3 * noise
    if re.search(r'dt_proj(_b)?\.bias$', key) or leaf == 'dt_projs_bias':
        low, high = np.log(0.01), np.log(0.5)
        dt = np.exp(stream.uniform(size=shape) * (high - low) + low)
        return dt + np.log(-np.expm1(-dt))
    if re.match('pos_embed|temporal_pos|cls_token|direction_Bs', leaf):
        return 0.5 * noise
    if leaf == 'gamma':
        return 0.5 + 0.2 * noise
    if is_norm:
        return 1.0 + 0.2 * noise if leaf == 'weight' else 0.1 * noise
    if leaf == 'bias':
        return 0.1 * noise
    if leaf in ('x_proj_weight', 'dt_projs_weight'):
        return noise / np.sqrt(shape[-1])
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else shape[0]
    return noise / np.sqrt(fan_in)
