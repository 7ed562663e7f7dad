"""Exits of each stage in logit space (One-for-All, arXiv 2310.19444)."""

one_for_all = dict(type='transmamba.OneForAll', gamma=1.0, tau=1.0)
