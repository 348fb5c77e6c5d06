"""Entry points, run from a checkout: ``python -m experiments.run``."""

import sys

try:
    import jax  # noqa: F401 (it reads the environment, JAX_*, before all else)
except ValueError as error:
    print(f"error: {error}: correct or unset it", file=sys.stderr)
    sys.exit(2)
