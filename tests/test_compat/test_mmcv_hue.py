# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
import mmcv
import numpy as np
import pytest

from transmamba_mm.compat import fix_adjust_hue


@pytest.fixture
def image():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
def test_negative_shift_is_the_complementary_positive_one(image, backend):
    fix_adjust_hue()
    down = mmcv.adjust_hue(image, -0.25, backend=backend)  # -63 of 256 steps
    up = mmcv.adjust_hue(image, 193 / 255 - 1e-6 - 0.5, backend=backend)
    assert down.dtype == np.uint8
    assert not np.array_equal(down, image)
    # 193 = 256 - 63 steps, taken in two positive parts.
    rest = mmcv.adjust_hue(up, 0.5, backend=backend)
    assert np.abs(rest.astype(int) - down.astype(int)).max() <= 12


def test_identity_range_and_idempotence(image):
    fix_adjust_hue()
    patched = mmcv.adjust_hue
    fix_adjust_hue()
    assert mmcv.adjust_hue is patched is mmcv.image.adjust_hue
    same = mmcv.adjust_hue(image, 0.0)
    assert np.abs(same.astype(int) - image.astype(int)).max() <= 6
    with pytest.raises(ValueError, match='hue_factor'):
        mmcv.adjust_hue(image, 0.7)
