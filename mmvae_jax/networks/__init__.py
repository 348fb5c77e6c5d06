"""Linen encoders, decoders and classifiers, and tables of their names.

An encoder maps x [B, ...] to a Gaussian [B, D]; a decoder maps z [B, D] to the
parameters of a likelihood [B, *shape]. Images are square and in [0, 1]. Tokens are
int32 [B, T], and their likelihood's parameters are logits [B, T, V].

The attribute `form` of a network says how its convolutions are executed: one of
`layers.FORMS`. It is a field of networks with layers of `layers`, and "lax" for
networks with Linen's convolutions.

The networks of `flows` map latents and a time to a velocity.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.networks import images, layered, layers, text, vectors
from mmvae_jax.networks.text import TextConvDecoder, TransformerDecoder
from mmvae_jax.types import Array, Shape, TokenShape

NETWORKS = {
    "conv": (images.ConvEncoder, images.ConvDecoder),
    "resnet": (images.ResNetEncoder, images.ResNetDecoder),
    "spatial": (images.SpatialEncoder, images.SpatialDecoder),
    "mlp": (vectors.MLPEncoder, vectors.MLPDecoder),
    "layered": (vectors.MLPEncoder, layered.LayeredDecoder),
    "text_conv": (text.TextConvEncoder, TextConvDecoder),
    "transformer": (text.TransformerEncoder, TransformerDecoder),
}
CLASSIFIERS = {
    "conv": images.ConvClassifier,
    "resnet": images.ResNetClassifier,
    "mlp": vectors.MLPClassifier,
}
FOR_TOKENS = ("text_conv", "transformer", "mlp")
UP_TO_EOS = ("transformer",)  # networks that ignore tokens after the first <eos>
FOR_IMAGES = ("conv", "resnet", "spatial", "layered")
# Options that are numbers of units, layers or pixels.
_SIZES = ("width", "max_width", "min_size", "depth", "num_heads")


def blank(shape: Shape, num: int = 1) -> Array:
    """`num` examples of this shape, all zeros; int32 [num, T] for a TokenShape."""
    if isinstance(shape, TokenShape):
        return jnp.zeros((num, shape.length), jnp.int32)
    return jnp.zeros((num, *shape))


def make_classifier(name: str, shape: Shape, num_outputs: int) -> nn.Module:
    """The classifier `name`, a key of CLASSIFIERS, for examples of this shape.

    Raises:
      ArgumentError: the name is unknown.
    """
    if name not in CLASSIFIERS:
        known = ", ".join(CLASSIFIERS)
        raise ArgumentError("unknown {network} {!r}; choose one of {}", name, known)
    options = {"num_words": shape.num_words} if isinstance(shape, TokenShape) else {}
    return CLASSIFIERS[name](num_outputs, **options)


def latent_shape(encoder: nn.Module, shape: Shape, latent_dim: int) -> Shape:
    """Shape of a latent vector: (H', H', c) of a spatial encoder, else (D,).

    Args:
      encoder: result of `make_networks`.
      shape: shape of one example.
      latent_dim: D.
    """
    if not isinstance(encoder, images.SpatialEncoder):
        return (latent_dim,)
    places = images.num_places(shape[0], encoder.channels)
    side = math.isqrt(places)
    return (side, side, latent_dim // places)


def convolution_forms(*modules: nn.Module) -> frozenset[str]:
    """Forms in which networks execute their convolutions on this backend.

    Returns:
      A subset of "matmul", "mixed" and "lax"; empty without convolutions.
    """
    forms: set[str] = set()
    for module in modules:
        if isinstance(module, vectors.PairedEncoder):
            forms |= convolution_forms(module.first, module.second)
        elif isinstance(module, vectors.ParameterDecoder):
            forms |= convolution_forms(module.decoder)
        elif isinstance(module, vectors.MeanEncoder):
            forms |= convolution_forms(module.network)
        elif hasattr(module, "form"):
            forms.add(layers.choose_form(module.form))
    return frozenset(forms)


def make_networks(
    network: str, shape: Shape, latent_dim: int, **options: Any
) -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder of one modality.

    Args:
      network: a key of NETWORKS.
      shape: shape of one example: (H, W, C) for images, a TokenShape for tokens.
      latent_dim: D.
      **options: fields of both modules (channels, widths, form, ...).

    Raises:
      UsageError: the network or one of its options is unknown, or an image is
        not square.
    """
    if network not in NETWORKS:
        raise UsageError(
            f"unknown network {network!r}; choose one of {', '.join(NETWORKS)}"
        )
    is_tokens = isinstance(shape, TokenShape)
    if is_tokens and network not in FOR_TOKENS:
        raise UsageError(
            f"network {network!r} is not for tokens; choose one of "
            f"{', '.join(FOR_TOKENS)}"
        )
    if not is_tokens and network in FOR_TOKENS and network != "mlp":
        raise UsageError(f"network {network!r} is for tokens, got shape {shape}")
    if network in FOR_IMAGES and (len(shape) != 3 or shape[0] != shape[1]):
        raise UsageError(f"network {network!r} needs square images, got shape {shape}")
    if options.get("form", "matmul") not in layers.FORMS:
        raise UsageError(
            f"unknown network_options.form {options['form']!r}; choose one of "
            f"{', '.join(layers.FORMS)}"
        )
    sizes = [n for name in ("widths", "channels") for n in options.get(name, ())]
    sizes += [options[name] for name in _SIZES if name in options]
    if any(not isinstance(n, int) or n < 1 for n in sizes):
        raise UsageError(f"network {network!r}: layers need >= 1 unit, got {sizes}")
    width, num_heads = options.get("width", 128), options.get("num_heads", 4)
    if network == "transformer" and width % num_heads:
        raise UsageError(
            f"network 'transformer': width {width} is no multiple of num_heads "
            f"{num_heads}"
        )
    encoder, decoder = NETWORKS[network]
    own = {"num_words": shape.num_words} if isinstance(shape, TokenShape) else {}
    try:
        made = (
            encoder(latent_dim=latent_dim, **own, **options),
            decoder(shape=tuple(shape), **options),
        )
    except TypeError as error:
        raise UsageError(f"network {network!r}: {error}") from error
    if network == "spatial":
        channels = made[0].channels
        places = images.num_places(shape[0], channels)
        if latent_dim % places:
            raise UsageError(
                f"network 'spatial': the latent dimensions, {latent_dim}, must be a "
                f"multiple of the {places} places that images of {shape[0]} pixels "
                f"have after {len(channels)} convolutions"
            )
    return made
