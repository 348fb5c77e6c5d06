"""One function per objective: experts in, named terms per example out, in nats.

Each function takes `log_likelihoods`, modality -> function (z [N, D], x [N, ...])
-> [N], the decoder followed by its likelihood. beta appears only in `loss`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from mmvae_jax import distributions, posteriors
from mmvae_jax.errors import UsageError
from mmvae_jax.subsets import SubsetMixture
from mmvae_jax.types import Array, Batch, Gaussian, ObjectiveTerms, PRNGKey

LogLikelihoods = Mapping[str, Callable[[Array, Array], Array]]

SUBSET_ESTIMATORS = ("stratified", "random", "exact")


def loss(terms: ObjectiveTerms, beta: Array) -> Array:
    """The loss minimised in training: minus the beta-weighted objective; nats [].

    Higgins et al. (2017): beta weights the KL terms and nothing else.
    """
    gain = sum(terms.log_likelihood.values()) + terms.auxiliary_log_likelihood
    return jnp.mean(beta * (terms.kl + terms.auxiliary_kl) - gain)


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
    if estimator not in SUBSET_ESTIMATORS:
        raise UsageError(
            f"unknown config.objective.subset_estimator {estimator!r}; choose one of "
            f"{', '.join(SUBSET_ESTIMATORS)}"
        )
    weights = jnp.asarray(mixture.weights)
    components = posteriors.subset_posteriors(experts, mixture)
    kl = weights @ distributions.kl_to_standard_gaussian(components)
    subset_key, noise_key = jax.random.split(key)
    if estimator == "exact":
        z = distributions.gaussian_sample(noise_key, components)
        log_likelihood = _expected_over_subsets(z, weights, batch, log_likelihoods)
    else:
        draw = {
            "stratified": posteriors.stratified_components,
            "random": posteriors.random_components,
        }[estimator]
        indices = draw(subset_key, weights, kl.shape[0])
        chosen = posteriors.gather_components(components, indices)
        z = distributions.gaussian_sample(noise_key, chosen)
        log_likelihood = {m: f(z, batch[m]) for m, f in log_likelihoods.items()}
    zeros = jnp.zeros_like(kl)
    return ObjectiveTerms(log_likelihood, kl, zeros, zeros)


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
    z = distributions.gaussian_sample(unimodal_key, components)
    gains = [f(z[i], batch[m]) for i, (m, f) in enumerate(log_likelihoods.items())]
    kl = jnp.sum(distributions.kl_to_standard_gaussian(components), axis=0)
    return joint._replace(auxiliary_log_likelihood=sum(gains), auxiliary_kl=kl)


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
    z = distributions.gaussian_sample(key, experts)
    log_likelihood = {
        m: f(z[i], batch[m]) for i, (m, f) in enumerate(log_likelihoods.items())
    }
    kl = jnp.sum(distributions.kl_to_standard_gaussian(experts), axis=0)
    zeros = jnp.zeros_like(kl)
    return ObjectiveTerms(log_likelihood, kl, zeros, zeros)


def _expected_over_subsets(
    z: Array, weights: Array, batch: Batch, log_likelihoods: LogLikelihoods
) -> dict[str, Array]:
    """Decodes z [S, B, D] with S folded into the batch; weighted sums [B]."""
    num_subsets, num = z.shape[:2]
    flat = z.reshape(num_subsets * num, -1)
    expected = {}
    for modality, log_likelihood in log_likelihoods.items():
        x = batch[modality]
        x = jnp.broadcast_to(x, (num_subsets, *x.shape)).reshape(-1, *x.shape[1:])
        expected[modality] = weights @ log_likelihood(flat, x).reshape(num_subsets, num)
    return expected
