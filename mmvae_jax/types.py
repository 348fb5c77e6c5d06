"""Types shared by the whole package, and the legend of axis letters.

Axis letters used in docstrings:

    B batch   M modalities   S subsets   K sweep members   D latent dimensions
    L importance samples     H W C image height, width, channels

In importance-weighted objectives, K is the number of samples instead: models are
functions of one member, so that objectives have no axis of sweep members.

Notation: the paper (Daunhawer et al., 2022) follows the variational information
bottleneck and writes p_theta(z|x) for the encoder and q_phi(x|z) for the decoder. In
the code, *expert* is the posterior of one modality, *posterior* that of a subset, and
*likelihood* the decoder.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

Array = jax.Array
# For functions that also take NumPy arrays.
AnyArray = jax.Array | np.ndarray
PRNGKey = jax.Array
Params = Any
Shape = tuple[int, ...]
Batch = Mapping[str, AnyArray]

# Optional key of a batch: which modalities are observed, bool [B, M], at least one in
# each row. The values of a missing modality are ignored.
OBSERVED = "observed"

# The part of the latent vector that is shared by all modalities.
SHARED = "shared"

# The default source of unconditional examples.
PRIOR = "prior"


class TokenShape(NamedTuple):
    """The shape of one sequence of tokens, int32 [T].

    As a tuple it is [T, V], the shape of the decoded probabilities.

    Attributes:
      length: T, positions.
      num_words: V, the size of the vocabulary; tokens are 0..V-1.
    """

    length: int
    num_words: int


class Support(NamedTuple):
    """The values for which a likelihood is defined.

    Attributes:
      words: description of the values for messages: "numbers in [0, 1]".
      least: smallest value.
      largest: largest value.
      is_whole: whether only whole numbers are allowed.
    """

    words: str
    least: float = -math.inf
    largest: float = math.inf
    is_whole: bool = False

    def holds(self, x: Any) -> Any:
        """Whether each value [...] is in the support, bool [...]; NaN never is."""
        inside = (x >= self.least) & (x <= self.largest) & (abs(x) < math.inf)
        return inside & (x == x.round()) if self.is_whole else inside


class Gaussian(NamedTuple):
    """A diagonal Gaussian.

    Log-variances instead of scales, because encoders return them and products of
    experts add precisions, exp(-log_variance), in log space.

    Attributes:
      mean: float [..., D].
      log_variance: float [..., D], log of the squared standard deviation.
    """

    mean: Array
    log_variance: Array


class Laplace(NamedTuple):
    """A diagonal Laplace distribution.

    Attributes:
      mean: float [..., D].
      log_scale: float [..., D], log of b in exp(-|z - mean| / b) / (2 b).
    """

    mean: Array
    log_scale: Array


Distribution = Gaussian | Laplace
# For functions that return the family of distributions that they are given.
Family = TypeVar("Family", bound=Distribution)


class Hyper(NamedTuple):
    """Hyperparameters that a sweep varies: traced arguments, not constants.

    Attributes:
      beta: weight of the KL terms in the loss; float [] ([K] for a sweep).
      learning_rate: step size of Adam; float [] ([K] for a sweep).
      step: int32 [], number of steps taken, for an objective with a `Schedule`; set by
        the train step, not by the sweep.
    """

    beta: Array
    learning_rate: Array
    step: Array | None = None


class Schedule(NamedTuple):
    """How the objective of a model changes during training.

    Attributes:
      num_steps: number of steps after which the objective is constant.
      words: description of the change, for the log.
    """

    num_steps: int
    words: str


class Stage(NamedTuple):
    """One of the consecutive stages in which a model is trained.

    Attributes:
      name: name of the stage, for the log.
      end: number of steps of the run -> the step at which the stage ends and the next
        one begins. The last stage ends with the run.
      objective: (params, batch, key, beta) -> (loss [], terms), as
        `MultimodalVAE.objective`; terms may also be metrics, name -> [].
      learns: the entries of the parameters that the stage trains, with a new state of
        Adam; all other entries stay fixed.
      begin: (params, fold) -> params, applied before the first step. It may use all
        training examples and must be idempotent.
        fold: (function (carry, batch) -> carry, first carry) -> carry, over batches
        that contain every training example once.
      after_step: (params, batch, n) -> params, applied after every step to its batch,
        for instance a moving average of parameters; n: earlier steps of the stage, [].
      learning_rate: (steps taken in the stage [], steps of the stage) -> factor [].
      has_beta: whether the objective depends on beta.
    """

    name: str
    end: Callable[[int], int]
    objective: Callable[..., tuple[Array, Any]]
    learns: tuple[str, ...]
    begin: Callable[..., Params] | None = None
    after_step: Callable[[Params, Batch, Array], Params] | None = None
    learning_rate: Callable[[Array, int], Array] | None = None
    has_beta: bool = True


class ObjectiveTerms(NamedTuple):
    """The unweighted terms of an objective, per example, in nats.

    The loss applies beta and the weights of the model (`elbo.TermWeights`). Only
    `auxiliary_log_likelihood`, a sum over modalities for the loss alone, contains the
    weights of the modalities (config.modality.likelihood_weight).

    Attributes:
      log_likelihood: modality -> [B], the terms E[log p(x_m|z)] of the bound.
      kl: [B], the KL terms of the same bound: elbo = sum_m log_likelihood - kl.
      auxiliary_log_likelihood: [B], the terms of the objective outside the bound on
        log p(X), for instance the unimodal terms of MVAE+.
      auxiliary_kl: [B], likewise; beta weights it as it does `kl`.
    """

    log_likelihood: Mapping[str, Array]
    kl: Array
    auxiliary_log_likelihood: Array
    auxiliary_kl: Array


class MultimodalVAE(NamedTuple):
    """A model: pure functions of parameters, for one sweep member.

    `experts` is the output of `encode`, a Gaussian (or Laplace) with fields [M, B, D];
    posteriors have the same type. A model with a joint encoder may have other rows
    (`models.coordination`), which only its own posteriors read. `subset` is a bool mask
    of the observed modalities, [M] or per example [M, B]; it may be traced. If the
    batch has OBSERVED, missing modalities have no expert, no term and no influence.

    Attributes:
      modalities: names in the order of the M axis.
      latent_dim: D.
      init: key -> params.
      objective: (params, batch, key, beta) -> (loss [], ObjectiveTerms), the loss to
        minimise, in nats, and the terms of a bound on log p(X) (the single-sample
        bound, if the objective is importance-weighted); batch: modality ->
        float [B, ...] as the likelihood expects it (images in [0, 1]). With a
        `schedule`, the optional fifth argument is the number of steps taken, int32 [];
        default: the end of the schedule.
      encode: (params, batch) -> experts.
      posterior: (params, experts, subset, key) -> Distribution [B, D], q(z|x_A). For a
        mixture, `key` draws the component of each example, stratified over the batch.
      mixture_posterior: (params, experts, subset) -> (Distribution [S, B, D],
        weights [S, 1 or B]), all components that training decodes from. With
        `draws_missing`, the posterior in the ELBO: N(0, I) for missing latents.
      posterior_components: likewise, all components that `posterior` draws from. They
        may differ: MoPoE-VAE trains on the products of all observed subsets, and its
        `posterior` is the product of all observed modalities.
      decode: (params, z [B, D]) -> modality -> [B, ...], the mean of the likelihood,
        shown and evaluated as the generated example.
      log_likelihood: (params, z [B, D], batch) -> modality -> [B], nats; 0 for missing
        modalities.
      sample_prior: (params, key, num) -> z [num, D]; a prior may be learned.
      log_prior: (params, z [..., D]) -> [...], nats. With `draws_missing` it takes an
        optional subset: then the density of the observed latents of z [B, D], times
        N(0, I) of the others.
      convolutions: forms of `layers` in which the networks execute convolutions.
      latent_parts: (name, number of dimensions) in the order of the D axis: SHARED, or
        the name of a modality for its private part.
      supports: modality -> Support of its likelihood, for images scaled to [0, 1].
      deviation: (params, z [B, D]) -> modality -> [B, ...], the likelihood's standard
        deviation, in the units of `decode`; tokens have none.
      sample_likelihood: (params, z [B, D], key) -> modality -> [B, ...], one draw of
        the likelihood, in the units of `decode`; tokens are int [B, T].
      schedule: how the objective changes during training; None: it does not.
      stages: stages of the training; (): one stage with `objective`.
      draws_missing: whether `posterior` draws the latents of missing modalities, from a
        distribution without a known density, and returns a Gaussian around the draw.
      sampler: the source of `sample_prior`: PRIOR, or the name of a density fitted to
        latents (`evaluation.samplers`).
    """

    modalities: tuple[str, ...]
    latent_dim: int
    init: Callable[..., Params]
    objective: Callable[..., tuple[Array, ObjectiveTerms]]
    encode: Callable[..., Distribution]
    posterior: Callable[..., Distribution]
    mixture_posterior: Callable[..., tuple[Distribution, AnyArray]]
    posterior_components: Callable[..., tuple[Distribution, AnyArray]]
    decode: Callable[..., Mapping[str, Array]]
    log_likelihood: Callable[..., Mapping[str, Array]]
    sample_prior: Callable[..., Array]
    log_prior: Callable[..., Array]
    convolutions: frozenset[str] = frozenset()
    latent_parts: tuple[tuple[str, int], ...] = ()
    supports: Mapping[str, Support] = MappingProxyType({})
    deviation: Callable[..., Mapping[str, Array]] = lambda params, z: {}
    sample_likelihood: Callable[..., Mapping[str, Array]] = lambda params, z, key: {}
    schedule: Schedule | None = None
    stages: tuple[Stage, ...] = ()
    draws_missing: bool = False
    sampler: str = PRIOR
