# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""What the metafiles say of the configs, and the READMEs and docstrings."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from config_cases import build, count, docstring, read, readme_row, student_of
from helpers import ROOT
from mmpretrain.registry import MODELS

from transmamba_mm.apis import get_flops

METAFILES = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
ENTRIES = [
    pytest.param(model, id=model['Name'])
    for path in METAFILES
    for model in yaml.safe_load((ROOT / path).read_text())['Models']
]


QUICKSTART = '_digits|_toy-v'


def name_of(entry):
    return Path(entry['Config']).relative_to('configs').as_posix()


@pytest.mark.parametrize('metafile', METAFILES)
def test_metafile_lists_every_config_of_its_folder(metafile):
    content = yaml.safe_load((ROOT / metafile).read_text())
    folder = (ROOT / metafile).parent
    configs = [model['Config'] for model in content['Models']]
    names = [model['Name'] for model in content['Models']]
    assert sorted(configs) == sorted(
        path.relative_to(ROOT).as_posix() for path in folder.glob('*.py')
    )
    assert names == [Path(config).stem for config in configs]
    collections = {c['Name']: c for c in content['Collections']}
    for model in content['Models']:
        assert model['In Collection'] in collections
    for collection in collections.values():
        if 'README' in collection:
            assert (ROOT / collection['README']).is_file()


@pytest.mark.parametrize('entry', ENTRIES)
def test_counts(entry):
    assert entry['Weights'] is None
    assert [result['Metrics'] for result in entry['Results']] == [None]
    name, metadata = name_of(entry), entry['Metadata']
    model = student_of(build(read(name)))
    assert count(model) == metadata['Parameters']
    # A teacher is not what the paper is about, the quickstart has no table.
    told = not re.match('transmamba/deit-|quickstart/', name)
    images = told and not name.startswith(('retrieval/', 'vqa/'))
    assert ('FLOPs' in metadata) == images
    if told:
        figures = f'{count(model):,}'
        if images:
            cfg = read(name).model
            flops = macs(repr(cfg.get('architecture', cfg).to_dict()))
            assert flops == metadata['FLOPs']
            figures += f' | {flops / 1e9:.2f} G'
        data = metadata['Training Data']
        assert f' | {data} | {figures} |' in readme_row(name)


@cache
def macs(student):
    """Multiply-accumulates of one image, of a model given by its config."""
    with torch.device('meta'):
        model = MODELS.build(ast.literal_eval(student))
    # Values do not matter, so there is nothing to initialise.
    return get_flops(model.to_empty(device='cpu'))


@pytest.mark.parametrize(
    'entry', [e for e in ENTRIES if not re.search(QUICKSTART, e.id)]
)
def test_reported_accuracy_is_the_same_everywhere(entry):
    name = name_of(entry)
    reported = [
        figure
        for key, value in entry.items()
        if key.startswith('Reported')
        for figure in value.values()
        if isinstance(figure, float)
    ]
    said = re.findall(r'([\d.]+) % (?:top-1|t2v/R@1)', docstring(name))
    assert list(map(float, said[:1])) == reported
    if not name.startswith('transmamba/'):  # has a table by data sets
        row = readme_row(name)
        assert list(map(float, re.findall(r'\| ([\d.]+), ', row))) == reported
        assert reported or row.endswith(' | \N{EN DASH} |')


def test_sizes_of_the_papers_table():
    """PMamba-T/S/B of Table 1: 4.1, 13.7 and 49.5 M without the head."""
    sizes = {}
    for width in ('tiny', 'small', 'base'):
        name = f'plain_mamba/pmamba-{width}_8xb64-300e_cifar100.py'
        sizes[width] = count(build(read(name)).backbone)
    assert sizes == dict(tiny=4150848, small=13746816, base=49527552)
