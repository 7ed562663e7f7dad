"""The final patch tokens, by a neck that the student keeps (Lift).

For students narrower than their teacher, see docs/guides/distillation.md;
published in arXiv 2511.15572.
"""

lifted_tokens = dict(
    type='transmamba.LastLayerHint', lifted=True, name='lifted'
)
