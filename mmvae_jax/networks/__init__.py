"""Linen encoders, decoders and classifiers, and tables of their names.

An encoder maps x [B, ...] to a Gaussian [B, D]; a decoder maps z [B, D] to the
parameters of a likelihood [B, *shape]. Images are square and in [0, 1]. Tokens are
int32 [B, T], and their likelihood's parameters are logits [B, T, V].

The attribute `form` of a network says how its convolutions are executed: one of
`layers.FORMS`. It is a field of networks with layers of `layers`, and "lax" for
networks with Linen's convolutions.

The networks of `flows` map latents and a time to a velocity.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.networks import images, layered, layers, text, vectors
from mmvae_jax.types import Array, Shape, TokenShape

IMAGES, TOKENS, EVERYTHING = "square images", "tokens", "everything"


class Network(NamedTuple):
    """The networks of one modality.

    Attributes:
      encoder: Linen module, x [B, ...] -> Gaussian [B, D].
      decoder: Linen module, z [B, D] -> parameters of a likelihood [B, *shape].
      takes: kind of examples: IMAGES, TOKENS or EVERYTHING.
      is_up_to_eos: whether tokens after the first <eos> are ignored.
      latent_shape: (encoder, shape of one example) -> shape of a latent vector; raises
        ValueError if the latent dimensions do not fit it.
    """

    encoder: Any
    decoder: Any
    takes: str = EVERYTHING
    is_up_to_eos: bool = False
    latent_shape: Callable[[Any, Shape], Shape] = lambda e, shape: (e.latent_dim,)


NETWORKS = {
    "conv": Network(images.ConvEncoder, images.ConvDecoder, IMAGES),
    "resnet": Network(images.ResNetEncoder, images.ResNetDecoder, IMAGES),
    "spatial": Network(
        images.SpatialEncoder,
        images.SpatialDecoder,
        IMAGES,
        latent_shape=images.latent_shape,
    ),
    "mlp": Network(vectors.MLPEncoder, vectors.MLPDecoder),
    "layered": Network(vectors.MLPEncoder, layered.LayeredDecoder, IMAGES),
    "text_conv": Network(text.TextConvEncoder, text.TextConvDecoder, TOKENS),
    "transformer": Network(
        text.TransformerEncoder,
        text.TransformerDecoder,
        TOKENS,
        is_up_to_eos=True,
    ),
}
CLASSIFIERS = {
    "conv": images.ConvClassifier,
    "resnet": images.ResNetClassifier,
    "mlp": vectors.MLPClassifier,
}


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
      **options: fields of the modules (channels, widths, form, ...), for each module
        that has them.

    Raises:
      UsageError: the network or one of its options is unknown or invalid, or the
        network is not for such examples.
    """
    if network not in NETWORKS:
        raise UsageError(
            f"unknown network {network!r}; choose one of {', '.join(NETWORKS)}"
        )
    row = NETWORKS[network]
    is_square = len(shape) == 3 and shape[0] == shape[1]
    kind = TOKENS if isinstance(shape, TokenShape) else IMAGES if is_square else ""
    fitting = [x for x, own in NETWORKS.items() if own.takes in (EVERYTHING, kind)]
    if network not in fitting:
        raise UsageError(
            f"network {network!r} is for {row.takes}, got shape {shape}; choose one of "
            f"{', '.join(fitting)}"
        )
    if options.get("form", "matmul") not in layers.FORMS:
        raise UsageError(
            f"unknown network_options.form {options['form']!r}; choose one of "
            f"{', '.join(layers.FORMS)}"
        )
    fields = {
        f.name: f
        for module in (row.decoder, row.encoder)
        for f in dataclasses.fields(module)
    }
    sizes = []  # options that are numbers of units, layers or pixels
    for name in options.keys() & fields:
        if not isinstance(fields[name].default, int | tuple):
            continue
        is_tuple = isinstance(fields[name].default, tuple)
        if is_tuple != isinstance(options[name], tuple | list):
            raise UsageError(
                f"network {network!r}: network_options.{name} must be "
                f"{'a tuple' if is_tuple else 'a whole number'} like "
                f"{fields[name].default}, got {options[name]!r}"
            )
        sizes += jax.tree.leaves(options[name])
    if any(not isinstance(n, int) or n < 1 for n in sizes):
        raise UsageError(f"network {network!r}: layers need >= 1 unit, got {sizes}")
    own = {"num_words": shape.num_words} if isinstance(shape, TokenShape) else {}

    def for_module(module: Any) -> dict[str, Any]:
        # An option that neither module has is refused by both.
        others = fields.keys() - {f.name for f in dataclasses.fields(module)}
        return {name: x for name, x in options.items() if name not in others}

    try:
        encoder = row.encoder(latent_dim=latent_dim, **own, **for_module(row.encoder))
        decoder = row.decoder(shape=tuple(shape), **for_module(row.decoder))
        row.latent_shape(encoder, shape)
    except (TypeError, ValueError) as error:
        raise UsageError(f"network {network!r}: {error}") from error
    return encoder, decoder


def in_parts(module: nn.Module, parts: tuple[int, ...]) -> nn.Module:
    """An encoder or decoder of latent vectors in parts of these dimensions.

    Networks without a place for each latent dimension do not tell parts apart.
    """
    return module.clone(parts=parts) if hasattr(module, "parts") else module
