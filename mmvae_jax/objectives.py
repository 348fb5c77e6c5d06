"""One function per objective: experts in, named terms per example out, in nats.

Each function takes `log_likelihoods`, modality -> function (z [N, D], x [N, ...])
-> [N], the decoder followed by its likelihood. beta appears only in `loss`, which
weights the terms of most objectives, and in the two importance-weighted objectives,
where it is inside of the logarithm and which return their loss with their terms.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax import distributions, posteriors
from mmvae_jax.errors import UsageError
from mmvae_jax.subsets import SubsetMixture
from mmvae_jax.types import (
    Array,
    Batch,
    Distribution,
    Gaussian,
    ObjectiveTerms,
    PRNGKey,
)

LogLikelihoods = Mapping[str, Callable[[Array, Array], Array]]

SUBSET_ESTIMATORS = ("stratified", "random", "exact")
FORMS = ("loose", "tight")
ESTIMATORS = ("dreg", "iwae")


class TermWeights(NamedTuple):
    """A model's own weights of the `ObjectiveTerms` in its loss, without beta.

    All are 1 where an objective is a plain sum of its terms. The terms themselves
    are never weighted, so that `elbo` of them is a bound whatever the weights are.

    Attributes:
      log_likelihood: of the reconstruction terms of the bound.
      kl: of the KL terms of the bound; times beta in the loss.
      auxiliary_log_likelihood: of what is no part of the bound, likewise.
      auxiliary_kl: likewise; times beta in the loss.
    """

    log_likelihood: float = 1.0
    kl: float = 1.0
    auxiliary_log_likelihood: float = 1.0
    auxiliary_kl: float = 1.0


PLAIN_SUM = TermWeights()


def loss(terms: ObjectiveTerms, beta: Array, weights: TermWeights = PLAIN_SUM) -> Array:
    """The loss minimised in training: minus the beta-weighted objective; nats [].

    Higgins et al. (2017): beta weights the KL terms and nothing else.
    """
    gain = (
        weights.log_likelihood * sum(terms.log_likelihood.values())
        + weights.auxiliary_log_likelihood * terms.auxiliary_log_likelihood
    )
    kl = weights.kl * terms.kl + weights.auxiliary_kl * terms.auxiliary_kl
    return jnp.mean(beta * kl - gain)


def elbo(terms: ObjectiveTerms) -> Array:
    """The bound on log p(X) per example (beta = 1, no auxiliary term); nats [B]."""
    return sum(terms.log_likelihood.values()) - terms.kl


def subset_elbo(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    mixture: SubsetMixture,
    log_likelihoods: LogLikelihoods,
    estimator: str = "stratified",
) -> ObjectiveTerms:
    """L_S of Definition 3 (Eq. 2): MVAE, MMVAE, MoPoE-VAE by their subsets.

    L_S = sum_A omega_A { E_{q(z|x_A)} [sum_m log p(x_m|z)] - KL(q(z|x_A)||p(z)) }.
    The KL terms of all S subsets are exact for every estimator.

    Args:
      experts: fields [M, B, D].
      batch: modality -> [B, ...].
      key: random key.
      mixture: the subsets and their weights.
      log_likelihoods: one function a modality (module docstring).
      estimator: how the expectation over subsets is taken: "stratified", one
        decoding per example from a subset drawn so that the batch is balanced
        (as published, but balanced to +-1); "random", from a subset drawn
        independently; "exact", from every subset (S decodings per example).

    Returns:
      ObjectiveTerms, fields [B].

    Raises:
      UsageError: the estimator is unknown.
    """
    weights = jnp.asarray(mixture.weights)
    components = posteriors.subset_posteriors(experts, mixture)
    kl = weights @ distributions.kl_to_standard_gaussian(components)
    log_likelihood = _mixture_log_likelihood(
        components, weights, batch, key, log_likelihoods, estimator
    )
    zeros = jnp.zeros_like(kl)
    return ObjectiveTerms(log_likelihood, kl, zeros, zeros)


def _mixture_log_likelihood(
    components: Gaussian,
    weights: Array,
    batch: Batch,
    key: PRNGKey,
    log_likelihoods: LogLikelihoods,
    estimator: str,
) -> dict[str, Array]:
    """modality -> [B], E[log p(x_m|z)] over a mixture of S components [S, B, D].

    The estimator is one of SUBSET_ESTIMATORS, as `subset_elbo` explains them.
    """
    if estimator not in SUBSET_ESTIMATORS:
        raise UsageError(
            f"unknown config.objective.subset_estimator {estimator!r}; choose one of "
            f"{', '.join(SUBSET_ESTIMATORS)}"
        )
    subset_key, noise_key = jax.random.split(key)
    if estimator == "exact":
        z = distributions.sample(components, noise_key)
        return {
            m: weights @ _fold_samples(f, z, batch[m])
            for m, f in log_likelihoods.items()
        }
    draw = {
        "stratified": posteriors.stratified_components,
        "random": posteriors.random_components,
    }[estimator]
    indices = draw(subset_key, weights, components.mean.shape[1])
    chosen = posteriors.gather_components(components, indices)
    z = distributions.sample(chosen, noise_key)
    return {m: f(z, batch[m]) for m, f in log_likelihoods.items()}


def subsampled_elbo(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    mixture: SubsetMixture,
    log_likelihoods: LogLikelihoods,
) -> ObjectiveTerms:
    """The ELBO sub-sampling objective (Eq. 84), MVAE+ in the paper.

    L(x) + sum_i L(x_i): the ELBO of the full set plus, unnormalised, that of
    every modality alone, without reconstruction across modalities. It is no
    bound on log p(X) (Wu & Goodman, 2019); hence the unimodal terms are
    auxiliary, and `elbo` of the result is that of the full set.

    Args:
      experts: fields [M, B, D].
      batch: modality -> [B, ...].
      key: random key.
      mixture: the full set (`subsets.full_set`); whether the prior is an expert
        of it decides the same for the unimodal posteriors.
      log_likelihoods: one function a modality (module docstring).

    Returns:
      ObjectiveTerms, fields [B].
    """
    joint_key, unimodal_key = jax.random.split(key)
    joint = subset_elbo(
        experts, batch, joint_key, mixture=mixture, log_likelihoods=log_likelihoods
    )
    num_modalities = experts.mean.shape[0]
    unimodal = SubsetMixture(
        masks=jnp.eye(num_modalities, dtype=bool),
        weights=jnp.ones(num_modalities),
        prior_expert=jnp.full(num_modalities, bool(mixture.prior_expert.all())),
    )
    components = posteriors.subset_posteriors(experts, unimodal)
    z = distributions.sample(components, unimodal_key)
    gains = [f(z[i], batch[m]) for i, (m, f) in enumerate(log_likelihoods.items())]
    kl = jnp.sum(distributions.kl_to_standard_gaussian(components), axis=0)
    return joint._replace(auxiliary_log_likelihood=sum(gains), auxiliary_kl=kl)


def coordinated_elbo(
    joint: Gaussian,
    experts: Gaussian | None,
    batch: Batch,
    key: PRNGKey,
    *,
    log_likelihoods: LogLikelihoods,
    unimodal_log_likelihoods: LogLikelihoods | None = None,
    is_coordinated: bool = True,
) -> ObjectiveTerms:
    """The terms of which every coordination-based objective is a weighted sum.

    With q_J = q(z|X), of whatever kind, and q_m = q(z|x_m):

        log_likelihood            E_{q_J} log p(x_m|z), a term a modality
        kl                        KL(q_J || p)
        auxiliary_log_likelihood  sum_m E_{q_m} log p(x_m|z)
        auxiliary_kl              sum_m KL(q_J || q_m), or sum_m KL(q_m || p)

    The first two are the ELBO of q_J, a bound on log p(X) whatever the others do;
    `models.coordination` holds the weights of the published objectives.

    Args:
      joint: q_J, fields [B, D].
      experts: q_m, fields [M, B, D]; None if there are none, for no auxiliary KL.
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: one function a modality (module docstring).
      unimodal_log_likelihoods: what reconstructs a modality from its own expert,
        likewise; None: nothing does.
      is_coordinated: whether auxiliary_kl is that of q_J from the experts, and not
        that of the experts from the prior (TELBO).

    Returns:
      ObjectiveTerms, fields [B].
    """
    joint_key, unimodal_key = jax.random.split(key)
    z = distributions.sample(joint, joint_key)
    log_likelihood = {m: f(z, batch[m]) for m, f in log_likelihoods.items()}
    kl = distributions.kl_to_standard_gaussian(joint)
    gain = auxiliary_kl = jnp.zeros_like(kl)
    if unimodal_log_likelihoods is not None:
        z = distributions.sample(experts, unimodal_key)
        functions = enumerate(unimodal_log_likelihoods.items())
        gain = sum(f(z[i], batch[m]) for i, (m, f) in functions)
    if experts is not None:
        divergences = (
            distributions.gaussian_kl(joint, experts)
            if is_coordinated
            else distributions.kl_to_standard_gaussian(experts)
        )
        auxiliary_kl = jnp.sum(divergences, axis=0)
    return ObjectiveTerms(log_likelihood, kl, gain, auxiliary_kl)


def jensen_shannon_elbo(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    log_likelihoods: LogLikelihoods,
    decode_prior: bool = True,
    estimator: str = "stratified",
) -> ObjectiveTerms:
    """The terms of mmJSD with its dynamic prior (Sutter et al., 2020).

    Its loss has, in place of a KL to the prior, the Jensen-Shannon divergence

        sum_k w_k KL(q_k || f),   f proportional to prod_k q_k^{w_k},

    of the M experts and the prior N(0, I), all w_k = 1 / (M + 1). It is
    `auxiliary_kl` here, and `kl` the KL term of the mixture that is decoded, so
    that `elbo` is a bound on log p(X): MMVAE's, with the prior as a component or not.

    Args:
      experts: fields [M, B, D].
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: one function a modality (module docstring).
      decode_prior: whether the prior is a component of the mixture that is decoded,
        as released: one example in M + 1 is then reconstructed from noise.
      estimator: of the expectation over components, as for `subset_elbo`.

    Returns:
      ObjectiveTerms, fields [B].
    """
    prior = jax.tree.map(lambda field: jnp.zeros_like(field[:1]), experts)
    components = jax.tree.map(lambda *rows: jnp.concatenate(rows), experts, prior)
    num_components = components.mean.shape[0]
    uniform = jnp.full(num_components, 1 / num_components)
    dynamic_prior = posteriors.geometric_mean(components, uniform)
    divergence = uniform @ distributions.gaussian_kl(components, dynamic_prior)
    decoded = components if decode_prior else experts
    num_decoded = decoded.mean.shape[0]
    weights = jnp.full(num_decoded, 1 / num_decoded)
    log_likelihood = _mixture_log_likelihood(
        decoded, weights, batch, key, log_likelihoods, estimator
    )
    kl = weights @ distributions.kl_to_standard_gaussian(decoded)
    return ObjectiveTerms(log_likelihood, kl, jnp.zeros_like(kl), divergence)


def unimodal_elbos(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    log_likelihoods: LogLikelihoods,
) -> ObjectiveTerms:
    """M independent VAEs, each with a latent space of its own.

    Args:
      experts: fields [M, B, d], q(z_m|x_m); d is the latent size of one VAE.
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: modality -> function (z_m [B, d], x_m) -> [B].

    Returns:
      ObjectiveTerms whose elbo is the sum of the M ELBOs, a bound on
      sum_m log p(x_m), which is the log p(X) of a model with independent
      modalities.
    """
    z = distributions.sample(experts, key)
    log_likelihood = {
        m: f(z[i], batch[m]) for i, (m, f) in enumerate(log_likelihoods.items())
    }
    kl = jnp.sum(distributions.kl_to_standard_gaussian(experts), axis=0)
    zeros = jnp.zeros_like(kl)
    return ObjectiveTerms(log_likelihood, kl, zeros, zeros)


def mixture_prior_elbos(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    log_likelihoods: LogLikelihoods,
) -> ObjectiveTerms:
    """M VAEs and what ties them: the data-dependent MMVM prior (Sutter et al., 2024).

    The prior of every z_m is the mixture (1/M) sum_n q(z_m|x_n). As released, its KL
    is bounded from above by convexity: `auxiliary_kl` is

        sum_m (1/M) sum_n KL(q_m || q_n)  >=  sum_m KL(q_m || (1/M) sum_n q_n).

    Args:
      experts: fields [M, B, D], q(z_m|x_m), of one size for all.
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: modality -> function (z_m [B, D], x_m) -> [B].

    Returns:
      ObjectiveTerms: the bound of `unimodal_elbos` (a prior that knows the data
      bounds nothing), and the divergence from that prior.
    """
    terms = unimodal_elbos(experts, batch, key, log_likelihoods=log_likelihoods)
    pairs = distributions.gaussian_kl(
        jax.tree.map(lambda field: field[:, None], experts),
        jax.tree.map(lambda field: field[None], experts),
    )
    return terms._replace(auxiliary_kl=jnp.sum(jnp.mean(pairs, axis=1), axis=0))


def importance_weighted(
    experts: Distribution,
    batch: Batch,
    key: PRNGKey,
    beta: Array,
    *,
    prior: Distribution,
    log_likelihoods: LogLikelihoods,
    num_samples: int,
    form: str = "loose",
    estimator: str = "dreg",
) -> tuple[Array, ObjectiveTerms]:
    """The objective of the official MMVAE of Shi et al. (2019).

    With K samples z_mk ~ q_m(z|x_m) of every expert and

        log w = sum_n log p(x_n|z) + beta (log p(z) - log (1/M) sum_j q_j(z|x_j)),

    it is (1/M) sum_m log (1/K) sum_k w_mk ("loose", as released) or
    log 1/(MK) sum_mk w_mk ("tight"). The denominator is the density of the whole
    mixture, not of the component that the sample is from. The published code has
    no beta, and Daunhawer et al. (2022), who vary it in Fig. 12, do not say where
    they put it; it stands here where MMVAE+ and MultiVae have it. Unless it is 1,
    only the terms are those of a bound on log p(X).

    The loss has one value for both estimators of its gradient. "iwae" is its
    derivative, unbiased. "dreg" is the doubly reparameterised one of Tucker et al.
    (2018) as the official code applies it: the encoders' parameters are constants
    in log q, and the gradient that reaches z is multiplied by the normalised
    weight once more. For decoders and prior both are equal. For the encoders
    "dreg" has less variance, none where the posterior is exact, and the
    expectation of "iwae" where beta = 1 and either M = 1, or the form is loose
    and K = 1, or all experts agree. Elsewhere it is biased: the identity behind
    it is about samples of the density in the denominator, and z_mk are samples
    of one of its components; and with beta the factor of the identity would be
    1 - beta (1 - weight).

    Args:
      experts: fields [M, B, D].
      batch: modality -> [B, ...].
      key: random key.
      beta: float [].
      prior: p(z), fields [D].
      log_likelihoods: one function a modality (module docstring), called for all
        M K samples at once. "dreg" calls it again with the same values, for XLA to
        merge.
      num_samples: K.
      form: one of FORMS.
      estimator: one of ESTIMATORS.

    Returns:
      The loss [], and ObjectiveTerms, fields [B], of the single-sample bound (beta
      and K are 1 in it), averaged over the M K samples.
    """
    num_modalities = experts.mean.shape[0]
    uniform = jnp.full(num_modalities, 1 / num_modalities)

    def log_weights(z: Array, experts: Distribution) -> tuple[Array, Any]:
        """log w, log-likelihoods, log q - log p: all [K, M, B]."""
        log_likelihood = {
            m: _fold_samples(f, z, batch[m]) for m, f in log_likelihoods.items()
        }
        log_q = posteriors.mixture_log_prob(experts, uniform, z)
        kl = log_q - distributions.log_prob(prior, z)
        return sum(log_likelihood.values()) - beta * kl, (log_likelihood, kl)

    z = distributions.sample(experts, key, (num_samples,))
    value, (log_likelihood, kl) = _weighted_loss(
        log_weights, z, experts, form, estimator
    )
    zeros = jnp.zeros_like(kl)
    return value, ObjectiveTerms(log_likelihood, kl, zeros, zeros)


def _weighted_loss(
    log_weights: Callable[[Array, Distribution], tuple[Array, Any]],
    z: Array,
    experts: Distribution,
    form: str,
    estimator: str,
) -> tuple[Array, Any]:
    """The loss of samples and their weights, in one of FORMS and of ESTIMATORS.

    Args:
      log_weights: (z, experts) -> log w [K, M, B], and other values of that shape.
      z: [K, M, B, D], samples of the experts.
      experts: fields [M, B, D].
      form: one of FORMS.
      estimator: one of ESTIMATORS.

    Returns:
      The loss [], and the means [B] of the other values over the M K samples.
    """
    values, others = log_weights(z, experts)
    axes = {"loose": (0,), "tight": (0, 1)}[form]
    num_averaged = math.prod(values.shape[axis] for axis in axes)
    bound = jax.nn.logsumexp(values, axes) - math.log(num_averaged)
    if estimator == "dreg":
        normalised = jax.lax.stop_gradient(jax.nn.softmax(values, axes))
        scaled = scale_gradient(z, normalised[..., None])
        again, _ = log_weights(scaled, jax.lax.stop_gradient(experts))
        surrogate = jnp.sum(normalised * again, axes)
        # The value of the bound, the gradient of the surrogate.
        bound = jax.lax.stop_gradient(bound - surrogate) + surrogate
    return -jnp.mean(bound), jax.tree.map(lambda x: jnp.mean(x, (0, 1)), others)


def unimodal_importance_weighted(
    experts: Distribution,
    batch: Batch,
    key: PRNGKey,
    beta: Array,
    *,
    prior: Distribution,
    log_likelihoods: LogLikelihoods,
    **options: Any,
) -> tuple[Array, ObjectiveTerms]:
    """M independent VAEs, each with an `importance_weighted` objective of its own.

    Args:
      experts: fields [M, B, d], q(z_m|x_m); d is the latent size of one VAE.
      batch: modality -> [B, ...].
      key: random key.
      beta: float [].
      prior: fields [M, d], the prior of every VAE.
      log_likelihoods: modality -> function (z_m [N, d], x_m) -> [N].
      **options: num_samples and estimator of `importance_weighted`, whose two forms
        are one for a single modality.

    Returns:
      The sums over the M VAEs of their losses [] and terms, fields [B].
    """
    keys = jax.random.split(key, len(log_likelihoods))
    losses, terms = [], []
    for i, (modality, log_likelihood) in enumerate(log_likelihoods.items()):
        own_loss, own_terms = importance_weighted(
            jax.tree.map(lambda field, i=i: field[i : i + 1], experts),
            {modality: batch[modality]},
            keys[i],
            beta,
            prior=jax.tree.map(lambda field, i=i: field[i], prior),
            log_likelihoods={modality: log_likelihood},
            **options,
        )
        losses.append(own_loss)
        terms.append(own_terms)
    log_likelihood = {m: x for own in terms for m, x in own.log_likelihood.items()}
    kl = sum(own.kl for own in terms)
    zeros = jnp.zeros_like(kl)
    return sum(losses), ObjectiveTerms(log_likelihood, kl, zeros, zeros)


def private_importance_weighted(
    experts: Distribution,
    batch: Batch,
    key: PRNGKey,
    beta: Array,
    *,
    shared_dim: int,
    prior: Distribution,
    auxiliary_priors: Distribution,
    log_likelihoods: LogLikelihoods,
    num_samples: int,
    form: str = "loose",
    estimator: str = "dreg",
) -> tuple[Array, ObjectiveTerms]:
    """The objective of MMVAE+, Palumbo et al. (2023), as released.

    Every expert is q_m(z|x_m) q_m(w|x_m), of a shared and a private latent vector.
    With K samples z_mk, w_mk of it and w~_n ~ r_n(w) of auxiliary priors,

        log w_mk = log p(x_m|z, w_m) + sum_{n != m} log p(x_n|z, w~_n)
            + beta (log p(z) + log p(w_m) - log (1/M) sum_j q_j(z|x_j)
                    - log q_m(w_m|x_m)),

    and it is (1/M) sum_m log (1/K) sum_k w_mk, the mean over modalities outside of
    the logarithm ("loose"). For K = 1 it is their ELBO. What modality m says of the
    others goes through z alone: their own w is never decoded with its z.

    Both estimators are those of `importance_weighted`: in "dreg", the densities of
    z and w_m have constant parameters, and the gradients that reach z_mk and w_mk
    are weighted once more. (The first release meant to do so and does neither: its
    log q keeps the encoders' parameters.) r_n is in no density of the objective; it
    learns through its samples, by the plain derivative.

    Because r_n is in no density, the objective is a bound on log p(X) only where
    r_n = p. The terms returned are of a bound everywhere: w~_n is counted as a
    sample of a proposal r_n, log r_n(w~_n) - log p(w~_n) is part of `kl`, and
    `auxiliary_kl` takes it away again. Hence the loss for K = 1 is `loss` of the
    terms.

    Args:
      experts: fields [M, B, d + e], shared dimensions first.
      batch: modality -> [B, ...].
      key: random key.
      beta: float [].
      shared_dim: d.
      prior: p(z) p(w), fields [d + e].
      auxiliary_priors: r_n(w), fields [M, e].
      log_likelihoods: modality -> function ([z, w] [N, d + e], x_n) -> [N].
      num_samples: K.
      form: one of FORMS; "tight", log 1/(MK) sum_mk w_mk, is nobody's published.
      estimator: one of ESTIMATORS.

    Returns:
      The loss [], and ObjectiveTerms, fields [B], of the single-sample bound (beta
      and K are 1 in it), averaged over the M K samples.
    """
    num_modalities = experts.mean.shape[0]
    uniform = jnp.full(num_modalities, 1 / num_modalities)
    own_key, auxiliary_key = jax.random.split(key)
    samples = distributions.sample(experts, own_key, (num_samples,))
    # One w~ for every sample, example, and pair of modalities: [K, M, B, M, e].
    auxiliary = distributions.sample(
        auxiliary_priors, auxiliary_key, samples.shape[:-1]
    )
    private_prior = distributions.split(prior, shared_dim)[1]
    is_other = ~jnp.eye(num_modalities, dtype=bool)[:, None]
    excess = distributions.log_prob(auxiliary_priors, auxiliary)
    excess -= distributions.log_prob(private_prior, auxiliary)
    excess = jnp.sum(jnp.where(is_other, excess, 0.0), axis=-1)

    def log_weights(z: Array, experts: Distribution) -> tuple[Array, Any]:
        """log w, log-likelihoods, log q - log p, log r - log p: all [K, M, B]."""
        shared, private = distributions.split(z, shared_dim)
        log_likelihood = {}
        for n, (m, f) in enumerate(log_likelihoods.items()):
            w = jnp.where(is_other[..., n, None], auxiliary[..., n, :], private)
            log_likelihood[m] = _fold_samples(
                f, distributions.join(shared, w), batch[m]
            )
        shared_experts, private_experts = distributions.split(experts, shared_dim)
        kl = posteriors.mixture_log_prob(shared_experts, uniform, shared)
        kl += distributions.log_prob(private_experts, private)
        kl -= distributions.log_prob(prior, z)
        value = sum(log_likelihood.values()) - beta * kl
        return value, (log_likelihood, kl, excess)

    value, (log_likelihood, kl, excess) = _weighted_loss(
        log_weights, samples, experts, form, estimator
    )
    return value, ObjectiveTerms(
        log_likelihood, kl + excess, jnp.zeros_like(kl), -excess
    )


def private_shared_elbos(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    shared_dim: int,
    sources: SubsetMixture,
    log_likelihoods: LogLikelihoods,
) -> ObjectiveTerms:
    """The objective of DMVAE, Lee & Pavlovic (2021): an ELBO for every source of z.

    Every modality has a private latent vector w_m beside the shared z. The sum of

        E [sum_m log p(x_m|z, w_m)] - KL(q(z|x_A)||p(z)) - sum_m KL(q_m(w|x_m)||p(w))

    over the subsets A that z may be inferred from: all modalities (a product of
    experts), and every modality alone. Each is a bound on log p(X), in which every
    modality is decoded with its own w_m ~ q_m(w|x_m); one sample of it serves all,
    as released. The bound of all modalities is `elbo` of the terms, the others are
    auxiliary.

    Args:
      experts: fields [M, B, d + e], q_m(z|x_m) q_m(w|x_m), shared dimensions first.
      batch: modality -> [B, ...].
      key: random key.
      shared_dim: d.
      sources: the subsets A, the one of all modalities first; weights are not used.
      log_likelihoods: modality -> function ([z, w] [N, d + e], x_m) -> [N].

    Returns:
      ObjectiveTerms, fields [B].
    """
    shared_key, private_key = jax.random.split(key)
    shared, private = distributions.split(experts, shared_dim)
    components = posteriors.subset_posteriors(shared, sources)
    z = distributions.sample(components, shared_key)
    w = distributions.sample(private, private_key)
    values = {}
    for i, (m, f) in enumerate(log_likelihoods.items()):
        own = jnp.broadcast_to(w[i], (len(z), *w[i].shape))
        values[m] = _fold_samples(f, distributions.join(z, own), batch[m])
    kl = distributions.kl_to_standard_gaussian(components)
    kl += jnp.sum(distributions.kl_to_standard_gaussian(private), axis=0)
    return ObjectiveTerms(
        log_likelihood={m: x[0] for m, x in values.items()},
        kl=kl[0],
        auxiliary_log_likelihood=sum(jnp.sum(x[1:], axis=0) for x in values.values()),
        auxiliary_kl=jnp.sum(kl[1:], axis=0),
    )


@jax.custom_vjp
def scale_gradient(z: Array, scale: Array) -> Array:
    """z itself, whose gradient is multiplied by `scale` (broadcast, a constant)."""
    del scale
    return z


def _scale_gradient_forward(z: Array, scale: Array) -> tuple[Array, Array]:
    return z, scale


def _scale_gradient_backward(scale: Array, gradient: Array) -> tuple[Array, Array]:
    return gradient * scale, jnp.zeros_like(scale)


scale_gradient.defvjp(_scale_gradient_forward, _scale_gradient_backward)


def _fold_samples(
    log_likelihood: Callable[[Array, Array], Array], z: Array, x: Array
) -> Array:
    """log p(x|z) [..., B] of z [..., B, D] and x [B, ...]: one call for all samples."""
    num_samples = math.prod(z.shape[:-2])
    repeated = jnp.broadcast_to(x, (num_samples, *x.shape)).reshape(-1, *x.shape[1:])
    return log_likelihood(z.reshape(-1, z.shape[-1]), repeated).reshape(z.shape[:-1])
