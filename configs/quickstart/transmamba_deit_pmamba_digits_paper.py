"""TransMamba of the paper: adaptive bidirectional distillation.

Run after ``deit_digits.py``::

    python tools/train.py \
        configs/quickstart/transmamba_deit_pmamba_digits_paper.py

Expect 89 to 92 % top-1 (means over seeds on three processors, ``make
quickstart``), no more than subcloning alone.
"""

_base_ = [
    './transmamba_deit_pmamba_digits.py',
    '../_base_/methods/transmamba_paper.py',
]

model = _base_.transmamba_paper
optim_wrapper = dict(optimizer=dict(lr=2e-3))
