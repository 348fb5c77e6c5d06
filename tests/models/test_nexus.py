"""Nexus: VAEs of the modalities, and one of their codes above them."""

import itertools

import jax
import numpy as np
import pytest
import scipy.stats
from small_tasks import MAP, NUM, Setup, assert_same_bits

from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.models.nexus import kept_messages
from mmvae_jax.training.step import vae_task
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import OBSERVED

SHAPES = {"m0": (3,), "m1": (3,), "m2": (3,)}
M, B, D = 3, 5, 4
KEY = jax.random.key(0)
BOTTOM = ("encoders", "decoders")
TOP = ("messages", "top_encoder", "top_decoders")


def make(tiny_config, shapes=SHAPES, name="nexus", latent_dim=D, **options):
    if name == "nexus":
        options = {"message_dim": 7, "top_width": 8} | options
    config = tiny_config(name, latent_dim, **options)
    config.modality.likelihood = "gaussian"
    return models.make_model(config, shapes)


def vectors(num=B, shapes=SHAPES):
    rng = np.random.default_rng(1)
    return {m: rng.normal(size=(num, *x)).astype(np.float32) for m, x in shapes.items()}


def params_of(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(rng.normal(size=x.shape) / np.sqrt(x.shape[-2:][0])),
        jax.eval_shape(model.init, KEY),
    )


def narrow(params, *parts):
    """Parameters with which some encoders' log-variances are -20: no noise is left."""

    def change(path, x):
        names = [str(getattr(key, "key", "")) for key in path]
        if names[0] not in parts or "log_variance" not in names:
            return x
        return np.full_like(x, -1e3 if names[-1] == "bias" else 0.0)

    return jax.tree_util.tree_map_with_path(change, params)


def dense(layers, x):
    """Dense layers of NumPy arrays, with ReLUs between them."""
    names = sorted(name for name in layers if name.startswith("Dense"))
    for name in names:
        x = np.float64(x) @ layers[name]["kernel"] + layers[name]["bias"]
        x = x if name == names[-1] and "mean" not in layers else np.maximum(x, 0)
    return x


def top_of(params, codes, given):
    """Mean and log-variance of q(z|codes of `given`), in NumPy."""
    rows = [dense(params["messages"][f"m{m}"]["params"], codes[m]) for m in given]
    layers = params["top_encoder"]["params"]
    h = np.mean(rows, axis=0)
    for name in ("Dense_0", "Dense_1"):
        h = np.maximum(h @ layers[name]["kernel"] + layers[name]["bias"], 0)
    head = layers["GaussianHead_0"]
    mean, raw = (
        h @ head[part]["kernel"] + head[part]["bias"]
        for part in ("mean", "log_variance")
    )
    return mean, 20 * np.tanh(raw / 20)


def kl_of(mean, log_variance):
    """KL from N(0, I), in nats."""
    return 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(-1)


def test_the_terms_are_the_equation_and_their_sum_the_loss(tiny_config):
    """With no noise left in the latents: all terms in NumPy."""
    b, gamma, beta = 0.3, 1.7, 0.6
    own = {"perceptual_dropout": 0.0, "bottom_beta": b, "gamma": gamma}
    model = make(tiny_config, bottom_dim=6, **own)
    params, batch = narrow(params_of(model), "encoders", "top_encoder"), vectors()
    loss, terms = jax.jit(model.objective)(params, batch, KEY, beta)
    experts = model.encode(params, batch)
    assert experts.mean.shape == (M, B, 6) and model.latent_dim == D
    codes = np.float64(experts.mean)
    mean, log_variance = top_of(params, codes, range(M))
    bottom = {m: params["decoders"][m]["params"] for m in SHAPES}
    found = [dense(params["top_decoders"][m]["params"], mean) for m in SHAPES]
    np.testing.assert_allclose(terms.kl, kl_of(mean, log_variance), rtol=1e-4)
    unit = scipy.stats.norm.logpdf
    gain, scale = 0.0, tiny_config("nexus").modality.likelihood_scale
    for m, (name, x) in enumerate(batch.items()):
        gain += unit(x, dense(bottom[name], codes[m]), scale).sum(-1)
        gain += gamma * unit(codes[m], found[m]).sum(-1)
        through = unit(x, dense(bottom[name], found[m]), scale).sum(-1)
        np.testing.assert_allclose(terms.log_likelihood[name], through, rtol=1e-3)
    kl = b * kl_of(codes, np.float64(experts.log_variance)).sum(0)
    kl += kl_of(mean, log_variance)
    np.testing.assert_allclose(terms.auxiliary_log_likelihood, gain, rtol=1e-3)
    np.testing.assert_allclose(terms.auxiliary_kl, kl, rtol=1e-4)
    assert float(loss) == pytest.approx(np.mean(beta * kl - gain), rel=1e-3)


def test_what_is_above_trains_no_bottom_vae(tiny_config):
    """The gradients of the bottom VAEs are those of unimodal VAEs, and it learns."""
    model, batch = make(tiny_config, gamma=3.0), vectors()
    unimodal = make(tiny_config, name="unimodal", latent_dim=M * D)
    params, beta = params_of(model), 0.6

    def gradient(own, params, key):
        return jax.jit(jax.grad(lambda p: own.objective(p, batch, key, beta)[0]))(
            params
        )

    found = gradient(model, params, KEY)
    code_key = jax.random.split(KEY, 4)[0]
    below = {part: params[part] for part in BOTTOM}
    expected = gradient(unimodal, below, code_key)
    for part in BOTTOM:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            found[part],
            expected[part],
        )
    for part in TOP:
        assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(found[part]))


def test_one_modality_is_a_vae_of_its_codes(tiny_config):
    """Its one message is never dropped: terms of two VAEs, one above the other."""
    shapes = {"m0": (3,)}
    model = make(tiny_config, shapes, perceptual_dropout=1.0)
    batch, params = vectors(shapes=shapes), params_of(model)
    vae = make(tiny_config, shapes, "unimodal")
    terms = jax.jit(model.objective)(params, batch, KEY, 1.0)[1]
    code_key = jax.random.split(KEY, 4)[0]
    below = {part: params[part] for part in BOTTOM}
    own = jax.jit(vae.objective)(below, batch, code_key, 1.0)[1]
    # All observed messages are kept: the bound and the loss have the same posterior.
    np.testing.assert_allclose(terms.auxiliary_kl, own.kl + terms.kl, rtol=1e-5)


def test_the_posterior_is_of_the_mean_message_of_what_is_given(tiny_config):
    model, batch = make(tiny_config), vectors()
    params = narrow(params_of(model), "encoders")
    experts = model.encode(params, batch)
    posterior = jax.jit(model.posterior)
    for size in range(1, M + 1):
        for given in itertools.combinations(range(M), size):
            subset = np.isin(np.arange(M), given)
            q = posterior(params, experts, subset, KEY)
            wanted = top_of(params, np.float64(experts.mean), given)
            for field, own in zip(q, wanted, strict=True):
                np.testing.assert_allclose(field, own, rtol=1e-3, atol=1e-4)


def test_the_posterior_draws_codes_and_its_components_are_such_draws(tiny_config):
    model, batch = make(tiny_config), vectors()
    params = params_of(model)
    experts, subset = model.encode(params, batch), np.array([True, True, False])
    components, weights = jax.jit(model.posterior_components)(params, experts, subset)
    np.testing.assert_allclose(weights, 1 / 8)
    assert (np.ptp(components.mean, axis=0) > 0).all()
    keys = jax.random.split(jax.random.key(9), 300)
    drawn = jax.jit(
        jax.vmap(lambda key: model.posterior(params, experts, subset, key).mean)
    )(keys)
    # Both are of one distribution: means within the error of eight draws.
    error = np.std(drawn, axis=0) / np.sqrt(8)
    gap = np.abs(np.mean(drawn, axis=0) - np.mean(components.mean, axis=0))
    assert (gap < 5 * error + 1e-6).all()


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
def test_forced_perceptual_dropout(rate):
    num = 120_000
    observed = np.ones((4, num), bool)
    observed[3, : num // 3] = False  # three modalities are left
    observed[1:, : num // 6] = False  # one is left
    kept = np.asarray(kept_messages(KEY, observed, rate))
    assert not (kept & ~observed).any() and kept.any(axis=0).all()
    assert (kept[:, : num // 6] == observed[:, : num // 6]).all()
    for rows, n in ((slice(num // 6, num // 3), 3), (slice(num // 3, num), 4)):
        sizes = np.bincount(kept[:, rows].sum(0), minlength=5) / kept[:, rows].shape[1]
        wanted = np.zeros(5)
        wanted[1:n], wanted[n] = rate / (n - 1), 1 - rate
        np.testing.assert_allclose(sizes, wanted, atol=0.02)
        # Every choice is as likely.
        shares = kept[:n, rows].mean(axis=1)
        np.testing.assert_allclose(shares, (wanted * np.arange(5)).sum() / n, atol=0.02)


def test_dropout_reaches_the_loss_and_not_the_bound(tiny_config):
    batch = vectors()
    none, some = (make(tiny_config, perceptual_dropout=rate) for rate in (0.0, 1.0))
    params = params_of(none)
    one, other = (
        jax.jit(model.objective)(params, batch, KEY, 1.0)[1] for model in (none, some)
    )
    np.testing.assert_allclose(one.kl, other.kl, rtol=1e-5)
    for m in SHAPES:
        np.testing.assert_allclose(
            one.log_likelihood[m], other.log_likelihood[m], rtol=1e-4
        )
    assert (np.abs(one.auxiliary_kl - other.auxiliary_kl) > 1e-3).all()


def test_the_bound_is_below_the_likelihood_of_what_is_generated(tiny_config):
    """log p(X) by prior samples, of the latents that `sample_prior` gives."""
    model, batch = make(tiny_config), vectors()
    params = params_of(model)
    z = np.asarray(model.sample_prior(params, jax.random.key(5), 5_000))
    np.testing.assert_allclose(z.std(0), 1, atol=0.03)
    decoded = model.decode(params, z)
    scale = tiny_config("nexus").modality.likelihood_scale
    evidence = np.zeros((len(z), B))
    for m, x in batch.items():
        means = np.float64(decoded[m])[:, None]
        evidence += scipy.stats.norm.logpdf(x, means, scale).sum(-1)
    evidence = scipy.special.logsumexp(evidence, axis=0) - np.log(len(z))
    objective = jax.jit(model.objective)
    bounds = []
    for key in jax.random.split(KEY, 200):
        terms = objective(params, batch, key, 1.0)[1]
        bounds.append(sum(terms.log_likelihood.values()) - terms.kl)
    assert (np.mean(bounds, axis=0) < evidence + 0.1).all()


@pytest.mark.slow
def test_a_member_of_a_sweep_is_the_run_alone_and_is_resumed(tiny_config):
    """Of incomplete examples, with dropout."""
    model, data = make(tiny_config, perceptual_dropout=0.5), vectors(NUM)
    observed = np.random.default_rng(3).random((NUM, M)) < 0.7
    observed[:, 0] |= ~observed.any(axis=1)
    setup = Setup(vae_task(model), jax.device_put(data | {OBSERVED: observed}))
    members = [Member(0.1, 1e-2, 0), Member(1.0, 3e-3, 1)]
    together = setup.fit(members, MAP, 6)
    assert together.finite.all()
    assert_same_bits(setup.fit(members, MAP, 6, setup.fit(members, MAP, 4)), together)
    for i, member in enumerate(members):
        own = jax.tree.map(lambda x, i=i: x[i : i + 1], together)
        assert_same_bits(own, setup.fit([member], MAP, 6))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("perceptual_dropout", 1.5, r"must be in \[0, 1\], got 1.5"),
        ("message_dim", 0, "must be >= 1, got 0"),
        ("gamma", -1.0, "must be >= 0, got -1.0"),
    ],
)
def test_options_that_are_refused(tiny_config, option, value, message):
    with pytest.raises(UsageError, match=f"{option} {message}"):
        make(tiny_config, **{option: value})
