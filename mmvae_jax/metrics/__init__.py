"""Evaluation metrics, one file each; none imports another part's internals."""
