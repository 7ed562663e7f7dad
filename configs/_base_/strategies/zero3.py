"""DeepSpeed ZeRO-3 in bfloat16: as ZeRO-2, and weights shared as well."""

_base_ = './zero2.py'

strategy = dict(zero_optimization=dict(stage=3))
