# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Reading golden files and comparing models with them."""

import json

import numpy as np
import torch
from golden_recipe import recipe_tensor

# Relative to each array's largest absolute value (design of the files).
OUT_TOLERANCE = 2e-5
GRAD_TOLERANCE = 5e-5


def assert_close(actual, expected, tolerance, name):
    actual = actual.detach().double().cpu().numpy()
    if isinstance(expected, torch.Tensor):
        expected = expected.detach().cpu()
    expected = np.asarray(expected, dtype=np.float64)
    assert actual.shape == expected.shape, name
    error = np.abs(actual - expected).max(initial=0)
    limit = tolerance * max(np.abs(expected).max(initial=0), 1e-12)
    assert error <= limit, f'{name}: error {error:.3g} > {limit:.3g}'


class Golden:
    """One golden file."""

    def __init__(self, path):
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.config = json.loads(str(self.arrays['config']))
        self.meta = json.loads(str(self.arrays.get('meta', '{}')))

    def group(self, prefix):
        prefix += '/'
        return {
            key[len(prefix) :]: value
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        }

    def sampled(self, name, value):
        """A tensor as it is stored under ``name``: whole, or a sample."""
        base, _, sample = name.partition('@')
        if not sample:
            return value
        stride = self.meta['stats'][base]['stride']
        return value.flatten()[::stride][:512]

    def weights(self):
        """State dict, stored or regenerated."""
        if self.config['weights'] == 'stored':
            return {k: torch.tensor(v) for k, v in self.group('sd').items()}
        state = {}
        for key, shape, is_norm in self.meta['state_spec']:
            value = recipe_tensor(self.config['seed'], key, shape, is_norm)
            total, squares = self.meta['checksum'][key]
            # The checksums were taken in float32.
            slack = 1e-6 * np.abs(value).sum()
            assert np.isclose(value.sum(), total, atol=slack)
            assert np.isclose(np.square(value).sum(), squares)
            integer = value.dtype == np.int64
            state[key] = torch.tensor(
                value, dtype=None if integer else torch.float32
            )
        return state


class Watch:
    """Records named module outputs of one forward pass."""

    def __init__(self, modules):
        self.seen = {}
        for name, module in modules.items():
            module.register_forward_hook(
                lambda m, i, out, name=name: self.seen.update({name: out})
            )


def check_model(golden, model, modules, more_outputs):
    """Compares outputs, gradients and, in training mode, buffers.

    Args:
        golden (Golden): The file.
        model (nn.Module): Classifier with the official state dict loaded.
        modules (dict[str, nn.Module]): Output name to module.
        more_outputs (Callable): ``(model, seen) -> dict`` of derived outputs.
    """
    model.train(golden.config['train'])
    watch = Watch(modules)
    x = torch.tensor(golden.arrays['in/x'], requires_grad=True)
    logits = model(x)
    logits.mul(torch.tensor(golden.arrays['in/gvec'])).sum().backward()
    outputs = {**watch.seen, 'logits': logits}
    outputs.update(more_outputs(model, outputs))
    expected = golden.group('out')
    assert {name.partition('@')[0] for name in expected} <= set(outputs)
    for name, value in expected.items():
        output = outputs[name.partition('@')[0]]
        output = output[0] if isinstance(output, tuple) else output
        output = golden.sampled(f'out/{name}', output)
        assert_close(output, value, OUT_TOLERANCE, name)
    parameters = dict(model.named_parameters())
    for name, value in golden.group('grad').items():
        base = name.partition('@')[0]
        grad = x.grad if base == 'input' else parameters[base].grad
        grad = golden.sampled(f'grad/{name}', grad)
        assert_close(grad, value, GRAD_TOLERANCE, f'grad {name}')
    state = model.state_dict()
    for name, value in golden.group('after').items():
        assert_close(state[name], value, OUT_TOLERANCE, f'after {name}')
