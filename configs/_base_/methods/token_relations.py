"""Which tokens resemble which (ViT-Linearizer, arXiv 2504.00037)."""

token_relations = dict(type='transmamba.TokenRelations')
