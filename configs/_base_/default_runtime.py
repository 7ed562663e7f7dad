"""Runtime settings shared by all configs."""

custom_imports = dict(imports=['transmamba_mm'], allow_failed_imports=False)
default_scope = 'mmpretrain'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='transmamba.SafeCheckpointHook', interval=1, max_keep_ckpts=2
    ),
    # Stops at the first loss that is not finite.
    finite=dict(type='transmamba.FiniteHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
    # A run killed at any moment resumes to the same weights.
    epoch_seed=dict(type='transmamba.EpochSeedHook'),
    # An EMA may start from an officially released file.
    bare_file=dict(type='transmamba.BareFileHook'),
    # Keeps the time of a distillation that changes; idle otherwise.
    distill_schedule=dict(type='transmamba.DistillScheduleHook'),
    # Classes, labels and options, before the first iteration.
    precheck=dict(type='transmamba.PreCheckHook'),
    # Checks losses that set in later before the first step, then logs
    # similarities and weights; idle without a distiller.
    distill_monitor=dict(type='transmamba.DistillMonitor', interval=100),
    # Logs how many captions a retriever has seen; idle otherwise.
    captions_seen=dict(type='transmamba.CaptionsSeenHook'),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)

log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0, deterministic=False)
