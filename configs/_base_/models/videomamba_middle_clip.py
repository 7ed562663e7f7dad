"""VideoMamba-M beside CLIP's text tower; 12 frames of 224 pixels."""

model = dict(
    type='transmamba.VideoTextRetriever',
    backbone=dict(
        type='transmamba.VideoMamba',
        arch='middle',
        num_frames=12,
        out_type='pooled',
        pool_type='cls+avg',
        keep_temporal=True,
        with_cp=True,
    ),
    text_encoder=dict(type='transmamba.CLIPTextTower', arch='ViT-B/16'),
    head=dict(
        type='transmamba.MeanPooling', embed_dims=512, video_channels=576
    ),
)
