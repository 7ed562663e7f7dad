# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the guides say of the code is so."""

import inspect
import re

import pytest
from helpers import CONFIGS, ROOT
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope

from transmamba_mm import models, ops
from transmamba_mm.apis import plan_transfer
from transmamba_mm.models import layers
from transmamba_mm.registry import DATASETS, MODELS

GUIDES = sorted((ROOT / 'docs/guides').glob('*.md'))
LIFE = (ROOT / 'docs/guides/life_of_a_batch.md').read_text()
FOLDERS = 'benchmarks|configs|docs|requirements|tests|tools|transmamba_mm'
QUICKSTART = CONFIGS / 'quickstart/transmamba_deit_pmamba_digits_paper.py'


@pytest.mark.parametrize(
    'page',
    [ROOT / 'README.md', ROOT / 'docs/index.md', *GUIDES],
    ids=lambda page: page.name,
)
def test_files_exist(page):
    text = page.read_text()
    # A placeholder in capitals, or a pattern, is no file.
    paths = re.findall(rf'(?<![\w/.])((?:{FOLDERS})/[\w/.-]+)(?![\w*])', text)
    for path in paths:
        if not re.search('[A-Z]{3}', path.replace('README', '')):
            assert (ROOT / path.rstrip('.')).exists(), path
    for link in re.findall(r'\]\((?!http|#)([^)#]+)', text):
        assert (page.parent / link).exists(), link


def test_every_guide_is_in_the_index():
    index = (ROOT / 'docs/index.md').read_text()
    assert set(re.findall(r'guides/(\w+)', index)) == {p.stem for p in GUIDES}


def test_language_models_of_the_guide_run():
    page, scope = (ROOT / 'docs/guides/vqa.md').read_text(), {}
    for block in re.findall(r'```python\n(.+?)```', page, re.S):
        if 'custom_hooks' not in block:
            exec(block, scope)
    assert scope['logits'].shape == (2, 4, 100)
    assert scope['losses']['loss'] > 0 and len(scope['answers']) == 2


def test_life_of_a_batch_names_what_exists():
    named = re.findall(r'`([\w/]+\.py)`:\s+`(\w+)`', LIFE)
    assert len(named) > 25
    for path, name in named:
        code = (ROOT / path).read_text()
        found = rf'^( *(def|class) {name}\b|{name} = )'
        assert re.search(found, code, re.M), f'{path} has no {name}'


def shape_of(value):
    """A shape as the page writes it."""
    if isinstance(value, dict):
        value = value['inputs']
    if isinstance(value, list):
        return f'{len(value)} x {tuple(value[0].shape)}'
    value = value[0] if isinstance(value, tuple) else value
    return str(tuple(value.shape))


def test_life_of_a_batch_has_the_shapes_of_a_run():
    cfg = Config.fromfile(str(QUICKSTART))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(cfg.model, data_preprocessor=cfg.data_preprocessor)
        )
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    rows = re.findall(r'^\| `(.+?)` \| (.+?) \| (.+?) \|$', LIFE, re.M)
    assert len(rows) == 9
    seen = {}

    def watch(name):
        def hook(module, inputs, out):
            seen[name] = shape_of(inputs[0]), shape_of(out)

        model.get_submodule(name).register_forward_hook(hook)

    for name, _, _ in rows:
        watch(name)
    size = cfg.train_dataloader.batch_size
    batch = pseudo_collate([dataset[i] for i in range(size)])
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    assert seen == {name: (before, after) for name, before, after in rows}
    assert '  '.join(losses) in LIFE
    mlps = model.distiller.connectors['calibration'].mlps
    assert f'{len(mlps)} MLPs' in LIFE


def test_life_of_a_batch_tells_what_subcloning_copies():
    plan = plan_transfer(Config.fromfile(str(QUICKSTART)), shapes_only=True)
    assert f'{plan.coverage:.1f} % of its values' in LIFE


def test_kernels_mixers_and_backbones():
    page = (ROOT / 'docs/guides/scan.md').read_text()
    rows = re.findall(r'^\| (`.+) \| `(\w+Mixer)`.* \| (.+) \|$', page, re.M)
    kinds = layers.DirectionalMixer.__subclasses__()
    kinds += layers.BidirectionalMixer.__subclasses__()
    assert {mixer for _, mixer, _ in rows} == {
        kind.__name__
        for kind in kinds
        if kind.__module__.startswith('transmamba_mm')
    }
    named = ' '.join(backbones for _, _, backbones in rows)
    assert set(re.findall(r'`(V\w+|PlainMamba)`', named)) == {
        name for name in models.__all__ if name.endswith('Mamba')
    }
    for kernels, mixer, _ in rows:
        code = inspect.getsource(getattr(layers, mixer))
        for kernel in re.findall(r'`(\w+_\w+)`', kernels):
            assert hasattr(ops, kernel)
            assert f'{kernel}(' in code
