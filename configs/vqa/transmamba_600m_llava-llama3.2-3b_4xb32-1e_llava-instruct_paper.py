"""Trans-LLaVA with the paper's stage two.

To run it on 4 GPUs, after the teacher::

    NAME=transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct_paper
    bash tools/dist_train.sh configs/vqa/$NAME.py 4

Adaptive bidirectional distillation (Eq. 4 to 11), of which a causal student
has the forward direction alone: the last tokens of the teacher, 3,072 wide,
against each layer's through an MLP; the paper gives no alpha and no tau. All
else is that of the config without ``_paper``. We have not run it.
"""

_base_ = [
    './transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct.py',
    '../_base_/methods/transmamba_paper.py',
]

model = _base_.transmamba_paper
