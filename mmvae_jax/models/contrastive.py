"""A contrastive shared code, and private latents learned by reconstruction.

No gradient of a reconstruction reaches the shared code.

The code e_m of a modality is a unit vector, and that of a subset the normalised sum of
its codes; with v = code_variance and d dimensions,

    q(s|x_A) = N(sqrt(d (1 - v)) e_A, v I),   e_A = sum_{m in A} e_m / |...|,

p(s) is a learned mixture of Gaussians, or a rectified flow (the option code_prior;
`code_priors`), p(w_m) = N(0, I). The maximised objective, with s a constant in the
first two lines, is

    sum_m E log p(x_m|s, w_m) - beta sum_m KL(q(w_m|x_m)||p(w_m))
    - beta (log q(s|X) - log p(s))
    + sum_m (1 / (M - 1)) sum_{n != m} log C(e_m, e_n)
    + lambda sum_m log C(e_m(x~_m), e_X),   x~_m decoded from s and w ~ p(w),

with the log C(a, b) of `codes`. Lines 1 and 2 are a bound on log p(X) for beta = 1.
Their gradient does not reach the encoders of the code, but the KL terms penalise
private vectors that repeat information of the code. Line 3 learns the code, which can
contain only shared information. Line 4, with weight lambda = consistency, is a lower
bound on the information about the code in an image generated with a private vector of
the prior. Its encoder is a constant: only the decoders learn from it.

With a flow, training replaces log p(s) by minus the loss of the flow's velocity, whose
parameters have an average; the evaluated bound has the density of that average, by the
ODE.

A contrastive code for what is shared beside private vectors was published first in
IDMVAE (Zhang et al., 2026), with what is generated encoded again and contrasted, and a
diffusion as the prior of the latents. There the code also learns from reconstructions,
the KL term is that of MMVAE+ (a mixture of experts), and gradients of the generated
examples reach encoders; private vectors are contrasted too. Here the code learns by
contrast alone, its variance is fixed, and the only posterior of a subset is a sum of
directions.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmvae_jax import networks
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, elbo, posteriors
from mmvae_jax.models import code_priors, latent_flows, parts
from mmvae_jax.models.codes import (
    AUTO,
    INITIAL_SCALE,
    centred,
    code_networks,
    contrast,
    log_match,
    unit,
)
from mmvae_jax.models.options import Option, number, one_of
from mmvae_jax.models.parts import decode, encode, make_networks, standard_latents
from mmvae_jax.models.private import (
    PRIVATE_OPTIONS,
    log_mixture_prob,
    private_model,
    with_mixture_prior,
    with_shared_prior,
)
from mmvae_jax.networks import vectors
from mmvae_jax.types import (
    AnyArray,
    Array,
    Batch,
    Gaussian,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
    PRNGKey,
    Stage,
    TokenShape,
)

# The encoder of the code has the architecture of the private vector's encoder.
_SAME = "same"

# Options of the flow of the code.
_OF_FLOW = ("flow_width", "flow_depth", "ode_steps", "ode_method", "ema")

OPTIONS = PRIVATE_OPTIONS | {
    # Variance of the shared code; its prior has the initial variance 1.
    "code_variance": Option(0.1, lambda x: 0 < x < 1, "{} must be in (0, 1), got {}"),
    # Prior of the code: a learned "mixture" of code_components Gaussians, or a "flow".
    "code_prior": one_of("mixture", "flow"),
    "code_components": number(50, 1),
    **{name: latent_flows.FLOW_OPTIONS[name] for name in _OF_FLOW},
    # Encoder of the code: the "same" architecture as that of the private vector, one of
    # CLASSIFIERS, or "auto" ("conv" for images, "mlp" for others).
    "code_network": one_of(_SAME, AUTO, *networks.CLASSIFIERS),
    # lambda, the weight of the code's reconstruction from generated examples.
    "consistency": number(1.0, 0),
}


def contrastive_model(
    config: Any, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> MultimodalVAE:
    """Model of the equation above: a code s for all modalities, a w_m for each.

    Args:
      config: as for `make_model`; model.latent_dim is d.
      shapes: modality -> shape of one example; two modalities or more.
      options: those of OPTIONS.

    Raises:
      UsageError: a modality has tokens, whose generated examples cannot be encoded.
    """
    _refuse_tokens(shapes)
    size = config.model.latent_dim
    private_size = options["private_dim"] or size
    variance = options["code_variance"]
    nets = make_networks(config, shapes, size, private_size)
    if options["code_network"] != _SAME:
        coders = code_networks(options["code_network"], nets, size)
        nets = nets._replace(
            encoders={
                m: vectors.PairedEncoder(vectors.MeanEncoder(coders[m]), pair.second)
                for m, pair in nets.encoders.items()
            }
        )
    radius, log_variance = math.sqrt(size * (1 - variance)), math.log(variance)

    def around(direction: Array) -> Gaussian:
        return Gaussian(radius * direction, jnp.full_like(direction, log_variance))

    def encode_all(params: Params, batch: Batch) -> Gaussian:
        emitted = encode(nets, params, centred(nets, batch))
        code, private = distributions.split(emitted, size)
        return distributions.join(around(unit(code.mean)), private)

    def shared_posterior(
        key: PRNGKey | None, shared: Gaussian, subset: AnyArray
    ) -> Gaussian:
        del key  # not a mixture
        observed = posteriors.append_axes(jnp.asarray(subset), 3)
        return around(unit(elbo.observed_sum(shared.mean, observed)))

    def posteriors_of(
        params: Params, batch: Batch
    ) -> tuple[Gaussian, Gaussian, Gaussian]:
        shared, private = distributions.split(encode_all(params, batch), size)
        observed = elbo.observed_of(batch, len(shapes))
        return shared, shared_posterior(None, shared, observed), private

    def terms_of(
        params: Params,
        batch: Batch,
        key: PRNGKey,
        log_code_prior: Callable[[Array], Array] | None,
    ) -> ObjectiveTerms:
        return contrastive_terms(
            *posteriors_of(params, batch),
            batch,
            key,
            log_code_prior=log_code_prior,
            log_likelihoods=parts.log_likelihoods(nets, params),
            encode_generated=lambda z: encode_generated(params, z),
            scale=jnp.exp(params["log_scale"]),
            consistency=options["consistency"],
        )

    def encode_generated(params: Params, z: Mapping[str, Array]) -> Array:
        """Codes [M, B, d] of decoded examples, with constant encoders."""
        examples = {m: decode(nets, params, m, own) for m, own in z.items()}
        experts = encode_all(jax.lax.stop_gradient(params), examples)
        return experts.mean[..., :size]

    latents = standard_latents((size + len(shapes) * private_size,))
    base = private_model(nets, latents, size, options["private_draw"], shared_posterior)
    base = base._replace(encode=encode_all)
    if options["code_prior"] == "flow":
        return _with_flow_prior(base, latents, size, options, posteriors_of, terms_of)
    shape = (options["code_components"], size)

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        def log_code_prior(s: Array) -> Array:
            return log_mixture_prob(params["code_prior"], s)

        terms = terms_of(params, batch, key, log_code_prior)
        return elbo.loss(terms, beta), terms

    def init(key: PRNGKey) -> Params:
        own_key, prior_key = jax.random.split(key)
        code_prior = {
            "mean": jax.random.normal(prior_key, shape),
            "log_variance": jnp.zeros(shape),
            "log_weight": jnp.zeros(shape[0]),
        }
        return base.init(own_key) | {"code_prior": code_prior} | _initial_scale()

    return with_mixture_prior(base, latents, size, "code_prior")._replace(
        init=init, objective=objective
    )


def _initial_scale() -> Params:
    """The entry of the parameters for t."""
    return {"log_scale": jnp.full(1, math.log(INITIAL_SCALE))}


def _with_flow_prior(
    base: MultimodalVAE,
    latents: parts.Latents,
    size: int,
    options: Mapping[str, Any],
    posteriors_of: Callable[..., tuple[Gaussian, Gaussian, Gaussian]],
    terms_of: Callable[..., ObjectiveTerms],
) -> MultimodalVAE:
    """The model with a flow as p(s), trained with all else in a single stage.

    Args:
      base: the model without p(s) and an objective.
      latents: latents of `base`.
      size: d.
      options: those of OPTIONS.
      posteriors_of: (params, batch) -> (q(s|x_m), q(s|X), q(w_m|x_m)).
      terms_of: (params, batch, key, log p(s) or None) -> `contrastive_terms`.
    """
    prior = code_priors.make(options, size)

    def log_prob(params: Params, s: Array, key: PRNGKey) -> Array:
        return code_priors.log_prob(prior, params["code_prior_average"], s, key)

    def init(key: PRNGKey) -> Params:
        own_key, prior_key = jax.random.split(key)
        velocity = code_priors.init(prior, prior_key)
        flow = {"code_prior": velocity, "code_prior_average": velocity}
        return base.init(own_key) | flow | _initial_scale()

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        own_key, sign_key = jax.random.split(key)
        log_code_prior = partial(log_prob, params, key=sign_key)
        terms = terms_of(params, batch, own_key, log_code_prior)
        return elbo.loss(terms, beta), terms

    def trained(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, dict[str, Array]]:
        own_key, code_key, *keys = jax.random.split(key, 4)
        terms = terms_of(params, batch, own_key, None)
        loss, gain = elbo.loss(terms, beta), jnp.mean(terms.auxiliary_log_likelihood)
        s = distributions.sample(posteriors_of(params, batch)[1], code_key)
        flow = jnp.mean(code_priors.loss(prior, params["code_prior"], s, *keys))
        return loss + flow, {"vae": loss + gain, "contrast": gain, "prior_flow": flow}

    stage = Stage(
        "all",
        lambda steps: steps,
        trained,
        ("encoders", "decoders", "code_prior", "log_scale"),
        after_step=lambda params, batch, step: latent_flows.average(
            options, params, "code_prior", step
        ),
    )
    return with_shared_prior(
        base,
        latents,
        size,
        lambda params, key, num: code_priors.sample(
            prior, params["code_prior_average"], key, num
        ),
        lambda params, s: log_prob(params, s, jax.random.key(0)),
    )._replace(init=init, objective=objective, stages=(stage,))


def _refuse_tokens(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UsageError if a modality has tokens."""
    for m, shape in shapes.items():
        if isinstance(shape, TokenShape):
            raise UsageError(
                f"model 'contrastive' is for images and vectors, and {m} is of tokens"
            )


def contrastive_terms(
    shared: Gaussian,
    joint: Gaussian,
    private: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    log_code_prior: Callable[[Array], Array] | None,
    log_likelihoods: elbo.LogLikelihoods,
    encode_generated: Callable[[Mapping[str, Array]], Array],
    scale: Array,
    consistency: float,
) -> ObjectiveTerms:
    """The terms of the equation at the top of this file.

    Args:
      shared: q(s|x_m), fields [M, B, d].
      joint: q(s|X), fields [B, d], given the observed modalities of each example.
      private: q(w_m|x_m), fields [M, B, e].
      batch: modality -> [B, ...].
      key: random key.
      log_code_prior: s [B, d] -> log p(s) [B]; None: `kl` lacks the term of the code,
        whose gradients are 0 but for those of p(s).
      log_likelihoods: modality -> function (s and w, [N, d + e], x_m) -> [N].
      encode_generated: (modality -> s and w, [B, d + e]) -> codes [M, B, d] of any
        length.
      scale: t, float [] or [1].
      consistency: lambda; with 0, prior samples are not decoded.

    Returns:
      ObjectiveTerms, fields [B]. log_likelihood and kl (a single-sample estimate in s)
      are the bound; auxiliary_log_likelihood is the contrast and lambda times the
      consistency, auxiliary_kl is 0.
    """
    code_key, private_key, prior_key = jax.random.split(key, 3)
    codes, joint_codes = unit(shared.mean), jax.lax.stop_gradient(unit(joint.mean))
    joint = jax.lax.stop_gradient(joint)
    s = distributions.sample(joint, code_key)
    w = distributions.sample(private, private_key)
    observed = elbo.observed_of(batch, len(log_likelihoods))
    values = {
        m: f(distributions.join(s, w[i]), batch[m])
        for i, (m, f) in enumerate(log_likelihoods.items())
    }
    log_likelihood = elbo.observed_terms(values, observed)
    kl = elbo.observed_sum(distributions.kl_to_standard_gaussian(private), observed)
    if log_code_prior is not None:
        kl += distributions.log_prob(joint, s) - log_code_prior(s)
    gain = contrast(codes, scale, observed)
    if consistency:
        w = jax.random.normal(prior_key, w.shape, w.dtype)
        generated = unit(
            encode_generated(
                {m: distributions.join(s, w[i]) for i, m in enumerate(log_likelihoods)}
            )
        )
        logits = jax.lax.stop_gradient(scale) * (generated @ joint_codes.T)
        gain += consistency * elbo.observed_sum(log_match(logits), observed)
    return ObjectiveTerms(log_likelihood, kl, gain, jnp.zeros_like(kl))
