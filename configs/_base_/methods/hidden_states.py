"""The residual stream after each layer, against that of the paired layer."""

hidden_states = dict(
    type='transmamba.HiddenStates', layer_map='uniform', loss_weight=1.0
)
