"""A VideoMamba of ViT-Ti's width and depth, with FFNs, beside MiniLM."""

model = dict(
    type='transmamba.VideoTextRetriever',
    backbone=dict(
        type='transmamba.VideoMamba',
        arch=dict(
            embed_dims=192,
            num_layers=12,
            expand=1,
            ffn_ratio=4,
            norm_cfg=dict(type='LN', eps=1e-6),
        ),
        img_size=96,
        patch_size=16,
        num_frames=2,
        mixer_cfg=dict(d_state=8),
        out_type='pooled',
        pool_type='cls+avg',
        keep_temporal=True,
    ),
    text_encoder=dict(
        type='transmamba.TransformersTextEncoder',
        path='data/weights/all-MiniLM-L6-v2',
    ),
    head=dict(
        type='transmamba.MeanPooling',
        embed_dims=256,
        video_channels=192,
        text_channels=384,
    ),
)
