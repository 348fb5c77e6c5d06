"""Coordination-based models: one objective, four weights, a choice of posterior.

JMVAE, JMVAE-kl, TELBO, MVTCAE and CRMVAE train a joint posterior q_J and unimodal
posteriors q_m close to it. Their objectives are weighted sums of the same terms
(`coordinated_elbo`), with the KL terms times beta:

    a E_{q_J} log p(X|z) - b KL(q_J||p) + c sum_m E_{q_m} log p(x_m|z)
      - d sum_m KL(q_J||q_m)

                        q_J      a          b        c        d
    JMVAE               network  1          1        0        0
    JMVAE-kl            network  1          1        0        alpha
    TELBO               network  1          1        1        1, KL(q_m||p)
    MVTCAE              product  (M-a) / M  1 - a    0        a / M
    CRMVAE, documented  product  1 / (M+1)  the same for all
    CRMVAE, released    product  1 / 2      1        1 / 2    1

Logged and evaluated terms are not weighted: for all these models, `elbo` is that of
q_J, a bound on log p(X).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, elbo, posteriors
from mmvae_jax.mathematics.elbo import TermWeights
from mmvae_jax.models import parts
from mmvae_jax.models.joint_encoder import make_joint_encoder
from mmvae_jax.models.options import Options, number, one_of, share
from mmvae_jax.models.parts import (
    Networks,
    assemble,
    encode,
    make_networks,
    standard_latents,
)
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
)


class _Inference(NamedTuple):
    """A kind of joint posterior.

    Attributes:
      init: (params of `parts.assemble`, key) -> params.
      encode: (params, batch) -> experts, in the rows that `posterior` reads.
      posterior: (params, experts, subset) -> Gaussian [B, D]. For an example with
        missing modalities, q_J is the posterior of its observed subset.
      unimodal: experts -> the unimodal posteriors [M, B, D], or None.
    """

    init: Callable[[Params, PRNGKey], Params]
    encode: Callable[[Params, Batch], Gaussian]
    posterior: Callable[[Params, Gaussian, AnyArray], Gaussian]
    unimodal: Callable[[Gaussian], Gaussian | None]


def _product_inference(nets: Networks) -> _Inference:
    """The posterior of a subset is the product of its experts, without the prior."""

    def posterior(params: Params, experts: Gaussian, subset: AnyArray) -> Gaussian:
        del params
        return posteriors.product_of_experts(experts, subset, False)

    return _Inference(
        init=lambda params, key: params,
        encode=lambda params, batch: encode(nets, params, batch),
        posterior=posterior,
        unimodal=lambda experts: experts,
    )


def _network_inference(nets: Networks) -> _Inference:
    """A joint encoder for all modalities, and products of experts for other subsets.

    The experts have M + 1 rows: the unimodal posteriors, and that of the joint encoder.
    """
    joint = make_joint_encoder(nets)
    num_modalities = len(nets.shapes)

    def encode_all(params: Params, batch: Batch) -> Gaussian:
        features = joint.features(params["joint"], batch)
        together = joint.posterior(params["joint"], features)
        return jax.tree.map(
            lambda rows, row: jnp.concatenate([rows, row[None]]),
            encode(nets, params, batch),
            together,
        )

    def unimodal(experts: Gaussian) -> Gaussian:
        return jax.tree.map(lambda field: field[:num_modalities], experts)

    def posterior(params: Params, experts: Gaussian, subset: AnyArray) -> Gaussian:
        del params
        product = posteriors.product_of_experts(unimodal(experts), subset, False)
        is_complete = jnp.all(subset, axis=0)[..., None]
        return jax.tree.map(
            lambda field, part: jnp.where(is_complete, field[-1], part),
            experts,
            product,
        )

    return _Inference(
        init=lambda params, key: params | {"joint": joint.init(key)},
        encode=encode_all,
        posterior=posterior,
        unimodal=unimodal,
    )


def _zeroing_inference(nets: Networks) -> _Inference:
    """A joint encoder alone, with zeros as the input of a missing modality.

    The JMVAE of Suzuki et al. (2016) without unimodal encoders, which they find to fail
    if the missing modality is large. The experts are not posteriors: they are the M
    rows of features of the joint encoder.
    """
    joint = make_joint_encoder(nets)

    def init(params: Params, key: PRNGKey) -> Params:
        return {"decoders": params["decoders"], "joint": joint.init(key)}

    def posterior(params: Params, experts: Gaussian, subset: AnyArray) -> Gaussian:
        return joint.of_subset(params["joint"], experts, subset)

    return _Inference(
        init=init,
        encode=lambda params, batch: joint.features(params["joint"], batch),
        posterior=posterior,
        unimodal=lambda experts: None,
    )


class _Coordination(NamedTuple):
    """A model of the family.

    Attributes:
      weights: (options, M) -> the weights a, b, c, d of the terms.
      inference: networks -> Inference.
      options: options of the model.
      is_reconstructing: whether the unimodal posteriors reconstruct (term c).
      is_coordinated: whether d weights KL(q_J||q_m) instead of KL(q_m||p).
    """

    weights: Callable[[Mapping[str, Any], int], TermWeights]
    inference: Callable[[Networks], _Inference]
    options: Options = {}
    is_reconstructing: bool = False
    is_coordinated: bool = True


def _mvtcae_weights(options: Mapping[str, Any], num: int) -> TermWeights:
    alpha = options["alpha"]
    return TermWeights((num - alpha) / num, 1 - alpha, 0.0, alpha / num)


def _crmvae_weights(options: Mapping[str, Any], num: int) -> TermWeights:
    """The released code has (1/2, 1, 1/2, 1), up to a positive factor."""
    if options["weights"] == "released":
        return TermWeights(0.5, 1.0, 0.5, 1.0)
    return TermWeights(*4 * [1 / (num + 1)])


JMVAE = _Coordination(
    lambda options, num: TermWeights(1.0, 1.0, 0.0, 0.0), _zeroing_inference
)
JMVAE_KL = _Coordination(
    lambda options, num: TermWeights(1.0, 1.0, 0.0, options["alpha"]),
    _network_inference,
    {"alpha": number(0.1, 0)},  # Suzuki et al. (2016)
)
TELBO = _Coordination(
    lambda options, num: TermWeights(),
    _network_inference,
    # Whether the gradients of the unimodal ELBOs stop at the decoders ("stopped") or
    # also train them ("joint").
    {
        "decoder_gradients": one_of("stopped", "joint"),
        # Fraction of the run's steps for the first of two stages, which trains joint
        # encoder and decoders; the second trains only the unimodal encoders. 0 = one
        # stage.
        "joint_share": share(0.0),
    },
    is_reconstructing=True,
    is_coordinated=False,
)
MVTCAE = _Coordination(
    _mvtcae_weights,
    _product_inference,
    {"alpha": number(5 / 6, 0, 1)},  # Hwang et al. (2021): beta 2.5, M = 5
)
CRMVAE = _Coordination(
    _crmvae_weights,
    _product_inference,
    # "released": the weights of the code, which double beta.
    {"weights": one_of("documented", "released")},
    is_reconstructing=True,
)


def _by_number(
    weights: Callable[[int], TermWeights], most: int
) -> Callable[[Array], TermWeights]:
    """The weights as a function of the number of observed modalities, int [B]."""
    tables = np.array([weights(num) for num in range(1, most + 1)], np.float32)

    def look_up(num_observed: Array) -> TermWeights:
        return TermWeights(*jnp.asarray(tables)[num_observed - 1].T)

    return look_up


def coordination_model(
    config: Any,
    shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any],
    *,
    kind: _Coordination,
) -> MultimodalVAE:
    """A coordination-based model with the weights and the joint posterior of `kind`.

    Suzuki et al. (2016) for JMVAE and JMVAE-kl, Vedantam et al. (2018) for TELBO,
    Hwang et al. (2021) for MVTCAE, and the CRMVAE that MultiVae documents.

    TELBO fits its unimodal encoders to constant decoders. Vedantam et al. do so in a
    second stage (joint_share > 0). By default there is one stage with stopped gradients
    (decoder_gradients = "stopped"): joint encoder and decoders train as in the first
    stage, and share no gradient with the unimodal encoders. With "joint" the decoders
    also learn from the unimodal ELBOs.

    The released code of MultiVae differs in two points. Its KL of the unimodal
    posteriors has the joint posterior's variances in the logarithm; here it is
    KL(q_m||p). In its JMVAE-kl, beta does not weight sum_m KL(q_J||q_m): its alpha is
    alpha / beta here.

    Args:
      config: as for `make_model`.
      shapes: modality -> shape of one example.
      options: options of the model.
      kind: the model of the family.

    Raises:
      UsageError: joint_share > 0 with decoder_gradients = "joint".
    """
    nets = make_networks(config, shapes, config.model.latent_dim)
    weights_of = _by_number(partial(kind.weights, options), len(shapes))
    inference = kind.inference(nets)
    base = assemble(nets, standard_latents((config.model.latent_dim,)))
    is_stopped = options.get("decoder_gradients") == "stopped"
    joint_share = options.get("joint_share", 0.0)
    if joint_share and not is_stopped:
        raise UsageError(
            "config.model.options.joint_share > 0 is for decoder_gradients "
            "'stopped': decoders are fixed in the stage of the unimodal encoders"
        )

    def init(key: PRNGKey) -> Params:
        own_key, joint_key = jax.random.split(key)
        return inference.init(base.init(own_key), joint_key)

    def objective(
        params: Params, batch: Batch, key: PRNGKey, beta: Array
    ) -> tuple[Array, ObjectiveTerms]:
        experts = inference.encode(params, batch)
        observed = elbo.observed_of(batch, len(shapes))
        constant = jax.lax.stop_gradient(params) if is_stopped else params
        unimodal_decoders = parts.log_likelihoods(nets, constant)
        terms = coordinated_elbo(
            inference.posterior(params, experts, observed),
            inference.unimodal(experts),
            batch,
            key,
            log_likelihoods=parts.log_likelihoods(nets, params),
            unimodal_log_likelihoods=(
                unimodal_decoders if kind.is_reconstructing else None
            ),
            is_coordinated=kind.is_coordinated,
        )
        weights = weights_of(jnp.sum(observed, axis=0))
        return elbo.loss(terms, beta, weights), terms

    def posterior(
        params: Params, experts: Gaussian, subset: Array, key: PRNGKey
    ) -> Gaussian:
        del key  # not a mixture
        return inference.posterior(params, experts, subset)

    return base._replace(
        init=init,
        objective=objective,
        encode=inference.encode,
        posterior=posterior,
        stages=(
            Stage(
                "joint",
                lambda num: round(joint_share * num),
                objective,
                ("decoders", "joint"),
            ),
            Stage("unimodal", lambda num: num, objective, ("encoders",)),
        )
        if joint_share
        else (),
    )


def coordinated_elbo(
    joint: Gaussian,
    experts: Gaussian | None,
    batch: Batch,
    key: PRNGKey,
    *,
    log_likelihoods: elbo.LogLikelihoods,
    unimodal_log_likelihoods: elbo.LogLikelihoods | None = None,
    is_coordinated: bool = True,
) -> ObjectiveTerms:
    """The terms of all coordination-based objectives.

    With q_J = q(z|X) and q_m = q(z|x_m):

        log_likelihood            E_{q_J} log p(x_m|z), for each modality
        kl                        KL(q_J || p)
        auxiliary_log_likelihood  sum_m E_{q_m} log p(x_m|z)
        auxiliary_kl              sum_m KL(q_J || q_m), or sum_m KL(q_m || p)

    The first two are the ELBO of q_J, a bound on log p(X). The module docstring has the
    weights of the published objectives.

    Args:
      joint: q_J, fields [B, D], given the observed modalities of each example.
      experts: q_m, fields [M, B, D]; None: no auxiliary KL.
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: one function per modality (`elbo.LogLikelihoods`).
      unimodal_log_likelihoods: the same for reconstructions from q_m; None: no
        auxiliary log-likelihood.
      is_coordinated: whether auxiliary_kl is KL(q_J || q_m) instead of KL(q_m || p)
        (TELBO).

    Returns:
      ObjectiveTerms, fields [B].
    """
    joint_key, unimodal_key = jax.random.split(key)
    observed = elbo.observed_of(batch, len(log_likelihoods))
    z = distributions.sample(joint, joint_key)
    values = {m: f(z, batch[m]) for m, f in log_likelihoods.items()}
    log_likelihood = elbo.observed_terms(values, observed)
    kl = distributions.kl_to_standard_gaussian(joint)
    gain = auxiliary_kl = jnp.zeros_like(kl)
    if experts is not None and unimodal_log_likelihoods is not None:
        z = distributions.sample(experts, unimodal_key)
        own = elbo.own_terms(z, batch, unimodal_log_likelihoods)
        gain = elbo.total(elbo.observed_terms(own, observed).values())
    if experts is not None:
        divergences = (
            distributions.gaussian_kl(joint, experts)
            if is_coordinated
            else distributions.kl_to_standard_gaussian(experts)
        )
        auxiliary_kl = elbo.observed_sum(divergences, observed)
    return ObjectiveTerms(log_likelihood, kl, gain, auxiliary_kl)
