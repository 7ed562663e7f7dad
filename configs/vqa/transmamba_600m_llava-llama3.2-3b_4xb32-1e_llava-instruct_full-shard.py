"""Trans-LLaVA, student and teacher shared among the GPUs by FSDP.

To run it on 4 GPUs, after the teacher::

    NAME=transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct_full-shard
    bash tools/dist_train.sh configs/vqa/$NAME.py 4

All else is that of the config without ``_full-shard``. We have not run it.
"""

_base_ = [
    './transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct.py',
    '../_base_/strategies/full_shard.py',
]
