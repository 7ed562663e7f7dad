"""TransMamba with mmrazor's logits distillation beside it.

Run after ``deit_digits.py``::

    python tools/train.py \
        configs/quickstart/transmamba-logits-kd_deit_pmamba_digits.py

Expect 92 to 94 % top-1 (means over seeds on three processors, ``make
quickstart``).
"""

_base_ = [
    './transmamba_deit_pmamba_digits.py',
    '../_base_/methods/logits_kd.py',
]

# Logits distillation beside ours, with its own weight.
model = dict(
    distiller=dict(methods=[_base_.transmamba, _base_.logits_kd]),
)
