# Copyright (c) The transmamba_mm authors. Licensed under Apache-2.0.
"""Say which image cannot be read.

Cures:      (1) an empty, cut or foreign file ends a training with an error of
            the decoder that does not name the file.
            (2) OpenCV decodes an image of up to 2 ** 30 pixels, which may be
            a file of a few kilobytes, into gigabytes of memory.
Versions:   mmcv <= 2.2.0.
Delete:     when mmcv names the file, and asks for the size first.
"""

from __future__ import annotations

import functools
import io
from typing import Any

from transmamba_mm.checks import UnreadableFileError

__all__ = ['UnreadableImageError', 'name_unreadable_images']


class UnreadableImageError(UnreadableFileError):
    """An image that cannot be decoded."""


def name_unreadable_images() -> str:
    """Wrap mmcv's loading and decoding of images.

    The largest size is Pillow's, ``PIL.Image.MAX_IMAGE_PIXELS``.

    Returns:
        str: What was done.
    """
    import mmcv
    from mmcv.image import io as mmcv_io
    from mmcv.transforms import LoadImageFromFile

    if hasattr(LoadImageFromFile.transform, '__wrapped__'):
        return 'done before'
    decode, load = mmcv_io.imfrombytes, LoadImageFromFile.transform

    @functools.wraps(decode)
    def imfrombytes(content: bytes, *args: Any, **kwargs: Any) -> Any:
        _check_size(content)
        return decode(content, *args, **kwargs)

    @functools.wraps(load)
    def transform(self: LoadImageFromFile, results: dict) -> dict | None:
        try:
            return load(self, results)
        except Exception as error:
            path = results.get('img_path')
            reason = ' '.join(str(error).split()) or 'it is no image'
            raise UnreadableImageError(
                f"image '{path}' cannot be read: {reason} "
                f'({type(error).__name__}). tools/misc/verify_dataset.py '
                f'finds all such images'
            ) from error

    mmcv_io.imfrombytes = mmcv.image.imfrombytes = imfrombytes
    mmcv.imfrombytes = imfrombytes
    LoadImageFromFile.transform = transform
    return 'errors name the file; sizes are checked before decoding'


def _check_size(content: bytes) -> None:
    from PIL import Image

    if not content:
        raise UnreadableImageError('the file is empty')
    try:
        # Reads the header alone.
        with Image.open(io.BytesIO(content)):
            pass
    except Image.DecompressionBombError:
        raise
    except Exception:
        return  # the decoder may know more formats
