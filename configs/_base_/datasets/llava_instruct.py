"""LLaVA-1.5's 665,000 conversations, images of 336 pixels.

Stage two of LLaVA: 16 samples on each of 8 GPUs. Pictures are padded to
squares of CLIP's mean colour; `docs/guides/vqa.md` shows the folders.
"""

data_preprocessor = dict(
    mean=[122.771, 116.746, 104.094],
    std=[68.501, 66.632, 70.323],
    to_rgb=True,
)

train_pipeline = [
    dict(
        type='transmamba.EachImage',
        transforms=[
            dict(type='LoadImageFromFile'),
            dict(type='transmamba.PadToSquare'),
            dict(
                type='Resize',
                scale=(336, 336),
                backend='pillow',
                interpolation='bicubic',
            ),
        ],
    ),
    dict(type='transmamba.PackConversation'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        type='transmamba.LLaVAInstructDataset',
        data_root='data/llava/',
        ann_file='llava_v1_5_mix665k.json',
        data_prefix=dict(img='images'),
        pipeline=train_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
    # Samples have different numbers of images.
    collate_fn=dict(type='pseudo_collate'),
    drop_last=True,
)
