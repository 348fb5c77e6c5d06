"""Examples of which modalities are missing: every model learns from what is there."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmvae_jax import models
from mmvae_jax.mathematics import posteriors, subsets
from mmvae_jax.mathematics.components import random_components, stratified_components
from mmvae_jax.types import OBSERVED, Gaussian

SHAPES = {"m0": (2, 2, 1), "m1": (3,), "m2": (2, 2, 1)}
M, B = 3, 6
KEY = jax.random.key(3)
CUSTOM = {"subsets": ((0,), (0, 1), (1, 2)), "subset_weights": (0.25, 0.25, 0.5)}
PATTERNS = np.array(
    [[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [0, 1, 0]], bool
)
FAST = ("mopoe",)
# With missing modalities these are no smaller model of the same kind: what they infer
# from some modalities is another network, or an input of zeros or noise. docs/models.md
# lists them, and those whose latents have another size, or that have such an option.
JNF = ("jnf", "jnf_shared")
EXCEPTIONS = ("jmvae", "jmvae_kl", "telbo", *JNF, "latent_flow", "custom")
SIZES = {"unimodal": 2, "unimodal_official": 2}  # of each modality
OPTIONS = {
    "prior_expert": ("mopoe", "custom"),
    "learned_weights": ("code_vae",),
    "flow": ("code_flow",),
}
# They draw for all M modalities: other numbers, but the same model.
DRAWING = {
    "contrastive": {"consistency": 1.0},
    "nexus": {"perceptual_dropout": 0.5},
    "code_flow": {"ode_steps": 2},
}
BY_MODALITY = ("encoders", "decoders", "messages", "top_decoders")
WITH_PRIVATE = ("mmvae_plus", "cmvae")
WEIGHTED = ("mmvae_official", "unimodal_official", *WITH_PRIVATE)


def make(tiny_config, name, shapes=SHAPES, latent_dim=6, **options):
    """A model, with those of the options that it reads."""
    options = {"num_samples": 2} | CUSTOM | options
    read = {x: options[x] for x in models.MODELS[name].options if x in options}
    return models.make_model(tiny_config(name, latent_dim, **read), shapes)


def params_of(model):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(rng.uniform(-1, 1, x.shape) / np.sqrt(x.shape[-2:][0])),
        jax.eval_shape(model.init, KEY),
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {m: rng.random((B, *shape), np.float32) for m, shape in SHAPES.items()}


def spoilt(batch, value):
    """The batch with `value` in place of what is missing."""
    rows = {
        m: PATTERNS[:, i].reshape(B, *[1] * (x.ndim - 1))
        for i, (m, x) in enumerate(batch.items())
    }
    return {m: np.where(rows[m], x, np.float32(value)) for m, x in batch.items()}


EVERY = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in models.MODELS
]


@pytest.fixture(scope="module", params=EVERY)
def built(request, tiny_config):
    """A model: name, parameters, and batch -> ((loss, terms), gradient)."""
    model = make(tiny_config, request.param)
    gradient = jax.jit(jax.value_and_grad(model.objective, has_aux=True))
    params = params_of(model)
    return request.param, lambda batch: gradient(params, batch, KEY, 1.5)


def test_missing_data_have_no_influence_and_complete_data_the_plain_loss(built, batch):
    name, differentiate = built
    (loss, terms), gradient = differentiate(batch)
    (masked_loss, masked_terms), masked_gradient = differentiate(
        batch | {OBSERVED: np.ones((B, M), bool)}
    )
    assert loss == masked_loss
    # XLA may round what else it computes of two programs differently.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        (terms, gradient),
        (masked_terms, masked_gradient),
    )
    missing = {OBSERVED: PATTERNS}
    results = [differentiate(spoilt(batch, v) | missing) for v in (0.3, np.nan)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))
    jax.tree.map(np.testing.assert_array_equal, *results)
    (masked_loss, masked_terms), _ = results[0]
    assert loss != masked_loss
    for i, values in enumerate(masked_terms.log_likelihood.values()):
        np.testing.assert_array_equal(values != 0, PATTERNS[:, i])
    # One that nobody has gets no gradient.
    observed = {OBSERVED: np.tile([True, False, True], (B, 1))}
    _, gradient = differentiate(batch | observed)
    for part in BY_MODALITY:
        sizes = {
            m: max(np.abs(x).max() for x in jax.tree.leaves(own))
            for m, own in gradient.get(part, {}).items()
        }
        # The experts of JNF learn in a stage of their own.
        if sizes and not (name in JNF and part == "encoders"):
            assert sizes["m1"] == 0 and sizes["m0"] > 0, (name, part)


OF_TOKENS = {"flow_network": "transformer", "flow_width": 4, "flow_depth": 1}
STAGED = {
    "single_stage": ("code_flow", {"single_stage": True}),
    "code_prior": ("contrastive", {"code_prior": "flow"}),
    "joint": ("code_flow", {"flow": "joint"}),
    "tokens": ("latent_flow", OF_TOKENS),
    "tokens_joint": ("code_flow", OF_TOKENS | {"flow": "joint"}),
    "tokens_of_each": ("code_flow", OF_TOKENS),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", STAGED)
def test_missing_data_have_no_influence_on_any_stage(form, tiny_config):
    """And modalities that nobody has get no gradient, whatever is in their place."""
    name, options = STAGED[form]
    shapes, config = SHAPES, tiny_config(name, 8, **options)
    if form == "tokens_of_each":  # latents of one shape, with places
        shapes = dict.fromkeys(SHAPES, (4, 4, 1))
        config.modality.network = "spatial"
        config.modality.network_options = {"channels": (3,)}
    model, rng = models.make_model(config, shapes), np.random.default_rng(1)
    batch = {m: rng.random((B, *shape), np.float32) for m, shape in shapes.items()}
    params = params_of(model)
    if "whitening" in params:
        params["whitening"] = {x: np.abs(v) for x, v in params["whitening"].items()}
    missing = {OBSERVED: PATTERNS}
    without = {OBSERVED: np.tile([True, False, True], (B, 1))}
    nobody = batch | {"m1": np.full_like(batch["m1"], np.nan)} | without
    for stage in model.stages:

        def loss(own, batch, stage=stage):
            return stage.objective(params | own, batch, KEY, 1.5)[0]

        differentiate = partial(
            jax.jit(jax.value_and_grad(loss)), {x: params[x] for x in stage.learns}
        )
        found = [differentiate(spoilt(batch, v) | missing) for v in (0.3, np.nan)]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
        jax.tree.map(np.testing.assert_array_equal, *found)
        _, gradient = differentiate(nobody)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        parts = [gradient.get(part, {}) for part in ("encoders", "decoders")]
        for own in (*parts, gradient.get("code", {}).get("encoders", {})):
            sizes = {
                m: max(np.abs(x).max() for x in jax.tree.leaves(leaves))
                for m, leaves in own.items()
            }
            assert not own or (sizes["m1"] == 0 and sizes["m0"] > 0), stage.name
        if form != "code_prior" and "flows" in gradient:
            slopes = jax.tree.leaves(gradient["flows"])
            assert max(np.abs(x).max() for x in slopes) > 0


def narrow(params):
    """Parameters with which the encoders' log-variances are -20."""

    def change(path, x):
        names = [str(getattr(key, "key", "")) for key in path]
        if "log_variance" not in names:
            return x
        return np.full_like(x, -1e3 if names[-1] == "bias" else 0.0)

    return jax.tree_util.tree_map_with_path(change, params)


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(set(models.MODELS) - {*EXCEPTIONS, "code_flow"})
    ],
)
def test_an_example_is_one_of_a_model_of_what_is_observed(name, tiny_config, batch):
    # The reconstructions across modalities of MMVAE+ and CMVAE are random.
    kept = ("m2",) if name in WITH_PRIVATE else ("m0", "m2")
    dims = SIZES.get(name)
    options = {"posterior": "gaussian", "consistency": 0.0, "learned_weights": False}
    options["perceptual_dropout"] = 0.0
    if name == "mmvm":
        options["alpha"] = 0.3
    large = make(tiny_config, name, latent_dim=dims * M if dims else 4, **options)
    small_shapes = {m: SHAPES[m] for m in kept}
    small = make(
        tiny_config,
        name,
        small_shapes,
        latent_dim=dims * len(kept) if dims else 4,
        **options,
    )
    params = narrow(params_of(large))
    own = {
        part: {m: x[m] for m in kept} if part in BY_MODALITY else x
        for part, x in params.items()
    }
    rows = np.isin(list(SHAPES), kept)
    if name in (*WITH_PRIVATE, "unimodal_official"):
        prior = "auxiliary_priors" if name in WITH_PRIVATE else "prior"
        own[prior] = own[prior][rows]
    observed = {OBSERVED: np.tile(rows, (B, 1))}
    # What an example draws depends on the number of components.
    mixture = models.MODELS[name].options.get("subset_estimator")
    is_mixture = mixture is not None and name != "mvae"
    complete = {m: batch[m] for m in kept}
    loss, terms = jax.jit(large.objective)(params, batch | observed, KEY, 1.5)
    expected, own_terms = jax.jit(small.objective)(own, complete, KEY, 1.5)
    if not is_mixture:
        for m in kept:
            np.testing.assert_allclose(
                terms.log_likelihood[m], own_terms.log_likelihood[m], rtol=2e-3
            )
    if name not in WEIGHTED:  # whose KL terms are estimates
        np.testing.assert_allclose(terms.kl, own_terms.kl, rtol=1e-5)
        np.testing.assert_allclose(terms.auxiliary_kl, own_terms.auxiliary_kl, 1e-5)
        if not is_mixture:
            assert float(loss) == pytest.approx(float(expected), rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWING)
def test_an_example_is_one_of_that_model_in_the_mean_over_draws(
    name, tiny_config, batch
):
    kept, num = ("m0", "m2"), 200 if name == "code_flow" else 1_500
    rows = np.isin(list(SHAPES), kept)
    large = make(tiny_config, name, **DRAWING[name])
    small = make(tiny_config, name, {m: SHAPES[m] for m in kept}, **DRAWING[name])
    params = narrow(params_of(large))
    if "whitening" in params:  # as after one example: no variance is random
        size = len(params["whitening"]["num"])
        params["whitening"] = {
            field: np.full(size, field != "mean", np.float32)
            for field in params["whitening"]
        }
    own = {part: x for part, x in params.items() if part not in BY_MODALITY}
    own |= {p: {m: params[p][m] for m in kept} for p in BY_MODALITY if p in params}
    if name == "code_flow":
        wide = np.repeat(rows, size // M)
        own["whitening"] = {k: x[wide] for k, x in params["whitening"].items()}
        encoders = {m: params["code"]["encoders"][m] for m in kept}
        own["code"] = params["code"] | {"encoders": encoders}
        for part in ("flows", "flows_average"):
            flows = jax.tree.map(lambda x: x[rows], params[part]["modality"])
            own[part] = params[part] | {"modality": flows}

    def losses(model, params, batch):
        loss = jax.jit(lambda key: model.objective(params, batch, key, 1.5)[0])
        return jax.lax.map(loss, jax.random.split(KEY, num))

    observed = {OBSERVED: np.tile(rows, (B, 1))}
    found = np.float64(losses(large, params, batch | observed))
    expected = np.float64(losses(small, own, {m: batch[m] for m in kept}))
    error = np.sqrt((found.var() + expected.var()) / num)
    assert error < 0.01 * expected.mean()
    assert abs(found.mean() - expected.mean()) < 4 * error


def test_the_models_page_lists_the_exceptions():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    listed = text.partition("The exceptions:\n\n")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", listed))
    with_option = {name for names in OPTIONS.values() for name in names}
    assert named & set(models.MODELS) == {*EXCEPTIONS, *SIZES, *with_option}
    options = {x for model in models.MODELS.values() for x in model.options}
    assert named & options == set(OPTIONS)
    for option, names in OPTIONS.items():
        assert all(option in models.MODELS[name].options for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "mopoe",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mmvae", "mmjsd", "mwb_vae", "code_vae")
        ),
    ],
)
def test_mixtures_decode_only_what_can_be_inferred(name, tiny_config, batch):
    options = {"decode_prior": False, "subset_estimator": "exact"}
    options["learned_weights"] = False
    large = make(tiny_config, name, **options)
    small = make(tiny_config, name, {m: SHAPES[m] for m in ("m0", "m2")}, **options)
    params = narrow(params_of(large))
    own = {part: {m: x[m] for m in ("m0", "m2")} for part, x in params.items()}
    observed = {OBSERVED: np.tile([True, False, True], (B, 1))}
    complete = {m: batch[m] for m in ("m0", "m2")}
    loss, terms = jax.jit(large.objective)(params, batch | observed, KEY, 1.5)
    expected, own_terms = jax.jit(small.objective)(own, complete, KEY, 1.5)
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)
    for m in ("m0", "m2"):
        np.testing.assert_allclose(
            terms.log_likelihood[m], own_terms.log_likelihood[m], rtol=1e-3
        )


def test_joint_networks_are_for_complete_examples(tiny_config, batch):
    model = make(tiny_config, "jmvae_kl")
    params = params_of(model)
    clean = spoilt(batch, 0.0) | {OBSERVED: PATTERNS}
    experts = jax.jit(model.encode)(params, clean)
    _, terms = jax.jit(model.objective)(params, clean, KEY, 1.0)
    network = jax.tree.map(lambda field: field[M], experts)
    rest = jax.tree.map(lambda field: field[:M], experts)
    product = posteriors.product_of_experts(rest, PATTERNS.T, False)
    for b, pattern in enumerate(PATTERNS):
        q = network if pattern.all() else product
        mean, log_variance = np.float64(q.mean[b]), np.float64(q.log_variance[b])
        kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum()
        assert terms.kl[b] == pytest.approx(kl, rel=1e-5)


@pytest.mark.parametrize("mixture", ["full_set", "custom"])
def test_weights_are_renormalised_over_what_is_available(mixture):
    rng = np.random.default_rng(0)
    experts = Gaussian(*np.float32(rng.normal(size=(2, M, B, 2))))
    family = (
        subsets.full_set(M)
        if mixture == "full_set"
        else subsets.custom_subsets(M, CUSTOM["subsets"], CUSTOM["subset_weights"])
    )
    components, weights = jax.jit(
        lambda observed: posteriors.observed_mixture(experts, family, observed)
    )(PATTERNS.T)
    expected = {
        # The last one is the product of what is observed.
        "full_set": [[1, 0], [0, 1], [0, 1], [0, 1], [0, 1], [0, 1]],
        "custom": [
            [0.25, 0.25, 0.5, 0],
            [1, 0, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 0, 1],
            [1, 0, 0, 0],
            [0, 0, 0, 1],
        ],
    }[mixture]
    np.testing.assert_array_equal(weights.T, np.float32(expected))
    own = posteriors.product_of_experts(experts, PATTERNS.T, mixture == "full_set")
    np.testing.assert_allclose(components.mean[-1], own.mean, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "mopoe",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("jmvae_kl", "mmvm", "dmvae")
        ),
    ],
)
def test_posteriors_are_those_of_each_example(name, tiny_config, batch):
    model = make(tiny_config, name)
    params, posterior = params_of(model), jax.jit(model.posterior)
    experts = jax.jit(model.encode)(params, batch)
    q = posterior(params, experts, PATTERNS.T, KEY)
    for b, pattern in enumerate(PATTERNS):
        if name == "mmvm" and not pattern.all():
            continue  # which expert stands in for a missing one is drawn
        own = posterior(params, experts, pattern, KEY)
        np.testing.assert_allclose(q.mean[b], own.mean[b], rtol=1e-5, atol=1e-6)


def test_stratified_draws_follow_the_weights_of_each_example():
    weights = np.tile(np.float32([[0.5, 0, 0.25], [0.5, 1, 0.75]]), 40)
    for draw in (stratified_components, random_components):
        drawn = np.array(
            [draw(jax.random.key(i), jnp.asarray(weights), 120) for i in range(50)]
        )
        shares = drawn.reshape(-1, 3).mean(0)
        np.testing.assert_allclose(shares, weights[1, :3], atol=0.03)
        assert (drawn.reshape(-1, 3)[:, 1] == 1).all()
