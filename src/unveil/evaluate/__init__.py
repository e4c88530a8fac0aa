"""Evaluation of encoders: features, k-NN and linear accuracy, held-out metrics, collapse."""
