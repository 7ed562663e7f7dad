"""VideoMamba-Ti as released for images, 224 pixels, 1000 classes."""

_base_ = './vim_tiny.py'

student = dict(
    backbone=dict(
        _delete_=True,
        type='transmamba.VideoMamba',
        arch='tiny',
        img_size=224,
        patch_size=16,
        out_type='cls_token',
        drop_path_rate=0.0,
    )
)
