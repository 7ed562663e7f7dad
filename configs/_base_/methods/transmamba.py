"""Stage two as it measured best: mixers first, then hidden states and logits.

At first every mixer learns by itself what the paired attention layer does, on
what the teacher's layers read, at four times the learning rate. Then all of
the student learns from labels, soft logits and the hidden states of the paired
layers. A narrower student is compared with the channels that subcloning gave
it. Values of the model; another file of this folder in place of this one makes
it another recipe::

    model = dict(..., **_base_.transmamba)

The mixers need some hundred steps: 25 % of a short training, less of a long
one (``model.distiller.phases.0.end``). Learning rate: search one to four times
the one that is best without a teacher.
"""


def _recipe(warm_up):
    return dict(
        alpha=0.3,
        distiller=dict(
            type='transmamba.MethodDistiller',
            methods=[
                dict(type='transmamba.MixerMatching'),
                dict(type='transmamba.HiddenStates'),
                dict(type='transmamba.LogitsKD', tau=2.0, in_alpha=True),
            ],
            phases=[
                dict(
                    end=warm_up,
                    methods=['mixer'],
                    trains='mixers',
                    task_loss=False,
                    lr_mult=4.0,
                )
            ],
        ),
    )


transmamba = _recipe(warm_up=0.25)
# For hundreds of epochs; not measured.
transmamba_long = _recipe(warm_up=0.05)
