"""Stage two as it measured best: mixers first, then hidden states and logits.

For a share of the training every mixer learns by itself what the paired
attention layer does, on what the teacher's layers read. Then all of the
student learns from labels, soft logits and the hidden states of the paired
layers. A narrower student is compared with the channels that subcloning gave
it. Values of the model; with another file of this folder in place of this one
it is another recipe::

    model = dict(..., **_base_.transmamba)

Learning rate: search one to four times the one that is best without a
teacher.
"""

_warm_up = 0.25

transmamba = dict(
    alpha=0.3,
    distiller=dict(
        type='transmamba.MethodDistiller',
        methods=[
            dict(type='transmamba.MixerMatching', end=_warm_up),
            dict(type='transmamba.HiddenStates', begin=_warm_up),
            dict(
                type='transmamba.LogitsKD',
                tau=2.0,
                in_alpha=True,
                begin=_warm_up,
            ),
        ],
        phases=[
            dict(end=_warm_up, trains='mixers', task_loss=False, lr_mult=4.0)
        ],
    ),
)
