"""Z-scored soft logits (Sun et al., CVPR 2024, arXiv 2403.01427)."""

standardised_logits_kd = dict(type='transmamba.StandardisedLogitsKD')
