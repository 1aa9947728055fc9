"""The refinement of labels: splits, agreement, judgement, selection, and the data that evaluator and DPO learn from.

Numpy and plain Python only, never JAX: models reach these modules as functions that answer, score or grade.
From: the ILR paper (arXiv 2501.07886).
"""
