"""Stage two as it measured best: mixers first, then hidden states and logits.

At first every mixer learns by itself what the paired attention layer does, on
what the teacher's layers read, at four times the learning rate. Then all of
the student learns from labels, soft logits and the hidden states of the paired
layers. A narrower student is compared with the channels that subcloning gave
it. Values of the model; another file of this folder in place of this one makes
it another recipe::

    model = dict(..., **_base_.transmamba)

Twelve layers need the mixers' turn, some hundred steps of it
(``model.distiller.phases.0.end``); four are better without. Learning rate:
search one to four times the one that is best without a teacher.
"""


def _recipe(mixers_first, logits='LogitsKD'):
    methods = [
        dict(type='transmamba.HiddenStates'),
        dict(type=f'transmamba.{logits}', tau=2.0, in_alpha=True),
    ]
    phases = []
    if mixers_first:
        methods.insert(0, dict(type='transmamba.MixerMatching'))
        phases.append(
            dict(
                end=mixers_first,
                methods=['mixer'],
                trains='mixers',
                task_loss=False,
                lr_mult=4.0,
            )
        )
    return dict(
        alpha=0.3,
        distiller=dict(
            type='transmamba.MethodDistiller', methods=methods, phases=phases
        ),
    )


transmamba = _recipe(mixers_first=0.25)
# For hundreds of epochs; not measured.
transmamba_long = _recipe(mixers_first=0.05)
# For students of few layers.
transmamba_shallow = _recipe(mixers_first=None)
# For models that answer questions; the length of the mixers' turn is not
# measured.
transmamba_answers = _recipe(mixers_first=0.05, logits='AnswerLogitsKD')
# The same without that turn, for engines that have no phases (DeepSpeed).
transmamba_answers_joint = _recipe(mixers_first=None, logits='AnswerLogitsKD')
