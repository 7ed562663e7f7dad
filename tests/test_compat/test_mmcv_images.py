# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Images that cannot be read are named, and found beforehand."""

import struct
import zlib

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from PIL import Image

from transmamba_mm.apis.verify import find_unreadable_samples
from transmamba_mm.compat import UnreadableImageError
from transmamba_mm.registry import DATASETS


def bomb():
    """A PNG of 60,000 by 60,000 pixels, as far as its header says."""
    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    chunks = b'\x89PNG\r\n\x1a\n'
    for kind, content in ((b'IHDR', header), (b'IDAT', b''), (b'IEND', b'')):
        chunks += struct.pack('>I', len(content)) + kind + content
        chunks += struct.pack('>I', zlib.crc32(kind + content))
    return chunks


BAD = {
    'empty.png': (b'', 'the file is empty'),
    'text.png': (b'not an image', 'failed to load image'),
    'bomb.png': (bomb(), 'could be decompression bomb'),
}


@pytest.fixture
def pictures(tmp_path):
    """Two good pictures of each class, and the bad ones."""
    for name in 'ab':
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = np.zeros((4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f'{i}.png')
    for name, (content, _) in BAD.items():
        (tmp_path / 'b' / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('name', BAD)
def test_the_file_is_named(pictures, name, backend):
    load = LoadImageFromFile(imdecode_backend=backend)
    path = str(pictures / 'b' / name)
    with pytest.raises(UnreadableImageError) as caught:
        load(dict(img_path=path))
    assert f"image '{path}' cannot be read: " in str(caught.value)
    if backend == 'cv2' or name != 'text.png':
        assert BAD[name][1] in str(caught.value)


def test_what_mmcv_can_pass_over_it_passes_over(pictures):
    load = LoadImageFromFile(ignore_empty=True)
    assert load(dict(img_path=str(pictures / 'b/empty.png'))) is None
    assert load(dict(img_path=str(pictures / 'b/0.png')))['img_shape'] == (
        4,
        4,
    )


def test_a_dataset_is_verified_and_cleaned(pictures, tmp_path_factory):
    dataset = dict(
        type='mmpretrain.CustomDataset',
        data_prefix=str(pictures),
        pipeline=[dict(type='LoadImageFromFile')],
    )
    repeated = dict(type='RepeatDataset', dataset=dataset, times=2)
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=repeated),
            val_dataloader=dict(dataset=dataset),
            test_dataloader=None,
        )
    )
    bad, total = find_unreadable_samples(cfg, workers=1)
    assert total == 4 + len(BAD)
    assert bad.keys() == {str(pictures / 'b' / name) for name in BAD}
    for name, (_, reason) in BAD.items():
        assert reason in bad[str(pictures / 'b' / name)]
    listed = tmp_path_factory.mktemp('lists') / 'unreadable.txt'
    listed.write_text(''.join(f'{path}\n' for path in bad))
    clean = DATASETS.build(
        dict(
            type='transmamba.SkippingDataset',
            dataset=dataset,
            listed=str(listed),
        )
    )
    assert len(clean) == 4
    assert all(clean[i]['img_shape'] == (4, 4) for i in range(4))
