"""The residual stream after the last layer (FitNets, arXiv 1412.6550)."""

last_layer_hint = dict(type='transmamba.LastLayerHint', normalised=False)
