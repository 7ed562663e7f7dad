"""The teacher, stage two of LLaVA, shared among the GPUs by FSDP.

To run it on 8 GPUs, after stage one::

    NAME=llava-llama3.2-3b_8xb16-1e_llava-instruct_full-shard
    bash tools/dist_train.sh configs/vqa/$NAME.py 8

All else is that of the config without ``_full-shard``. We have not run it.
"""

_base_ = [
    './llava-llama3.2-3b_8xb16-1e_llava-instruct.py',
    '../_base_/strategies/full_shard.py',
]
