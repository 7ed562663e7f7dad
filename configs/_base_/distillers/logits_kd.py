"""Plain logits distillation (Hinton et al.) with mmrazor's own loss."""

distiller = dict(
    type='mmrazor.ConfigurableDistiller',
    student_recorders=dict(
        logits=dict(type='mmrazor.ModuleOutputs', source='head.fc')
    ),
    teacher_recorders=dict(
        logits=dict(type='mmrazor.ModuleOutputs', source='head.layers.head')
    ),
    distill_losses=dict(
        loss_kl=dict(type='mmrazor.KLDivergence', tau=2.0, loss_weight=1.0)
    ),
    loss_forward_mappings=dict(
        loss_kl=dict(
            preds_S=dict(recorder='logits', from_student=True),
            preds_T=dict(recorder='logits', from_student=False),
        )
    ),
)
