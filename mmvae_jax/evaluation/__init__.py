"""Evaluation of a trained model: judges, metrics, samples and pictures."""
