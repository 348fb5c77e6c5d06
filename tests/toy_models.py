"""Models whose metrics are known in closed form, for the tests of this folder."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.metric import EvaluationData, Reader
from mmvae_jax.types import SHARED, Gaussian, MultimodalVAE, ObjectiveTerms

NUM_CLASSES = 5


def not_used(*args):
    raise AssertionError("this metric should not call this function")


def toy_model(modalities, latent_dim, **functions):
    """A model of which only the given functions may be called."""
    functions = {
        name: functions.get(name, not_used)
        for name in MultimodalVAE._fields
        if name not in ("modalities", "latent_dim", *MultimodalVAE._field_defaults)
    } | {x: functions[x] for x in functions if x in MultimodalVAE._field_defaults}
    return MultimodalVAE(modalities, latent_dim, **functions)


def toy_split(modalities, labels):
    return Split(dict(modalities), np.asarray(labels, np.int32))


class LinearGaussian:
    """x_m = W_m z + noise with z ~ N(0, I): log p(X) and p(z|X) are Gaussian.

    The columns of the stacked W are orthogonal, so that p(z|X) is diagonal. The
    model's posterior is a mixture of one component per modality, each equal to
    p(z|X), shifted by `shifts[m]` and with its variance times `scales[m]`.
    """

    modalities = ("m0", "m1")
    noise_variance = 0.05

    def __init__(self, shifts=(0.0, 0.0), scales=(1.0, 1.0), weights=(0.5, 0.5)):
        rng = np.random.default_rng(0)
        basis, _ = np.linalg.qr(rng.standard_normal((6, 2)))
        self.loadings = basis * np.array([1.3, 0.6])
        self.variance = 1 / (1 + (self.loadings**2).sum(0) / self.noise_variance)
        self.shifts, self.scales, self.weights = shifts, scales, jnp.array(weights)
        self.model = toy_model(
            self.modalities,
            2,
            encode=jax.jit(self.encode),
            posterior=jax.jit(self.posterior),
            mixture_posterior=lambda params, experts, observed: (
                experts,
                self.weights[:, None],
            ),
            objective=self.objective,
            log_likelihood=jax.jit(self.log_likelihood),
            log_prior=lambda params, z: (-0.5 * (z**2 + np.log(2 * np.pi))).sum(-1),
        )

    def data(self, num, batch_size):
        rng = np.random.default_rng(1)
        images = rng.integers(0, 256, (2, num, 1, 1, 3), dtype=np.uint8)
        split = toy_split(dict(zip(self.modalities, images, strict=True)), [0] * num)
        return EvaluationData(split, split, None, batch_size)

    def exact(self, split):
        """log p(X) of every example, nats."""
        x = np.concatenate(
            [split.modalities[m].reshape(-1, 3) / 255 for m in self.modalities], axis=1
        )
        covariance = self.loadings @ self.loadings.T + self.noise_variance * np.eye(6)
        return scipy.stats.multivariate_normal.logpdf(x, np.zeros(6), covariance)

    def kl_to_exact(self, component):
        """KL(component || p(z|X)), the same for every example, nats."""
        shift, scale = self.shifts[component], self.scales[component]
        terms = scale + shift**2 / self.variance - 1 - np.log(scale)
        return 0.5 * terms.sum()

    def encode(self, params, batch):
        x = jnp.concatenate([batch[m].reshape(-1, 3) for m in self.modalities], axis=1)
        mean = (x @ self.loadings) * self.variance[None] / self.noise_variance
        mean = mean + params
        variances = [
            np.broadcast_to(s * self.variance, mean.shape) for s in self.scales
        ]
        return Gaussian(
            jnp.stack([mean + shift for shift in self.shifts]),
            jnp.log(jnp.stack(variances)),
        )

    def posterior(self, params, experts, subset, key):
        num = experts.mean.shape[1]
        rows = jax.random.choice(key, 2, (num,), p=self.weights)
        return Gaussian(*(field[rows, np.arange(num)] for field in experts))

    def log_likelihood(self, params, z, batch, variance=0.0):
        """Of z, or its expectation where z has this variance [D] about its mean."""
        values = {}
        for i, name in enumerate(self.modalities):
            loadings = self.loadings[3 * i : 3 * i + 3]
            squared = (batch[name].reshape(-1, 3) - z @ loadings.T) ** 2
            squared = squared + np.sum(loadings**2 * variance, axis=1)[None]
            constant = np.log(2 * np.pi * self.noise_variance)
            values[name] = -0.5 * (squared / self.noise_variance + constant).sum(-1)
        return values

    def objective(self, params, batch, key, beta):
        """The exact bound, which is log p(X), and what is to be ignored."""
        mean = self.encode(params, batch).mean[0]
        terms = mean**2 + (self.variance - 1 - np.log(self.variance))[None]
        kl = 0.5 * terms.sum(-1)
        log_likelihood = self.log_likelihood(params, mean, batch, self.variance)
        return 1e3 * beta, ObjectiveTerms(log_likelihood, kl, kl + 1e3, kl + 1e3)


def label_images(labels):
    """uint8 [N, 2, 2, 1] whose grey level is 20 times the label."""
    labels = np.asarray(labels, np.uint8)
    return np.broadcast_to(20 * labels[:, None, None, None], (len(labels), 2, 2, 1))


def label_classifier(accuracy=0.9):
    """Reads the label off `label_images`; nan outside of [0, 1]."""

    def apply(images):
        values = images.reshape(len(images), -1)
        values = jnp.where((values < 0) | (values > 1), jnp.nan, values)
        distance = (
            values.mean(1, keepdims=True) * 255 / 20 - np.arange(NUM_CLASSES)[None]
        )
        return values, -(distance**2)

    return Reader(jax.jit(apply), accuracy)


def replaying_model(modalities, images, change=lambda x: x):
    """Generates exactly these uint8 images, in order, after `change`."""
    counter = itertools.count()

    def sample_prior(params, key, num):
        return jnp.arange(num) + next(counter) * num

    def decode(params, z):
        rows = np.asarray(z) % len(images)
        return {m: change(jnp.float32(images[rows]) / 255) + params for m in modalities}

    return toy_model(modalities, 1, sample_prior=sample_prior, decode=decode)


def averaging_model(modalities, shape, shift=0.0, log_variance=-60.0):
    """Decodes every modality to the mean of those given, plus `shift` a missing one.

    Its modalities have one shape. `log_variance` is that of the posterior.
    """

    def encode(params, batch):
        values = jnp.stack([batch[m].reshape(len(batch[m]), -1) for m in modalities])
        return Gaussian(values + params, jnp.full_like(values, log_variance))

    def posterior(params, experts, subset, key):
        given = jnp.broadcast_to(
            jnp.asarray(subset).reshape(len(modalities), -1), experts.mean.shape[:2]
        )[..., None]
        count = given.sum(axis=0)
        mean = jnp.where(given, experts.mean, 0).sum(axis=0) / jnp.maximum(count, 1)
        mean = mean + shift * (len(modalities) - count)
        return Gaussian(mean, experts.log_variance[0])

    def decode(params, z):
        return dict.fromkeys(modalities, z.reshape(len(z), *shape))

    def sample_prior(params, key, num):
        return jax.random.uniform(key, (num, int(np.prod(shape)))) + params

    return toy_model(
        modalities,
        int(np.prod(shape)),
        encode=jax.jit(encode),
        posterior=jax.jit(posterior),
        decode=jax.jit(decode),
        sample_prior=sample_prior,
        latent_parts=((SHARED, int(np.prod(shape))),),
    )


def flow_params(model):
    """Parameters of a model with flows over whitened latents, drawn with NumPy.

    Velocities are not 0, as they begin.
    """
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda x: np.float32(rng.uniform(-1, 1, x.shape)),
        jax.eval_shape(model.init, jax.random.key(1)),
    )
    size = len(drawn["whitening"]["num"])
    drawn["whitening"]["num"] = np.full(size, 2, np.float32)
    drawn["whitening"]["squares"] = np.arange(1, size + 1, dtype=np.float32)
    return drawn
