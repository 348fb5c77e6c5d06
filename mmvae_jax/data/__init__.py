"""Data sets in memory: loading, reducing, and batches."""
