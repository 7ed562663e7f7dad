"""Soft logits (Hinton et al., arXiv 1503.02531), by mmrazor's own loss."""

logits_kd = dict(type='transmamba.LogitsKD', tau=2.0, loss_weight=1.0)
