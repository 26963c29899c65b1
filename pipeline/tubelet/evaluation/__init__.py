"""Inference rows and the truth: metrics, their figures, ablations."""
