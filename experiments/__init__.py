"""Entry points, run from a checkout: ``python -m experiments.run``."""

import sys

try:
    import jax  # noqa: F401 (must read the environment, JAX_*, first)
except ValueError as error:
    print(f"error: {error}: correct or unset it", file=sys.stderr)
    sys.exit(2)
