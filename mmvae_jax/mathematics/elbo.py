"""Objectives: functions of experts that return named terms per example, in nats.

This file has the objectives of several models. The objective of a single model is in
the model's file in `models`.

Each function takes `log_likelihoods`, modality -> function (z [N, D], x [N, ...])
-> [N], the decoder followed by its likelihood. beta appears only in `loss`, which
weights the terms, and in the importance-weighted objectives (`importance` and
`models.mmvae_plus`), where it is inside the logarithm.

If an example misses modalities (`batch[OBSERVED]`), terms, products, subsets and means
are over its observed modalities. docs/models.md lists where this differs from the model
of these modalities alone.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions, posteriors, subset_kl
from mmvae_jax.mathematics.components import (
    chosen_posteriors,
    random_components,
    stratified_components,
)
from mmvae_jax.mathematics.subsets import SubsetMixture
from mmvae_jax.types import (
    OBSERVED,
    AnyArray,
    Array,
    Batch,
    Gaussian,
    ObjectiveTerms,
    PRNGKey,
)

LogLikelihoods = Mapping[str, Callable[[Array, AnyArray], Array]]

SUBSET_ESTIMATORS = ("stratified", "random", "exact")


class TermWeights(NamedTuple):
    """Weights of the `ObjectiveTerms` in a model's loss, without beta.

    Floats, or [B] if they depend on the observed modalities of an example. The terms
    themselves are never weighted: their `elbo` is a bound for any weights.

    Attributes:
      log_likelihood: weight of the reconstruction terms of the bound.
      kl: weight of the KL terms of the bound; times beta in the loss.
      auxiliary_log_likelihood: weight of the reconstruction terms outside the bound.
      auxiliary_kl: weight of the KL terms outside the bound; times beta in the loss.
    """

    log_likelihood: float | Array = 1.0
    kl: float | Array = 1.0
    auxiliary_log_likelihood: float | Array = 1.0
    auxiliary_kl: float | Array = 1.0


_PLAIN_SUM = TermWeights()


def loss(
    terms: ObjectiveTerms, beta: Array, weights: TermWeights = _PLAIN_SUM
) -> Array:
    """The loss minimised in training: minus the beta-weighted objective; nats [].

    Higgins et al. (2017): beta weights only the KL terms.
    """
    gain = (
        weights.log_likelihood * total(terms.log_likelihood.values())
        + weights.auxiliary_log_likelihood * terms.auxiliary_log_likelihood
    )
    kl = weights.kl * terms.kl + weights.auxiliary_kl * terms.auxiliary_kl
    return jnp.mean(beta * kl - gain)


def elbo(terms: ObjectiveTerms) -> Array:
    """The bound on log p(X) per example (beta = 1, no auxiliary term); nats [B]."""
    return total(terms.log_likelihood.values()) - terms.kl


def total(values: Iterable[Array]) -> Array:
    """The sum of one or more arrays of one shape."""
    return reduce(operator.add, values)


def observed_of(batch: Batch, num_modalities: int) -> AnyArray:
    """Observed modalities of a batch: bool [M, B], or [M, 1] if nothing is missing."""
    if OBSERVED in batch:
        return batch[OBSERVED].T
    return np.ones((num_modalities, 1), bool)


def observed_terms(values: Mapping[str, Array], observed: AnyArray) -> dict[str, Array]:
    """Terms [..., B] of each modality, 0 if missing; observed bool [M, 1 or B]."""
    pairs = zip(values.items(), observed, strict=True)
    return {m: jnp.where(row, value, 0.0) for (m, value), row in pairs}


def observed_sum(values: Array, observed: AnyArray) -> Array:
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
    """L_S of Definition 3 (Eq. 2): MVAE, MMVAE, MoPoE-VAE, by their subsets.

    The bound also holds for other poolings of experts.

    L_S = sum_A omega_A { E_{q(z|x_A)} [sum_m log p(x_m|z)] - KL(q(z|x_A)||p(z)) }.
    The KL terms of all S subsets are exact for every estimator.

    Args:
      experts: fields [M, B, D].
      batch: modality -> [B, ...].
      key: random key.
      mixture: the subsets and their weights.
      log_likelihoods: one function per modality (module docstring).
      estimator: of the expectation over subsets. "stratified": one decoding per
        example, from a subset drawn balanced over the batch (as published, but balanced
        to +-1); "random": one decoding, from an independently drawn subset; "exact":
        S decodings per example.

    Returns:
      ObjectiveTerms, fields [B].

    Raises:
      UsageError: the estimator is unknown.
    """
    observed = observed_of(batch, len(log_likelihoods))
    given = posteriors.available_subsets(mixture, observed)
    num_subsets = len(mixture.weights)
    if mixture.pooling.name != "product":
        components, weights = posteriors.observed_mixture(experts, mixture, observed)
        kl = distributions.kl_to_standard_gaussian(components)
        kl = jnp.sum(weights * kl, axis=0)
    else:
        kl = subset_kl.mixture_kl(experts, mixture, given.weights[:num_subsets])
        if len(given.weights) > num_subsets:
            rest = posteriors.product_of_experts(
                experts, given.masks[-1], given.prior_expert[-1]
            )
            kl += given.weights[-1] * distributions.kl_to_standard_gaussian(rest)
    log_likelihood = mixture_log_likelihood(
        lambda: posteriors.observed_mixture(experts, mixture, observed)[0],
        partial(chosen_posteriors, experts, given),
        given.weights,
        batch,
        key,
        log_likelihoods,
        estimator,
    )
    zeros = jnp.zeros_like(kl)
    return ObjectiveTerms(log_likelihood, kl, zeros, zeros)


def mixture_log_likelihood(
    all_components: Callable[[], Gaussian],
    chosen_components: Callable[[Array], Gaussian],
    weights: AnyArray,
    batch: Batch,
    key: PRNGKey,
    log_likelihoods: LogLikelihoods,
    estimator: str,
) -> dict[str, Array]:
    """modality -> [B], E[log p(x_m|z)] over a mixture of S components.

    Args:
      all_components: () -> fields [S, B, D].
      chosen_components: components [B], one per example -> fields [B, D].
      weights: [S, 1 or B].
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: one function per modality (module docstring).
      estimator: one of SUBSET_ESTIMATORS, see `subset_elbo`.
    """
    if estimator not in SUBSET_ESTIMATORS:
        raise UsageError(
            f"unknown estimator of subsets {estimator!r}; choose one of "
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
        "stratified": stratified_components,
        "random": random_components,
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

    L(x) + sum_i L(x_i): the ELBO of the full set plus the unnormalised sum of the
    unimodal ELBOs, without reconstruction across modalities. It is not a bound on
    log p(X) (Wu & Goodman, 2019). Therefore the unimodal terms are auxiliary, and
    `elbo` of the result is that of the full set.

    Args:
      experts: fields [M, B, D].
      batch: modality -> [B, ...].
      key: random key.
      mixture: the full set (`subsets.full_set`). If the prior is an expert of it, the
        prior is an expert of the unimodal posteriors too.
      log_likelihoods: one function per modality (module docstring).

    Returns:
      ObjectiveTerms, fields [B].
    """
    joint_key, unimodal_key = jax.random.split(key)
    joint = subset_elbo(
        experts, batch, joint_key, mixture=mixture, log_likelihoods=log_likelihoods
    )
    components = single_posteriors(experts, bool(mixture.prior_expert.all()))
    z = distributions.sample(components, unimodal_key)
    observed = observed_of(batch, len(log_likelihoods))
    gains = observed_terms(own_terms(z, batch, log_likelihoods), observed)
    kl = observed_sum(distributions.kl_to_standard_gaussian(components), observed)
    return joint._replace(
        auxiliary_log_likelihood=total(gains.values()), auxiliary_kl=kl
    )


def single_posteriors(experts: Gaussian, is_with_prior: bool) -> Gaussian:
    """The M unimodal posteriors: the experts, or their products with the prior."""
    num_modalities = experts.mean.shape[0]
    singles = SubsetMixture(
        masks=np.eye(num_modalities, dtype=bool),
        weights=np.ones(num_modalities, np.float32),
        prior_expert=np.full(num_modalities, is_with_prior),
    )
    return subset_kl.subset_posteriors(experts, singles)


def own_terms(
    z: Array, batch: Batch, log_likelihoods: LogLikelihoods
) -> dict[str, Array]:
    """modality -> log p(x_m|z_m) [B], each modality from its row of z [M, B, D]."""
    return {m: f(z[i], batch[m]) for i, (m, f) in enumerate(log_likelihoods.items())}


def unimodal_elbos(
    experts: Gaussian,
    batch: Batch,
    key: PRNGKey,
    *,
    log_likelihoods: LogLikelihoods,
) -> ObjectiveTerms:
    """The objective of M independent VAEs with separate latent spaces.

    Args:
      experts: fields [M, B, d], q(z_m|x_m); d is the latent size of one VAE.
      batch: modality -> [B, ...].
      key: random key.
      log_likelihoods: modality -> function (z_m [B, d], x_m) -> [B].

    Returns:
      ObjectiveTerms; their elbo is the sum of the M ELBOs, a bound on sum_m log p(x_m),
      which is log p(X) for independent modalities.
    """
    z = distributions.sample(experts, key)
    observed = observed_of(batch, len(log_likelihoods))
    log_likelihood = observed_terms(own_terms(z, batch, log_likelihoods), observed)
    kl = observed_sum(distributions.kl_to_standard_gaussian(experts), observed)
    zeros = jnp.zeros_like(kl)
    return ObjectiveTerms(log_likelihood, kl, zeros, zeros)


def fold_samples(
    log_likelihood: Callable[[Array, AnyArray], Array], z: Array, x: AnyArray
) -> Array:
    """log p(x|z) [..., B] of z [..., B, D] and x [B, ...], in one call."""
    *shape, num_examples, dim = z.shape
    num_samples = math.prod(shape)
    # Keep the samples of an example together, so that a sharded batch stays sharded.
    folded = jnp.moveaxis(z.reshape(num_samples, num_examples, dim), 0, 1)
    repeated = jnp.repeat(x, num_samples, axis=0)
    values = log_likelihood(folded.reshape(-1, dim), repeated)
    return values.reshape(num_examples, num_samples).T.reshape(z.shape[:-1])
