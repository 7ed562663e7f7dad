"""Adaptive bidirectional distillation against the teacher's last layer.

Fits every student of transmamba_mm and every ViT of mmpretrain: directions,
scan orders, layers and widths are read from the models.
"""

distiller = dict(
    type='mmrazor.ConfigurableDistiller',
    student_recorders=dict(taps=dict(type='transmamba.DirectionTaps')),
    teacher_recorders=dict(
        tokens=dict(type='transmamba.PatchTokens', source=r'backbone\.ln1')
    ),
    connectors=dict(calibration=dict(type='transmamba.FeatureCalibration')),
    distill_losses=dict(
        loss_transmamba=dict(
            type='transmamba.AdaptiveBidirectionalDistill',
            tau=0.1,
            teacher_layers='last',
        )
    ),
    loss_forward_mappings=dict(
        loss_transmamba=dict(
            student=dict(
                recorder='taps', from_student=True, connector='calibration'
            ),
            teacher=dict(recorder='tokens', from_student=False),
        )
    ),
)
