_bgr_mean = [
    103.53,
    116.28,
    123.675,
]
_bgr_std = [
    57.375,
    57.12,
    58.395,
]
_rgb_mean = [
    123.675,
    116.28,
    103.53,
]
_rgb_std = [
    58.395,
    57.12,
    57.375,
]
auto_scale_lr = dict(base_batch_size=512)
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
        123.675,
        116.28,
        103.53,
    ],
    num_classes=100,
    std=[
        58.395,
        57.12,
        57.375,
    ],
    to_rgb=False,
)
default_hooks = dict(
    bare_file=dict(type='transmamba.BareFileHook'),
    checkpoint=dict(
        interval=1, max_keep_ckpts=2, type='transmamba.SafeCheckpointHook'
    ),
    distill_monitor=dict(interval=100, type='transmamba.DistillMonitor'),
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
ema_hook = dict(momentum=0.0001, priority='ABOVE_NORMAL', type='EMAHook')
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
            arch='pmamba-tiny',
            drop_path_rate=0.0,
            ffn_ratio=0,
            img_size=224,
            patch_size=16,
            stem='conv',
            type='transmamba.PlainMamba',
        ),
        head=dict(
            in_channels=192,
            loss=dict(
                label_smooth_val=0.1, mode='original', type='LabelSmoothLoss'
            ),
            num_classes=100,
            type='LinearClsHead',
        ),
        train_cfg=dict(
            augments=[
                dict(alpha=0.8, type='Mixup'),
                dict(alpha=1.0, type='CutMix'),
            ]
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
            arch='deit-tiny',
            drop_path_rate=0.0,
            img_size=224,
            patch_size=16,
            type='VisionTransformer',
        ),
        head=dict(
            in_channels=192,
            loss=dict(
                label_smooth_val=0.1, mode='original', type='LabelSmoothLoss'
            ),
            num_classes=100,
            type='VisionTransformerClsHead',
        ),
        init_cfg=[
            dict(layer='Linear', std=0.02, type='TruncNormal'),
            dict(bias=0.0, layer='LayerNorm', type='Constant', val=1.0),
        ],
        train_cfg=dict(
            augments=[
                dict(alpha=0.8, type='Mixup'),
                dict(alpha=1.0, type='CutMix'),
            ]
        ),
        type='ImageClassifier',
    ),
    teacher_ckpt='work_dirs/deit-tiny_8xb64-50e_cifar100/epoch_50.pth',
    type='transmamba.TransMambaDistill',
)
optim_wrapper = dict(
    clip_grad=dict(max_norm=5.0),
    optimizer=dict(
        betas=(
            0.9,
            0.999,
        ),
        eps=1e-08,
        lr=0.0005,
        type='AdamW',
        weight_decay=0.05,
    ),
    paramwise_cfg=dict(
        bias_decay_mult=0.0,
        custom_keys=dict(
            {
                '.A_b_log': dict(decay_mult=0.0),
                '.A_log': dict(decay_mult=0.0),
                '.cls_token': dict(decay_mult=0.0),
                '.direction_Bs': dict(decay_mult=0.0),
                '.dt_projs_bias': dict(decay_mult=0.0),
                '.pos_embed': dict(decay_mult=0.0),
                '.temporal_pos_embedding': dict(decay_mult=0.0),
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
        end=5,
        start_factor=0.002,
        type='LinearLR',
    ),
    dict(
        begin=5,
        by_epoch=True,
        convert_to_iter_based=True,
        end=300,
        eta_min=1e-05,
        type='CosineAnnealingLR',
    ),
]
randomness = dict(deterministic=False, seed=0)
resume = False
student = dict(
    backbone=dict(
        arch='pmamba-tiny',
        drop_path_rate=0.0,
        ffn_ratio=0,
        img_size=224,
        patch_size=16,
        stem='conv',
        type='transmamba.PlainMamba',
    ),
    head=dict(
        in_channels=192,
        loss=dict(
            label_smooth_val=0.1, mode='original', type='LabelSmoothLoss'
        ),
        num_classes=1000,
        type='LinearClsHead',
    ),
    train_cfg=dict(
        augments=[
            dict(alpha=0.8, type='Mixup'),
            dict(alpha=1.0, type='CutMix'),
        ]
    ),
    type='ImageClassifier',
)
teacher = dict(
    backbone=dict(
        arch='deit-tiny',
        drop_path_rate=0.0,
        img_size=224,
        patch_size=16,
        type='VisionTransformer',
    ),
    head=dict(
        in_channels=192,
        loss=dict(
            label_smooth_val=0.1, mode='original', type='LabelSmoothLoss'
        ),
        num_classes=1000,
        type='VisionTransformerClsHead',
    ),
    init_cfg=[
        dict(layer='Linear', std=0.02, type='TruncNormal'),
        dict(bias=0.0, layer='LayerNorm', type='Constant', val=1.0),
    ],
    train_cfg=dict(
        augments=[
            dict(alpha=0.8, type='Mixup'),
            dict(alpha=1.0, type='CutMix'),
        ]
    ),
    type='ImageClassifier',
)
test_cfg = dict()
test_dataloader = dict(
    batch_size=64,
    dataset=dict(
        data_root='data/cifar100',
        download=False,
        pipeline=[
            dict(
                backend='pillow',
                interpolation='bicubic',
                scale=(
                    224,
                    224,
                ),
                type='Resize',
            ),
            dict(type='PackInputs'),
        ],
        split='test',
        type='CIFAR100',
    ),
    num_workers=8,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
test_evaluator = dict(
    topk=(
        1,
        5,
    ),
    type='Accuracy',
)
test_pipeline = [
    dict(
        backend='pillow',
        interpolation='bicubic',
        scale=(
            224,
            224,
        ),
        type='Resize',
    ),
    dict(type='PackInputs'),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        dataset=dict(
            data_root='data/cifar100',
            download=False,
            pipeline=[
                dict(
                    backend='pillow',
                    interpolation='bicubic',
                    scale=224,
                    type='RandomResizedCrop',
                ),
                dict(direction='horizontal', prob=0.5, type='RandomFlip'),
                dict(
                    hparams=dict(
                        interpolation='bicubic',
                        pad_val=[
                            124,
                            116,
                            104,
                        ],
                    ),
                    magnitude_level=9,
                    magnitude_std=0.5,
                    num_policies=2,
                    policies='timm_increasing',
                    total_level=10,
                    type='RandAugment',
                ),
                dict(
                    erase_prob=0.25,
                    fill_color=[
                        123.675,
                        116.28,
                        103.53,
                    ],
                    fill_std=[
                        58.395,
                        57.12,
                        57.375,
                    ],
                    max_area_ratio=0.3333333333333333,
                    min_area_ratio=0.02,
                    mode='rand',
                    type='RandomErasing',
                ),
                dict(type='PackInputs'),
            ],
            split='train',
            type='CIFAR100',
        ),
        fraction=1.0,
        type='transmamba.FractionDataset',
    ),
    num_workers=8,
    persistent_workers=False,
    sampler=dict(shuffle=True, type='DefaultSampler'),
    worker_init_fn=dict(type='transmamba.seed_worker'),
)
train_pipeline = [
    dict(
        backend='pillow',
        interpolation='bicubic',
        scale=224,
        type='RandomResizedCrop',
    ),
    dict(direction='horizontal', prob=0.5, type='RandomFlip'),
    dict(
        hparams=dict(
            interpolation='bicubic',
            pad_val=[
                124,
                116,
                104,
            ],
        ),
        magnitude_level=9,
        magnitude_std=0.5,
        num_policies=2,
        policies='timm_increasing',
        total_level=10,
        type='RandAugment',
    ),
    dict(
        erase_prob=0.25,
        fill_color=[
            123.675,
            116.28,
            103.53,
        ],
        fill_std=[
            58.395,
            57.12,
            57.375,
        ],
        max_area_ratio=0.3333333333333333,
        min_area_ratio=0.02,
        mode='rand',
        type='RandomErasing',
    ),
    dict(type='PackInputs'),
]
val_cfg = dict()
val_dataloader = dict(
    batch_size=64,
    dataset=dict(
        data_root='data/cifar100',
        download=False,
        pipeline=[
            dict(
                backend='pillow',
                interpolation='bicubic',
                scale=(
                    224,
                    224,
                ),
                type='Resize',
            ),
            dict(type='PackInputs'),
        ],
        split='test',
        type='CIFAR100',
    ),
    num_workers=8,
    sampler=dict(shuffle=False, type='DefaultSampler'),
)
val_evaluator = dict(
    topk=(
        1,
        5,
    ),
    type='Accuracy',
)
vis_backends = [
    dict(type='LocalVisBackend'),
]
visualizer = dict(
    type='UniversalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ],
)
