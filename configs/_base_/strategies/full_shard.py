"""FSDP in bfloat16, for any config: weights, gradients and optimizer shared.

Weights and optimizer stay in float32; the layers are gathered in bfloat16.
"""

runner_type = 'transmamba.StagedRunner'
strategy = dict(
    type='transmamba.FullyShardStrategy',
    mixed_precision=dict(param_dtype='bfloat16', reduce_dtype='float32'),
)
