"""The teacher's decision as a label (DeiT, arXiv 2012.12877).

With the algorithm's ``alpha=0.5`` task loss and distillation count one half
each, as DeiT's.
"""

hard_label = dict(type='transmamba.HardLabel', in_alpha=True)
