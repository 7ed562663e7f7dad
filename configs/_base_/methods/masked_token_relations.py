"""Relations of visible tokens, masked ones predicted (arXiv 2504.00037).

ViT-Linearizer's pre-training has no labels: the distiller's
``phases=[dict(end=1.0, task_loss=False)]`` leave them out. The student runs
twice a step.
"""

masked_token_relations = dict(
    type='transmamba.MaskedTokenRelations',
    mask_ratio=0.75,
    prediction_weight=1.0,
)
