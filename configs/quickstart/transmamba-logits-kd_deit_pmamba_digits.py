"""TransMamba with mmrazor's logits distillation beside it.

Run after ``deit_digits.py``::

    python tools/train.py \
        configs/quickstart/transmamba-logits-kd_deit_pmamba_digits.py

Expect 92 to 94 % top-1 (means over seeds on three processors, ``make
quickstart``).
"""

_base_ = './transmamba_deit_pmamba_digits.py'

# mmrazor's logits distillation beside ours, with its own weight.
model = dict(
    distiller=dict(
        student_recorders=dict(
            logits=dict(type='mmrazor.ModuleOutputs', source='head.fc')
        ),
        teacher_recorders=dict(
            logits=dict(
                type='mmrazor.ModuleOutputs', source='head.layers.head'
            )
        ),
        distill_losses=dict(
            loss_kl=dict(type='mmrazor.KLDivergence', tau=2.0)
        ),
        loss_forward_mappings=dict(
            loss_kl=dict(
                preds_S=dict(recorder='logits', from_student=True),
                preds_T=dict(recorder='logits', from_student=False),
            )
        ),
    )
)
