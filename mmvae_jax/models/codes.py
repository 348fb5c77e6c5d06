"""A code of the information that modalities share, by contrastive learning.

The code e_m of a modality is a unit vector, the output of a separate encoder. The
objective is the contrast of all pairs of modalities,

    sum_m 1 / (M - 1) sum_{n != m} log C(e_m, e_n),

log C(a, b) = log softmax of t <a_i, b_j> over the examples j of the batch, at j = i,
with a learned t (InfoNCE; van den Oord et al., 2018).
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax import networks
from mmvae_jax.mathematics import elbo
from mmvae_jax.models import parts
from mmvae_jax.models.options import Options, number, one_of
from mmvae_jax.types import AnyArray, Array, Batch, Params, PRNGKey, Stage

AUTO = "auto"
# Initial logit scale t of a pair of modalities; cosines are in [-1, 1].
INITIAL_SCALE = 5.0

# Options of models that train the code in a separate stage.
OPTIONS: Options = {
    "code_dim": number(16, 2),  # c
    # Encoder of the code: "auto" is "conv" for images and "mlp" for others.
    "code_network": one_of(AUTO, *networks.CLASSIFIERS),
}


def code_networks(name: str, nets: parts.Networks, code_dim: int) -> dict[str, Any]:
    """Modality -> the encoder of its code, a Linen classifier of `code_dim` outputs.

    Args:
      name: one of networks.CLASSIFIERS, or AUTO: "conv" for images, else "mlp".
      nets: networks of all modalities.
      code_dim: c.
    """

    def own(m: str) -> str:
        return name if name != AUTO else "conv" if is_image(nets, m) else "mlp"

    return {
        m: networks.make_classifier(own(m), shape, code_dim)
        for m, shape in nets.shapes.items()
    }


def is_image(nets: parts.Networks, modality: str) -> bool:
    """Whether the examples of a modality are images."""
    return len(nets.shapes[modality]) == 3 and modality not in nets.counts


def centred(nets: parts.Networks, batch: Batch) -> Batch:
    """Scales images to [-1, 1].

    With images in [0, 1], the contrast may never leave its initial plateau.
    """
    images = [m for m in nets.shapes if is_image(nets, m)]
    return dict(batch) | {m: 2.0 * batch[m] - 1.0 for m in images}


def init(nets: parts.Networks, coders: Mapping[str, Any], key: PRNGKey) -> Params:
    """The entry `code` of the parameters: encoders, and log t."""
    keys = jax.random.split(key, len(coders))
    encoders = {
        m: coder.init(own_key, networks.blank(nets.shapes[m]))
        for own_key, (m, coder) in zip(keys, coders.items(), strict=True)
    }
    return {"encoders": encoders, "log_scale": jnp.full(1, math.log(INITIAL_SCALE))}


def encode(
    nets: parts.Networks, coders: Mapping[str, Any], params: Params, batch: Batch
) -> Array:
    """The codes [M, B, c], of length one; zeros for missing modalities."""
    seen, codes = centred(nets, batch), []
    for m, coder in coders.items():
        x = jnp.log1p(seen[m]) if m in nets.counts else jnp.asarray(seen[m])
        codes.append(unit(coder.apply(params["code"]["encoders"][m], x)[1]))
    observed = jnp.asarray(elbo.observed_of(batch, len(coders)))
    return jnp.where(observed[..., None], jnp.stack(codes), 0.0)


def stage(
    nets: parts.Networks, coders: Mapping[str, Any], end: Callable[[int], int]
) -> Stage:
    """The stage of the code; `end`: steps of the run -> last step of the stage."""
    return Stage(
        "code",
        end,
        partial(objective, nets, coders),
        ("code",),
        learning_rate=lambda step, steps: jnp.float32(0.5),
        has_beta=False,
    )


def objective(
    nets: parts.Networks,
    coders: Mapping[str, Any],
    params: Params,
    batch: Batch,
    key: PRNGKey,
    beta: Array,
) -> tuple[Array, dict[str, Array]]:
    """The contrast of all pairs of modalities, as the objective of a stage."""
    del key, beta  # no noise and no KL term
    observed = elbo.observed_of(batch, len(coders))
    scale = jnp.exp(params["code"]["log_scale"])
    gain = jnp.mean(contrast(encode(nets, coders, params, batch), scale, observed))
    return -gain, {"contrast": gain}


def contrast(codes: Array, scale: Array, observed: AnyArray) -> Array:
    """sum_m 1 / (M - 1) sum_{n != m} log C(e_m, e_n).

    The sums are over the observed modalities of an example, and M is their number. The
    negatives are the codes of all examples that have modality n.

    Args:
      codes: [M, B, d], of length one.
      scale: t, float [] or [1].
      observed: bool [M, 1 or B].

    Returns:
      float [B], nats.
    """
    logits = scale * jnp.einsum("mbd,ncd->mnbc", codes, codes)
    logits = jnp.where(observed[None, :, None, :], logits, -jnp.inf)
    is_other = ~np.eye(len(codes), dtype=bool)[..., None]
    is_pair = is_other & observed[:, None] & observed[None]
    # A row of only -inf would have the derivative NaN, even if it does not count.
    logits = jnp.where(is_pair[..., None], logits, 0.0)
    total = jnp.sum(jnp.where(is_pair, log_match(logits), 0.0), axis=(0, 1))
    shares = np.append(1.0, 1 / np.arange(1, max(len(codes), 2))).astype(np.float32)
    return jnp.asarray(shares)[jnp.sum(observed, axis=0) - 1] * total


def log_match(logits: Array) -> Array:
    """Log-softmax of the rows, on the diagonal: [..., B, B] -> [..., B]."""
    return jnp.diagonal(jax.nn.log_softmax(logits, axis=-1), axis1=-2, axis2=-1)


def unit(x: Array) -> Array:
    """Normalises vectors to length one."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
