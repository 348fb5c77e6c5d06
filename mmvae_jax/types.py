"""Types shared by the whole package, and the legend of axis letters.

Axis letters used in docstrings:

    B batch   M modalities   S subsets   K sweep members   D latent dimensions
    L importance samples     H W C image height, width, channels

(K also counts the samples of an importance-weighted objective: no objective sees the
members of a sweep, since models are functions of one member.)

Naming against the paper (Daunhawer et al., 2022): the paper follows the
variational information bottleneck and writes p_theta(z|x) for the encoder and
q_phi(x|z) for the decoder. The code uses the words: *expert* for a unimodal
posterior, *posterior* for that of a subset, *likelihood* for the decoder.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

Array = jax.Array
# For functions that take NumPy's arrays as they are, too.
AnyArray = jax.Array | np.ndarray
PRNGKey = jax.Array
Params = Any
Shape = tuple[int, ...]
Batch = Mapping[str, AnyArray]

# The key under which a batch may tell which modalities of it are observed: bool [B, M],
# every row with at least one True. The values of a missing modality may be anything.
OBSERVED = "observed"

# The part of a latent vector that all modalities are decoded from.
SHARED = "shared"

# Source of unconditional examples, where no density was fitted in its place.
PRIOR = "prior"


class TokenShape(NamedTuple):
    """The shape of an example that is a sequence of tokens, int32 [T].

    As a tuple it is the shape of a probability for every word at every position.

    Attributes:
      length: T, positions.
      num_words: V, the size of the vocabulary; tokens are 0..V-1.
    """

    length: int
    num_words: int


class Support(NamedTuple):
    """The values to which a likelihood gives a probability.

    Attributes:
      words: what they are, for messages: "numbers in [0, 1]".
      least: the smallest.
      largest: the largest.
      is_whole: whether they are whole numbers.
    """

    words: str
    least: float = -math.inf
    largest: float = math.inf
    is_whole: bool = False

    def holds(self, x: Any) -> Any:
        """Which of the values [...] it holds, bool [...]; never NaN or infinity."""
        inside = (x >= self.least) & (x <= self.largest) & (abs(x) < math.inf)
        return inside & (x == x.round()) if self.is_whole else inside


class Gaussian(NamedTuple):
    """A diagonal Gaussian.

    Log-variances rather than scales: they are what encoders emit, and products
    of experts add precisions, exp(-log_variance), in log space.

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
# One family, for functions that return the family that they are given.
Family = TypeVar("Family", bound=Distribution)


class Hyper(NamedTuple):
    """The values that a sweep may vary on the device: traced, never compiled in.

    Attributes:
      beta: weight of the KL terms in the loss; float [] ([K] for a sweep).
      learning_rate: step size of Adam; float [] ([K] for a sweep).
      step: int32 [], steps taken, where the train step gives it to an objective that
        changes with it (`Schedule`); no sweep has it.
    """

    beta: Array
    learning_rate: Array
    step: Array | None = None


class Schedule(NamedTuple):
    """How a model's own objective changes over its training.

    Attributes:
      num_steps: steps taken, from which on it changes no more.
      words: what changes, for the log.
    """

    num_steps: int
    words: str


class Stage(NamedTuple):
    """One of the stages in which a model is trained, one after the other.

    Attributes:
      name: of the stage, for the log.
      end: steps of the whole run -> the step at which the stage ends, where the next
        begins; of the last stage they are the same.
      objective: (params, batch, key, beta) -> (loss [], terms), as
        `MultimodalVAE.objective`; or instead of ObjectiveTerms, metrics: name -> [].
      learns: the entries of the parameters that the loss trains, by an Adam of its own;
        all others are left as they are.
      begin: (params, fold) -> params, as the stage begins: a function of the parameters
        and of all training examples that gives the same when it is applied again.
        fold: (function (carry, batch) -> carry, first carry) -> carry, over batches
        that hold every training example once.
      after_step: (params, batch) -> params, after every step, for instance an average
        of them; the batch is that of the step.
      learning_rate: (steps taken in the stage [], steps of the stage) -> factor [].
    """

    name: str
    end: Callable[[int], int]
    objective: Callable[..., tuple[Array, Any]]
    learns: tuple[str, ...]
    begin: Callable[..., Params] | None = None
    after_step: Callable[[Params, Batch], Params] | None = None
    learning_rate: Callable[[Array, int], Array] | None = None


class ObjectiveTerms(NamedTuple):
    """The terms of an objective, per example, in nats, never weighted.

    The loss applies beta and a model's own weights (`elbo.TermWeights`). The
    weights between modalities (config.modality.likelihood_weight) are in one term,
    `auxiliary_log_likelihood`, a sum over modalities that only the loss uses.

    Attributes:
      log_likelihood: modality -> [B], the terms E[log p(x_m|z)] of the bound.
      kl: [B], the KL terms of the same bound: elbo = sum_m log_likelihood - kl.
      auxiliary_log_likelihood: [B], the terms of the objective that are no part of
        the bound on log p(X) (for instance the unimodal terms of MVAE+).
      auxiliary_kl: [B], likewise; beta weights it as it does `kl`.
    """

    log_likelihood: Mapping[str, Array]
    kl: Array
    auxiliary_log_likelihood: Array
    auxiliary_kl: Array


class MultimodalVAE(NamedTuple):
    """A model as data: pure functions of parameters, for one sweep member.

    `experts` is the output of `encode`, a Gaussian (or Laplace) with fields [M, B, D];
    posteriors are of the same type. A model with a joint encoder may return other rows
    (`models.coordination`), which only its own posteriors read. `subset` is a bool [M],
    the modalities that are observed, or [M, B], those observed of each example; it may
    be traced. A batch may have OBSERVED: a modality that is missing has no expert, no
    term and no influence.

    Attributes:
      modalities: names, in the order of the M axis.
      latent_dim: D.
      init: key -> params.
      objective: (params, batch, key, beta) -> (loss [], ObjectiveTerms), the loss to
        minimise, in nats, and the terms of a bound on log p(X) (a single-sample
        one, where the objective is importance-weighted); batch: modality ->
        float [B, ...] as the likelihood expects it (images in [0, 1]). With a
        `schedule` it may be given the steps taken, int32 [], as a fifth argument;
        without, it is the objective at the end of the schedule.
      encode: (params, batch) -> experts.
      posterior: (params, experts, subset, key) -> Distribution [B, D], q(z|x_A);
        where it is a mixture, the component of each example is drawn with `key`,
        stratified over the batch.
      mixture_posterior: (params, experts, subset) -> (Distribution [S, B, D],
        weights [S, 1 or B]), all the components that training decodes from; where
        missing latents are drawn, what the elbo is of, with N(0, I) in their place.
      posterior_components: likewise, all the components that `posterior` draws from:
        those of a mixture, or one. A MoPoE-VAE decodes a product alone where its
        training decodes from all products of what is observed.
      decode: (params, z [B, D]) -> modality -> [B, ...], the likelihood's mean, which
        the papers show and evaluate as the generated example.
      log_likelihood: (params, z [B, D], batch) -> modality -> [B], nats; 0 where the
        modality is missing.
      sample_prior: (params, key, num) -> z [num, D]; a prior may be learned.
      log_prior: (params, z [..., D]) -> [...], nats. Where missing latents are drawn
        it may be given a subset, too: of z [B, D], the density of the latents of what
        is observed, times N(0, I) of the others.
      convolutions: forms of `layers` in which the networks execute convolutions.
      latent_parts: (name, number of dimensions) in the order of the D axis: SHARED, and
        the name of a modality for what it has for itself.
      supports: modality -> Support of its likelihood, of images scaled to [0, 1].
      deviation: (params, z [B, D]) -> modality -> [B, ...], the likelihood's standard
        deviation, in the units of `decode`; without tokens, which have none.
      schedule: how the objective changes with the steps taken; None: it does not.
      stages: in which it is trained; () = on its objective, all at once.
      draws_missing: whether `posterior` draws what is missing, from a distribution of
        which it does not know the density: what it returns is around the draw.
      sampler: the name of what `sample_prior` draws from: PRIOR, or a density that was
        fitted to latents (`evaluation.samplers`).
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
    schedule: Schedule | None = None
    stages: tuple[Stage, ...] = ()
    draws_missing: bool = False
    sampler: str = PRIOR
