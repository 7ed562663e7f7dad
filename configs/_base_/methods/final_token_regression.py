"""The final patch tokens, by a linear map (GTR, arXiv 2609.26590)."""

final_token_regression = dict(
    type='transmamba.LastLayerHint', normalised=True, name='final_tokens'
)
