"""All fields of a config, which `mmvae_jax/interface/settings.py` documents.

The other configs start from `get_config` and change some fields. Override a field on
the command line, for instance ``--config.sweep.beta="(0.3,1.,3.)"`` or
``--config.model.options.alpha=0.5``.
"""

from mmvae_jax.interface.settings import get_config, parse_arg

__all__ = ["get_config", "parse_arg"]
