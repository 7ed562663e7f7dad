"""B and C of each scan against keys and queries (CAB, arXiv 2510.19266).

With the authors' weight. They have no labels but soft logits beside it: list
``dict(_base_.logits_kd, tau=1.0, in_alpha=True)`` as well, with ``alpha=0``.
"""

attention_bridge = dict(type='transmamba.AttentionBridge', loss_weight=3.0)
