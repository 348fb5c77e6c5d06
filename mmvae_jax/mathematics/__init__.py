"""The mathematics of multimodal VAEs, as functions of arrays.

distributions  log-densities, samples and KL divergences; likelihoods of the modalities
subsets        the family of mixture-based models as arrays (Definition 2)
posteriors     products, other pools and mixtures of experts; modalities may be missing
components     draws of one mixture component per example
elbo           the terms of an objective, the loss, Eq. 2, Eq. 84, unimodal ELBOs
subset_kl      the KL terms of Eq. 2 over all subsets, in a fast and a plain form
importance     the importance-weighted objective of the released MMVAE
flows          rectified flows: their loss, guidance, solvers and density; whitening
theory         the theorem on sub-sampling, for a known joint pmf
"""
