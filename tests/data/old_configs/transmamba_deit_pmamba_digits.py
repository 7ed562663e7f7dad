auto_scale_lr = dict(base_batch_size=32)
custom_hooks = [
    dict(type='transmamba.SubcloneInitializer'),
]
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'transmamba_mm',
    ],
)
data_preprocessor = dict(
    mean=[
        78.0,
        78.0,
        78.0,
    ],
    num_classes=10,
    std=[
        96.0,
        96.0,
        96.0,
    ],
    to_rgb=False,
)
default_hooks = dict(
    bare_file=dict(type='transmamba.BareFileHook'),
    checkpoint=dict(
        interval=1, max_keep_ckpts=2, type='transmamba.SafeCheckpointHook'
    ),
    distill_monitor=dict(interval=5, type='transmamba.DistillMonitor'),
    epoch_seed=dict(type='transmamba.EpochSeedHook'),
    logger=dict(interval=100, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(enable=False, type='VisualizationHook'),
)
default_scope = 'mmpretrain'
distiller = dict(
    connectors=dict(calibration=dict(type='transmamba.FeatureCalibration')),
    distill_losses=dict(
        loss_transmamba=dict(
            tau=0.1,
            teacher_layers='last',
            type='transmamba.AdaptiveBidirectionalDistill',
        )
    ),
    loss_forward_mappings=dict(
        loss_transmamba=dict(
            student=dict(
                connector='calibration', from_student=True, recorder='taps'
            ),
            teacher=dict(from_student=False, recorder='tokens'),
        )
    ),
    student_recorders=dict(taps=dict(type='transmamba.DirectionTaps')),
    teacher_recorders=dict(
        tokens=dict(source='backbone\\.ln1', type='transmamba.PatchTokens')
    ),
    type='mmrazor.ConfigurableDistiller',
)
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
)
load_from = None
log_level = 'INFO'
model = dict(
    alpha=0.5,
    architecture=dict(
        backbone=dict(
            arch=dict(embed_dims=64, num_layers=4),
            ffn_ratio=4,
            img_size=16,
            init_cfg=[],
            mixer_cfg=dict(conv_size=3, d_state=8, expand=1),
            patch_size=4,
            stem='patch',
            type='transmamba.PlainMamba',
        ),
        head=dict(
            in_channels=64,
            loss=dict(type='CrossEntropyLoss'),
            num_classes=10,
            type='LinearClsHead',
        ),
        type='ImageClassifier',
    ),
    distiller=dict(
        connectors=dict(
            calibration=dict(type='transmamba.FeatureCalibration')
        ),
        distill_losses=dict(
            loss_transmamba=dict(
                tau=0.1,
                teacher_layers='last',
                type='transmamba.AdaptiveBidirectionalDistill',
            )
        ),
        loss_forward_mappings=dict(
            loss_transmamba=dict(
                student=dict(
                    connector='calibration', from_student=True, recorder='taps'
                ),
                teacher=dict(from_student=False, recorder='tokens'),
            )
        ),
        student_recorders=dict(taps=dict(type='transmamba.DirectionTaps')),
        teacher_recorders=dict(
            tokens=dict(source='backbone\\.ln1', type='transmamba.PatchTokens')
        ),
        type='mmrazor.ConfigurableDistiller',
    ),
    teacher=dict(
        backbone=dict(
            arch=dict(
                embed_dims=64,
                feedforward_channels=256,
                num_heads=4,
                num_layers=4,
            ),
            img_size=16,
            patch_size=4,
            type='VisionTransformer',
        ),
        head=dict(
            in_channels=64,
            loss=dict(type='CrossEntropyLoss'),
            num_classes=10,
            type='VisionTransformerClsHead',
        ),
        type='ImageClassifier',
    ),
    teacher_ckpt='work_dirs/deit_digits/epoch_60.pth',
    type='transmamba.TransMambaDistill',
)
optim_wrapper = dict(
    clip_grad=dict(max_norm=5.0),
    optimizer=dict(lr=0.002, type='AdamW', weight_decay=0.05),
    paramwise_cfg=dict(
        bias_decay_mult=0.0,
        custom_keys=dict(
            {
                '.A_log': dict(decay_mult=0.0),
                '.cls_token': dict(decay_mult=0.0),
                '.direction_Bs': dict(decay_mult=0.0),
                '.pos_embed': dict(decay_mult=0.0),
            }
        ),
        flat_decay_mult=0.0,
        norm_decay_mult=0.0,
    ),
)
param_scheduler = [
    dict(
        begin=0,
        by_epoch=True,
        convert_to_iter_based=True,
        end=15,
        eta_min=1e-05,
        type='CosineAnnealingLR',
    ),
]
randomness = dict(deterministic=False, seed=0)
resume = False
student = dict(
    backbone=dict(
        arch=dict(embed_dims=64, num_layers=4),
        ffn_ratio=4,
        img_size=16,
        init_cfg=[],
        mixer_cfg=dict(conv_size=3, d_state=8, expand=1),
        patch_size=4,
        stem='patch',
        type='transmamba.PlainMamba',
    ),
    head=dict(
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
        num_classes=10,
        type='LinearClsHead',
    ),
    type='ImageClassifier',
)
teacher = dict(
    backbone=dict(
        arch=dict(
            embed_dims=64, feedforward_channels=256, num_heads=4, num_layers=4
        ),
        img_size=16,
        patch_size=4,
        type='VisionTransformer',
    ),
    head=dict(
        in_channels=64,
        loss=dict(type='CrossEntropyLoss'),
        num_classes=10,
        type='VisionTransformerClsHead',
    ),
    type='ImageClassifier',
)
test_cfg = dict()
test_dataloader = dict(
    batch_size=250,
    dataset=dict(
        pipeline=[
            dict(
                interpolation='bicubic',
                scale=(
                    16,
                    16,
                ),
                type='Resize',
            ),
            dict(type='PackInputs'),
        ],
        split='test',
        type='transmamba.Digits',
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
test_evaluator = dict(topk=(1,), type='Accuracy')
test_pipeline = [
    dict(
        interpolation='bicubic',
        scale=(
            16,
            16,
        ),
        type='Resize',
    ),
    dict(type='PackInputs'),
]
train_cfg = dict(by_epoch=True, max_epochs=15, val_interval=1)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        dataset=dict(
            pipeline=[
                dict(crop_size=8, padding=1, type='RandomCrop'),
                dict(
                    interpolation='bicubic',
                    scale=(
                        16,
                        16,
                    ),
                    type='Resize',
                ),
                dict(type='PackInputs'),
            ],
            split='train',
            type='transmamba.Digits',
        ),
        fraction=0.2,
        type='transmamba.FractionDataset',
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=True, type='DefaultSampler'),
)
train_pipeline = [
    dict(crop_size=8, padding=1, type='RandomCrop'),
    dict(
        interpolation='bicubic',
        scale=(
            16,
            16,
        ),
        type='Resize',
    ),
    dict(type='PackInputs'),
]
val_cfg = dict()
val_dataloader = dict(
    batch_size=250,
    dataset=dict(
        pipeline=[
            dict(
                interpolation='bicubic',
                scale=(
                    16,
                    16,
                ),
                type='Resize',
            ),
            dict(type='PackInputs'),
        ],
        split='test',
        type='transmamba.Digits',
    ),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
val_evaluator = dict(topk=(1,), type='Accuracy')
vis_backends = [
    dict(type='LocalVisBackend'),
]
visualizer = dict(
    type='UniversalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ],
)
