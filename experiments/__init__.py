"""Entry points, run from a checkout: ``python -m experiments.run``."""
