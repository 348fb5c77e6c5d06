"""Every field of a config: `mmvae_jax/interface/settings.py` has them all.

The other configs start from `get_config` and change what differs. Override a
field on the command line, for instance ``--config.sweep.beta="(0.3,1.,3.)"`` or
``--config.model.options.alpha=0.5``.
"""

from mmvae_jax.interface.settings import get_config, parse_arg

__all__ = ["get_config", "parse_arg"]
