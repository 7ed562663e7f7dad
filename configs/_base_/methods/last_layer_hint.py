"""The teacher's final tokens, by a linear map (FitNets, arXiv 1412.6550)."""

last_layer_hint = dict(type='transmamba.LastLayerHint', loss_weight=1.0)
