"""DeepSpeed ZeRO-3 in bfloat16: weights, gradients and optimizer shared.

DeepSpeed is not among the requirements, and we have not run this.
"""

runner_type = 'transmamba.StagedRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    bf16=dict(enabled=True),
    zero_optimization=dict(
        stage=3, overlap_comm=True, contiguous_gradients=True
    ),
    inputs_to_half=['inputs'],
)
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
