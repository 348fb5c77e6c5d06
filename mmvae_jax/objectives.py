"""One function per objective: experts in, named terms per example out, in nats.

Each function takes `log_likelihoods`, modality -> function (z [N, D], x [N, ...])
-> [N], the decoder followed by its likelihood. beta appears only in `loss`, which
weights the terms, and in the importance-weighted objectives (`importance`), where
it is inside of the logarithm.

Of an example that misses modalities (`batch[OBSERVED]`), every objective is the one
of the modalities that are there: their terms alone, products of their experts,
subsets and means of them.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax import distributions, posteriors
from mmvae_jax.errors import UsageError
from mmvae_jax.subsets import SubsetMixture
from mmvae_jax.types import (
    OBSERVED,
    Array,
    Batch,
    Gaussian,
    ObjectiveTerms,
    PRNGKey,
)

LogLikelihoods = Mapping[str, Callable[[Array, Array], Array]]

SUBSET_ESTIMATORS = ("stratified", "random", "exact")


class TermWeights(NamedTuple):
    """A model's own weights of the `ObjectiveTerms` in its loss, without beta.

    All are 1 where an objective is a plain sum of its terms. The terms themselves
    are never weighted, so that `elbo` of them is a bound whatever the weights are.
    Floats, or [B] where they depend on what is observed of an example.

    Attributes:
      log_likelihood: of the reconstruction terms of the bound.
      kl: of the KL terms of the bound; times beta in the loss.
      auxiliary_log_likelihood: of what is no part of the bound, likewise.
      auxiliary_kl: likewise; times beta in the loss.
    """

    log_likelihood: float | Array = 1.0
    kl: float | Array = 1.0
    auxiliary_log_likelihood: float | Array = 1.0
    auxiliary_kl: float | Array = 1.0


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


def observed_of(batch: Batch, num_modalities: int) -> Array:
    """What is observed of a batch: bool [M, B], or [M, 1] where nothing is missing."""
    if OBSERVED in batch:
        return batch[OBSERVED].T
    return np.ones((num_modalities, 1), bool)


def observed_terms(values: Mapping[str, Array], observed: Array) -> dict[str, Array]:
    """Terms [..., B] of each modality, 0 where it is missing; observed [M, 1 or B]."""
    pairs = zip(values.items(), observed, strict=True)
    return {m: jnp.where(row, value, 0.0) for (m, value), row in pairs}


def observed_sum(values: Array, observed: Array) -> Array:
    """The sum over the observed modalities of values [M, B]; [B]."""
    return jnp.sum(jnp.where(observed, values, 0.0), axis=0)


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
    observed = observed_of(batch, len(log_likelihoods))
    given = posteriors.available_subsets(mixture, observed)
    num_subsets = len(mixture.weights)
    kl = posteriors.mixture_kl(experts, mixture, given.weights[:num_subsets])
    if len(given.weights) > num_subsets:
        rest = posteriors.product_of_experts(
            experts, given.masks[-1], given.prior_expert[-1]
        )
        kl += given.weights[-1] * distributions.kl_to_standard_gaussian(rest)
    log_likelihood = _mixture_log_likelihood(
        lambda: posteriors.observed_mixture(experts, mixture, observed)[0],
        partial(posteriors.chosen_products, experts, given),
        given.weights,
        batch,
        key,
        log_likelihoods,
        estimator,
    )
    zeros = jnp.zeros_like(kl)
    return ObjectiveTerms(log_likelihood, kl, zeros, zeros)


def _mixture_log_likelihood(
    all_components: Callable[[], Gaussian],
    chosen_components: Callable[[Array], Gaussian],
    weights: Array,
    batch: Batch,
    key: PRNGKey,
    log_likelihoods: LogLikelihoods,
    estimator: str,
) -> dict[str, Array]:
    """modality -> [B], E[log p(x_m|z)] over a mixture of S components.

    Args:
      all_components: () -> fields [S, B, D].
      chosen_components: components [B], one an example -> fields [B, D].
      weights: [S, 1 or B].
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: one function a modality (module docstring).
      estimator: one of SUBSET_ESTIMATORS, as `subset_elbo` explains them.
    """
    if estimator not in SUBSET_ESTIMATORS:
        raise UsageError(
            f"unknown config.objective.subset_estimator {estimator!r}; choose one of "
            f"{', '.join(SUBSET_ESTIMATORS)}"
        )
    subset_key, noise_key = jax.random.split(key)
    observed = observed_of(batch, len(log_likelihoods))
    if estimator == "exact":
        z = distributions.sample(all_components(), noise_key)
        values = {
            m: jnp.sum(weights * fold_samples(f, z, batch[m]), axis=0)
            for m, f in log_likelihoods.items()
        }
        return observed_terms(values, observed)
    draw = {
        "stratified": posteriors.stratified_components,
        "random": posteriors.random_components,
    }[estimator]
    num_examples = len(jax.tree.leaves(batch)[0])
    indices = draw(subset_key, weights, num_examples)
    z = distributions.sample(chosen_components(indices), noise_key)
    values = {m: f(z, batch[m]) for m, f in log_likelihoods.items()}
    return observed_terms(values, observed)


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
    components = _single_posteriors(experts, bool(mixture.prior_expert.all()))
    z = distributions.sample(components, unimodal_key)
    observed = observed_of(batch, len(log_likelihoods))
    gains = observed_terms(_own_terms(z, batch, log_likelihoods), observed)
    kl = observed_sum(distributions.kl_to_standard_gaussian(components), observed)
    return joint._replace(auxiliary_log_likelihood=sum(gains.values()), auxiliary_kl=kl)


def _single_posteriors(experts: Gaussian, is_with_prior: bool) -> Gaussian:
    """The M unimodal posteriors: the experts, or their products with the prior."""
    num_modalities = experts.mean.shape[0]
    singles = SubsetMixture(
        masks=np.eye(num_modalities, dtype=bool),
        weights=np.ones(num_modalities, np.float32),
        prior_expert=np.full(num_modalities, is_with_prior),
    )
    return posteriors.subset_posteriors(experts, singles)


def _own_terms(
    z: Array, batch: Batch, log_likelihoods: LogLikelihoods
) -> dict[str, Array]:
    """modality -> log p(x_m|z_m) [B], each modality from its row of z [M, B, D]."""
    return {m: f(z[i], batch[m]) for i, (m, f) in enumerate(log_likelihoods.items())}


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
      joint: q_J, fields [B, D], given whatever is observed of each example.
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
    observed = observed_of(batch, len(log_likelihoods))
    z = distributions.sample(joint, joint_key)
    values = {m: f(z, batch[m]) for m, f in log_likelihoods.items()}
    log_likelihood = observed_terms(values, observed)
    kl = distributions.kl_to_standard_gaussian(joint)
    gain = auxiliary_kl = jnp.zeros_like(kl)
    if unimodal_log_likelihoods is not None:
        z = distributions.sample(experts, unimodal_key)
        own = _own_terms(z, batch, unimodal_log_likelihoods)
        gain = sum(observed_terms(own, observed).values())
    if experts is not None:
        divergences = (
            distributions.gaussian_kl(joint, experts)
            if is_coordinated
            else distributions.kl_to_standard_gaussian(experts)
        )
        auxiliary_kl = observed_sum(divergences, observed)
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
    observed = observed_of(batch, len(log_likelihoods))
    prior = jax.tree.map(lambda field: jnp.zeros_like(field[:1]), experts)
    components = jax.tree.map(lambda *rows: jnp.concatenate(rows), experts, prior)
    is_component = jnp.concatenate([observed, jnp.ones_like(observed[:1])])
    uniform = posteriors.uniform_weights(is_component)
    dynamic_prior = posteriors.geometric_mean(components, uniform)
    divergences = distributions.gaussian_kl(components, dynamic_prior)
    divergence = jnp.sum(uniform * divergences, axis=0)
    decoded, weights = components, uniform
    if not decode_prior:
        decoded, weights = experts, posteriors.uniform_weights(observed)
    log_likelihood = _mixture_log_likelihood(
        lambda: decoded,
        partial(posteriors.gather_components, decoded),
        weights,
        batch,
        key,
        log_likelihoods,
        estimator,
    )
    kl = jnp.sum(weights * distributions.kl_to_standard_gaussian(decoded), axis=0)
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
    observed = observed_of(batch, len(log_likelihoods))
    log_likelihood = observed_terms(_own_terms(z, batch, log_likelihoods), observed)
    kl = observed_sum(distributions.kl_to_standard_gaussian(experts), observed)
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
    observed = observed_of(batch, len(log_likelihoods))
    is_pair = observed[:, None] & observed[None]
    total = jnp.sum(jnp.where(is_pair, pairs, 0.0), axis=(0, 1))
    return terms._replace(auxiliary_kl=posteriors.share_of_each(observed) * total)


def private_shared_elbos(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    joint: Gaussian,
    shared_dim: int,
    is_single_with_prior: bool,
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
      joint: q(z|X), fields [B, d], given whatever is observed of each example.
      shared_dim: d.
      is_single_with_prior: whether q(z|x_m) is the expert's product with the prior.
      log_likelihoods: modality -> function ([z, w] [N, d + e], x_m) -> [N].

    Returns:
      ObjectiveTerms, fields [B].
    """
    shared_key, private_key = jax.random.split(key)
    shared, private = distributions.split(experts, shared_dim)
    observed = observed_of(batch, len(log_likelihoods))
    singles = _single_posteriors(shared, is_single_with_prior)
    components = jax.tree.map(
        lambda row, rows: jnp.concatenate([row[None], rows]), joint, singles
    )
    z = distributions.sample(components, shared_key)
    w = distributions.sample(private, private_key)
    values = {}
    for i, (m, f) in enumerate(log_likelihoods.items()):
        own = jnp.broadcast_to(w[i], (len(z), *w[i].shape))
        values[m] = fold_samples(f, distributions.join(z, own), batch[m])
    values = observed_terms(values, observed)
    kl = distributions.kl_to_standard_gaussian(components)
    kl += observed_sum(distributions.kl_to_standard_gaussian(private), observed)
    gains = [observed_sum(x[1:], observed) for x in values.values()]
    return ObjectiveTerms(
        log_likelihood={m: x[0] for m, x in values.items()},
        kl=kl[0],
        auxiliary_log_likelihood=sum(gains),
        auxiliary_kl=observed_sum(kl[1:], observed),
    )


def fold_samples(
    log_likelihood: Callable[[Array, Array], Array], z: Array, x: Array
) -> Array:
    """log p(x|z) [..., B] of z [..., B, D] and x [B, ...]: one call for all samples."""
    *shape, num_examples, dim = z.shape
    num_samples = math.prod(shape)
    # The samples of an example next to one another: a batch that is spread over
    # devices stays where it is.
    folded = jnp.moveaxis(z.reshape(num_samples, num_examples, dim), 0, 1)
    repeated = jnp.repeat(x, num_samples, axis=0)
    values = log_likelihood(folded.reshape(-1, dim), repeated)
    return values.reshape(num_examples, num_samples).T.reshape(z.shape[:-1])
