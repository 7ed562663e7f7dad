"""A small VideoMamba with the FFNs and the width of its teacher."""

model = dict(
    type='transmamba.VideoTextRetriever',
    backbone=dict(
        type='transmamba.VideoMamba',
        arch=dict(
            embed_dims=64,
            num_layers=4,
            ffn_ratio=4,
            norm_cfg=dict(type='LN', eps=1e-5),
        ),
        img_size=32,
        patch_size=8,
        num_frames=8,
        out_type='pooled',
        pool_type='cls+avg',
        keep_temporal=True,
    ),
    text_encoder=dict(
        type='transmamba.CLIPTextTower',
        arch=dict(embed_dims=64, num_layers=2, num_heads=4, out_channels=64),
        vocab_size=599,
        context_length=24,
    ),
    head=dict(
        type='transmamba.SequenceTransformer',
        embed_dims=64,
        video_channels=64,
        num_layers=2,
        num_heads=4,
        max_frames=8,
    ),
)
