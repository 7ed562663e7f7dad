"""Similarities of a retrieval teacher (TeachCLIP's idea, CVPR 2024)."""

similarity = dict(type='transmamba.SimilarityDistill', tau=1.0)
