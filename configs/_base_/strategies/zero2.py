"""DeepSpeed ZeRO-2 in bfloat16: gradients and optimizer shared.

DeepSpeed, which MMEngine needs older than 0.19, is not among the requirements.
A config beside this one has ``optim_wrapper`` of the type
``DeepSpeedOptimWrapper``, without ``clip_grad``: see ``docs/guides/scale.md``.
"""

runner_type = 'transmamba.StagedRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    bf16=dict(enabled=True),
    zero_optimization=dict(
        stage=2, overlap_comm=True, contiguous_gradients=True
    ),
    inputs_to_half=['inputs'],
)
