"""Each mixer's output against the paired layer's attention output.

Teacher-forced: the mixers run on what the teacher's layers read, and the
student as a whole need not run for it. For a warm-up of the mixers name it in
a phase that trains nothing else::

    distiller=dict(
        methods=[_base_.mixer_matching, ...],
        phases=[
            dict(end=0.06, methods=['mixer'], trains='mixers', task_loss=False)
        ],
    )
"""

mixer_matching = dict(
    type='transmamba.MixerMatching', teacher_forced=True, loss_weight=1.0
)
