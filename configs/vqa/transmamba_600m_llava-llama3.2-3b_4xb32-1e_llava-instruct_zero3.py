"""Trans-LLaVA with DeepSpeed's ZeRO-3.

To run it on 4 GPUs, after the teacher::

    NAME=transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct_zero3
    bash tools/dist_train.sh configs/vqa/$NAME.py 4

Without the mixers' turn, as DeepSpeed has no phases in which some parameters
rest. All else is that of the config without ``_zero3``. We have not run it.
"""

_base_ = [
    './transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct.py',
    '../_base_/strategies/zero3.py',
]

model = dict(distiller=_base_.transmamba_answers_joint.distiller)
# Gradients are clipped by DeepSpeed.
strategy = dict(gradient_clipping=1.0)
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    optimizer=_base_.optim_wrapper.optimizer,
    constructor=_base_.optim_wrapper.constructor,
    paramwise_cfg=_base_.optim_wrapper.paramwise_cfg,
)
