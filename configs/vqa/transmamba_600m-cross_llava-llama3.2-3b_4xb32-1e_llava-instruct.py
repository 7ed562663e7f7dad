"""Trans-LLaVA with Cross-Mamba in every fourth layer.

To run it on 4 GPUs, after the teacher::

    NAME=transmamba_600m-cross_llava-llama3.2-3b_4xb32-1e_llava-instruct
    bash tools/dist_train.sh configs/vqa/$NAME.py 4

In those layers only tokens of images write into the state and all read it, so
that long text cannot overwrite an image. TransMamba does not say which layers
are of this kind. Mixers that run alone would not know the images, so there is
no turn of theirs. All else is that of the config without ``-cross``, the
number of parameters too. We have not run it.
"""

_base_ = './transmamba_600m_llava-llama3.2-3b_4xb32-1e_llava-instruct.py'

model = dict(
    architecture=dict(lang_encoder=dict(cross_layers=(3, 7, 11, 15))),
    distiller=_base_.transmamba_answers_joint.distiller,
)
