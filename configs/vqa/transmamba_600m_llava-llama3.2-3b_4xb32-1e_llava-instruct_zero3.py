"""Trans-LLaVA with DeepSpeed's ZeRO-3.

To run it on 4 GPUs, after the teacher::

    NAME=transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct_zero3
    bash tools/dist_train.sh configs/vqa/$NAME.py 4

All else is that of the config with ``_zero2``. We have not run it.
"""

_base_ = './transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct_zero2.py'

strategy = dict(zero_optimization=dict(stage=3))
