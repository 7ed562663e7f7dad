"""Soft logits of answers' tokens, in chunks (for language models)."""

answer_logits_kd = dict(type='transmamba.AnswerLogitsKD', tau=2.0)
