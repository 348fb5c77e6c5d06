"""The version: ``python -m mmvae_jax --version``."""

import argparse

from mmvae_jax import __version__


def main() -> None:
    """Prints the version or the help."""
    parser = argparse.ArgumentParser(
        prog="python -m mmvae_jax",
        description="Multimodal VAEs in JAX. In Python: mmvae_jax.fit, load, embed, "
        "impute, generate, score, export. Commands are in a checkout: "
        "python -m experiments.run, and others in docs/commands.md.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args()
    parser.print_help()


if __name__ == "__main__":
    main()
