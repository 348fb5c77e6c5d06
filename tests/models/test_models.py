import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from configs import base, polydigits
from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import elbo
from mmvae_jax.mathematics.distributions import LIKELIHOODS
from mmvae_jax.training import loop, sweep
from mmvae_jax.training.execution import Execution, compile_steps, init_states
from mmvae_jax.training.step import vae_task
from mmvae_jax.training.sweep import Member
from mmvae_jax.types import Gaussian, Laplace

SHAPES = {"m0": (2, 2, 1), "m1": (2, 2, 1), "m2": (2, 2, 1)}
M, B, D = 3, 4, 6
C = models.MODELS["code_flow"].options["code_dim"].default
UNIMODAL = ("unimodal", "unimodal_official")
OFFICIAL = ("mmvae_official", "unimodal_official", "mmvae_plus")  # Laplace
# Models with D shared dimensions and D of each modality.
PRIVATE = [name for name, x in models.MODELS.items() if "private_dim" in x.options]
JNF = ("jnf", "jnf_shared")
WITH_NETWORK = ("jmvae", "jmvae_kl", "telbo", *JNF)  # for the joint posterior
FLOWS = ("code_flow", "latent_flow")
LEARNED_PRIOR = ("contrastive", *FLOWS, "cmvae")
# No encoder has a part in the bound of another modality.
APART = (*UNIMODAL, "mmvm", *FLOWS)
KEY = jax.random.key(0)
SUBSETS = [
    np.isin(np.arange(M), subset)
    for size in range(1, M + 1)
    for subset in itertools.combinations(range(M), size)
]
CUSTOM = {"subsets": ((0,), (0, 1), (1, 2)), "subset_weights": (0.25, 0.25, 0.5)}


@pytest.fixture(scope="module")
def make(tiny_config):
    def build(name, shapes=SHAPES, **model):
        model = CUSTOM | model if name == "custom" else model
        return models.make_model(tiny_config(name, **model), shapes)

    return build


def params_of(model):
    """Parameters drawn with NumPy, which compiles nothing."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.float32(rng.uniform(-1, 1, x.shape) / np.sqrt(x.shape[-2:][0])),
        jax.eval_shape(model.init, KEY),
    )


@pytest.fixture(scope="module")
def batch(tiny_images):
    return {m: x / np.float32(255) for m, x in tiny_images(SHAPES, B).items()}


FAST = ("mvae", "mmvae", "mopoe", "jmvae", "crmvae")


@pytest.fixture(
    scope="module",
    params=[
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in models.MODELS
    ],
)
def evaluated(request, make):
    """(name, model, compiled function): all that a model computes of a batch."""
    model = make(request.param)

    @jax.jit
    def everything(params, batch, subset):
        experts = model.encode(params, batch)
        q = model.posterior(params, experts, subset, KEY)
        z = model.sample_prior(params, KEY, B)
        loss, terms = model.objective(params, batch, KEY, 1.0)
        return {
            "loss": loss,
            "objective": terms,
            "experts": experts,
            "posterior": q,
            "mixture": model.mixture_posterior(params, experts, np.ones(M, bool)),
            "decoded": model.decode(params, q.mean),
            "log_likelihood": model.log_likelihood(params, q.mean, batch),
            "prior": z,
            "log_prior": model.log_prior(params, z),
        }

    return request.param, model, everything


def num_components(name):
    """Components of the posterior given all M modalities."""
    keywords = getattr(models.MODELS[name].build, "keywords", {})
    if "mixture" in keywords:
        return len(keywords["mixture"](M).weights)
    is_of_experts = name in ("mmvae_official", "mmvae_plus", "cmvae", "mmjsd", "custom")
    if name == "nexus":  # as many draws
        return 8
    return M if is_of_experts else 1


def test_the_functions_of_every_model(evaluated, batch):
    name, model, everything = evaluated
    is_wide = name in ("mmvm", "latent_flow")
    total_dim = (1 + M) * D if name in PRIVATE else M * D if is_wide else D
    if name == "code_flow":
        total_dim = C + M * D
    assert model.modalities == tuple(SHAPES) and model.latent_dim == total_dim
    results = everything(params_of(model), batch, SUBSETS[-1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))
    assert results["loss"].shape == ()
    terms = results["objective"]
    assert set(terms.log_likelihood) == set(SHAPES)
    for leaf in jax.tree.leaves(terms):
        assert leaf.shape == (B,)
    if name not in (*OFFICIAL, *LEARNED_PRIOR):  # their estimates have both signs
        assert (terms.kl > 0).all()
    own_dim = D // M if name in UNIMODAL else 2 * D if name in PRIVATE else D
    own_dim += C if name == "code_flow" else 0
    assert type(results["experts"]) is (Laplace if name in OFFICIAL else Gaussian)
    assert type(results["posterior"]) is type(results["experts"])
    num_rows = M + 1 if name in ("jmvae_kl", "telbo", *JNF) else M
    assert results["experts"].mean.shape == (num_rows, B, own_dim)
    assert results["posterior"].mean.shape == (B, total_dim)
    components, weights = results["mixture"]
    num_subsets = num_components(name)
    assert {field.shape for field in components} == {(num_subsets, B, total_dim)}
    assert weights.shape == (num_subsets, 1) and weights.sum() == pytest.approx(1)
    for m, shape in SHAPES.items():
        assert results["decoded"][m].shape == (B, *shape)
        assert results["log_likelihood"][m].shape == (B,)
    assert results["prior"].shape == (B, total_dim)
    z = np.float64(results["prior"])
    if name not in (*OFFICIAL, *LEARNED_PRIOR):
        expected = -0.5 * (z**2 + np.log(2 * np.pi)).sum(-1)
        np.testing.assert_allclose(results["log_prior"], expected, rtol=1e-5)
    # The decoder's mean is where the Laplace likelihood has its constant.
    constant = np.log(2 * 0.75)
    residual = np.abs(results["decoded"]["m1"] - batch["m1"]) / 0.75 + constant
    np.testing.assert_allclose(
        results["log_likelihood"]["m1"], -residual.sum((1, 2, 3)), rtol=1e-5
    )


def changes(results, others):
    """Which leaves of two results differ in any bit."""
    return jax.tree.map(lambda a, b: not np.array_equal(a, b), results, others)


def test_what_a_posterior_and_a_generation_depend_on(evaluated, batch):
    """On all that is observed, and on no bit of what is not."""
    name, model, everything = evaluated
    params = params_of(model)
    for subset in SUBSETS:
        used = subset
        if name == "custom" and subset.tolist() == [True, False, True]:
            used = np.array([True, False, False])  # of {0}, {0, 1}, {1, 2}
        results = everything(params, batch, subset)
        for x, modality in enumerate(SHAPES):
            other = batch | {modality: 1 - batch[modality]}
            changed = changes(results, everything(params, other, subset))
            # What JNF draws is a sample, whatever it is of.
            is_drawn = name in JNF and not subset.all()
            assert changed["posterior"] == (used[x], used[x] and not is_drawn)
            for output, is_changed in changed["decoded"].items():
                # An observed modality of MMVM is decoded from its own posterior.
                is_apart = name in APART and subset[list(SHAPES).index(output)]
                is_apart |= name in UNIMODAL
                assert is_changed == (used[x] and (not is_apart or output == modality))


def test_what_the_terms_of_an_objective_depend_on(evaluated, batch):
    """On every modality, unless the modalities have a VAE each."""
    name, model, everything = evaluated
    params = params_of(model)
    results = everything(params, batch, SUBSETS[-1])
    for modality, part in itertools.product(SHAPES, ("encoders", "decoders")):
        # Where there is a joint encoder, it is what infers the joint posterior.
        is_joint = part == "encoders" and "joint" in params
        parts = params["joint"] if is_joint else params
        network = jax.tree.map(lambda x: 1.5 * x, parts[part][modality])
        parts = parts | {part: parts[part] | {modality: network}}
        other = params | {"joint": parts} if is_joint else parts
        changed = changes(results, everything(other, batch, SUBSETS[-1]))
        is_shared = part == "encoders" and name not in APART
        for term, is_changed in changed["objective"].log_likelihood.items():
            assert is_changed == (is_shared or term == modality), (part, modality)
        assert changed["objective"].kl == (part == "encoders")
        adding = ("mvae_plus", "dmvae", "crmvae", "telbo", "contrastive", "nexus")
        is_added = name in adding and not is_joint
        assert changed["objective"].auxiliary_log_likelihood == is_added


@pytest.mark.parametrize("name", ["jmvae_kl", "telbo"])
def test_unimodal_experts_have_no_part_in_the_joint_elbo(name, make, batch):
    model = make(name)
    params = params_of(model)
    other = params | {"encoders": jax.tree.map(lambda x: 1.5 * x, params["encoders"])}
    objective = jax.jit(model.objective)
    changed = changes(*(objective(p, batch, KEY, 1.0)[1] for p in (params, other)))
    assert not changed.kl and not any(changed.log_likelihood.values())
    assert changed.auxiliary_kl


@pytest.mark.parametrize("name", ["unimodal", "unimodal_official"])
def test_unobserved_unimodal_vaes_are_left_with_their_prior(name, make, batch):
    model = make(name)
    params = params_of(model)
    experts = model.encode(params, batch)
    prior = np.zeros((2, M, B, 2))  # mean and log-variance, or log-scale
    if name == "unimodal_official":
        scales = 2 * scipy.special.softmax(np.float64(params["prior"]), axis=-1)
        assert np.ptp(scales) > 0.1
        prior[1] = np.log(scales)[:, None]
    for subset in SUBSETS:
        q = model.posterior(params, experts, jnp.asarray(subset), KEY)
        for field, expert, own in zip(q, experts, prior, strict=True):
            for m in range(M):
                expected = expert[m] if subset[m] else own[m]
                part = field[:, 2 * m : 2 * m + 2]
                np.testing.assert_allclose(part, expected, rtol=1e-5, atol=1e-6)


def test_the_latent_size_is_divided_among_unimodal_vaes(make):
    assert make("unimodal", latent_dim=8).latent_dim == 6
    assert make("unimodal_official", latent_dim=8).latent_dim == 6
    assert make("mopoe", latent_dim=8).latent_dim == 8


def test_the_family_shares_its_parameters(make, tiny_config):
    names = ("mvae", "mvae_plus", "mmvae", "mopoe", "custom")
    assert len({str(jax.make_jaxpr(make(name).init)(KEY)) for name in names}) == 1
    config = tiny_config("mopoe")
    config.modality.network_options.widths = ()
    params = models.make_model(config, SHAPES).init(KEY)
    leaves = jax.tree.leaves(params)
    assert len(leaves) == 3 * (4 + 2)
    kernels = [np.asarray(leaf) for leaf in leaves if leaf.ndim == 2]
    for one, other in itertools.combinations(kernels, 2):
        assert one.shape != other.shape or not np.allclose(one, other)


def test_models_with_one_modality_have_the_same_objective(make, batch):
    shapes, one = {"m0": SHAPES["m0"]}, {"m0": batch["m0"]}
    jaxprs = set()
    for name in ("mvae", "mmvae", "mopoe"):
        model = make(name, shapes, prior_expert="never")
        params = params_of(model)
        jaxprs.add(str(jax.make_jaxpr(model.objective)(params, one, KEY, 1.0)))
    assert len(jaxprs) == 1
    kls = [
        jax.jit(each.objective)(params, one, KEY, 1.0)[1].kl
        for each in (model, make("unimodal", shapes))
    ]
    np.testing.assert_allclose(kls[0], kls[1], rtol=1e-6)


def narrow(params):
    """Parameters with which the encoders' log-variances are -20: no noise is left."""

    def change(path, x):
        names = [str(getattr(key, "key", "")) for key in path]
        if "log_variance" not in names:
            return x
        return np.full_like(x, -1e3 if names[-1] == "bias" else 0.0)

    return jax.tree_util.tree_map_with_path(change, params)


# Options with which no draw is left once posteriors are narrow.
WITHOUT_DRAWS = {
    "subset_estimator": "exact",
    "posterior": "gaussian",
    "num_samples": 1,
    "consistency": 0.0,
    "learned_weights": False,
    "perceptual_dropout": 0.0,
}


def options_of(name, given):
    return {x: given[x] for x in models.MODELS[name].options if x in given}


def each_model(*others):
    """All models but some, of which the fast ones are always tested."""
    return [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in models.MODELS
        if name not in others
    ]


# Of others the latent vectors or the priors are not those of one VAE.
@pytest.mark.parametrize(
    "name", each_model(*OFFICIAL, *PRIVATE, *WITH_NETWORK, *FLOWS, "nexus")
)
def test_with_one_modality_the_bound_is_that_of_the_vae(name, make, batch):
    shapes, one = {"m0": SHAPES["m0"]}, {"m0": batch["m0"]}
    alone = {"prior_expert": "never", "decode_prior": False, "subsets": ((0,),)}
    options = WITHOUT_DRAWS | alone | {"subset_weights": ()}
    model = make(name, shapes, **options_of(name, options))
    vae = make("unimodal", shapes)
    params = narrow(params_of(vae))
    found, expected = (
        jax.jit(each.objective)(params, one, KEY, 1.0)[1] for each in (model, vae)
    )
    np.testing.assert_allclose(found.kl, expected.kl, rtol=1e-5)
    np.testing.assert_allclose(
        found.log_likelihood["m0"], expected.log_likelihood["m0"], rtol=2e-3
    )


@pytest.mark.slow
# A joint network reads modalities in their order, subsets of `custom` name them by it,
# flows are a row a modality, reconstructions across modalities of MMVAE+ are random,
# and the pools of MoHELVAE are as wide as narrow experts are apart.
@pytest.mark.parametrize(
    "name", each_model(*WITH_NETWORK, "custom", *FLOWS, "mmvae_plus", "mohelvae")
)
def test_the_order_of_modalities_does_not_matter(name, make, batch):
    order = [2, 0, 1]
    shapes = {list(SHAPES)[i]: SHAPES[list(SHAPES)[i]] for i in order}
    options = options_of(name, WITHOUT_DRAWS)
    params = narrow(params_of(make(name, **options)))
    other = dict(params)
    if name == "unimodal_official":  # whose prior has a row a modality
        other["prior"] = params["prior"][np.array(order)]
    loss, terms = jax.jit(make(name, **options).objective)(params, batch, KEY, 1.5)
    shuffled = make(name, shapes, **options).objective
    found, other_terms = jax.jit(shuffled)(other, batch, KEY, 1.5)
    assert float(found) == pytest.approx(float(loss), rel=2e-3)
    np.testing.assert_allclose(other_terms.kl, terms.kl, rtol=1e-3)
    for m in SHAPES:
        np.testing.assert_allclose(
            other_terms.log_likelihood[m], terms.log_likelihood[m], rtol=2e-3
        )


def test_what_the_config_says_reaches_the_objective(tiny_config, make, batch):
    config = tiny_config("mopoe")
    jaxprs = set()
    for estimator in elbo.SUBSET_ESTIMATORS:
        config.model.options.subset_estimator = estimator
        model = models.make_model(config, SHAPES)
        params = params_of(model)
        jaxprs.add(str(jax.make_jaxpr(model.objective)(params, batch, KEY, 1.0)))
    assert len(jaxprs) == 3
    experts = model.encode(params, batch)
    released, paper = (
        make("mopoe", prior_expert=choice).mixture_posterior(
            params, experts, np.ones(len(SHAPES), bool)
        )[0]
        for choice in ("released", "paper")
    )
    differs = (released.mean != paper.mean).any(axis=(1, 2))
    assert differs.tolist() == [False] * 6 + [True]


def test_modalities_may_differ(tiny_config):
    config = tiny_config("mopoe")
    config.modalities.m1 = {"likelihood": "bernoulli"}
    config.modalities.m2 = {"network": "mlp", "network_options": {"widths": (4, 3)}}
    config.lock()
    shapes = {"m0": (2, 2, 1), "m1": (5,), "m2": (3, 2)}
    model = models.make_model(config, shapes)
    params = params_of(model)
    sizes = {m: len(p["params"]) for m, p in params["decoders"].items()}
    assert sizes == {"m0": 2, "m1": 2, "m2": 3}
    decoded = model.decode(params, 100 * model.sample_prior(params, KEY, 2))
    assert {m: x.shape[1:] for m, x in decoded.items()} == shapes
    assert (decoded["m1"] >= 0).all() and (decoded["m1"] <= 1).all()
    assert (decoded["m0"] < 0).any()


def set_field(path, value):
    def change(config):
        *parents, name = path.split(".")
        for parent in parents:
            config = config[parent]
        config[name] = value

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "mopoe",
            set_field("model.name", "moe"),
            "unknown model 'moe' in config.model.name; choose one of "
            + ", ".join(models.MODELS),
        ),
        (
            "mopoe",
            set_field("model.latent_dim", 0),
            "config.model.latent_dim must be >= 1, got 0",
        ),
        (
            "unimodal",
            set_field("model.latent_dim", 2),
            "latent_dim = 2 leaves no latent dimension for each of 3 unimodal VAEs",
        ),
        (
            "mopoe",
            set_field("modalities.m7", {"network": "mlp"}),
            "config.modalities names m7, but the data have m0, m1, m2",
        ),
        (
            "mopoe",
            set_field("model.options.subset_estimator", "all"),
            "unknown config.model.options.subset_estimator 'all'; choose one of "
            "stratified, random, exact",
        ),
        (
            "mvae",
            set_field("model.options.prior_expert", "no"),
            "unknown config.model.options.prior_expert 'no'; choose one of paper, "
            "released, always, never",
        ),
        (
            "custom",
            set_field("model.latent_dim", 4),
            "no subsets are given; name the modalities of each, for instance "
            "((0,), (0, 1))",
        ),
        (
            "mvtcae",
            set_field("model.options.prior_expert", "always"),
            "config.model.options.prior_expert is no option of the model 'mvtcae', "
            "which reads alpha; a model is chosen, with its options, by "
            "--config=FILE.py:mvtcae",
        ),
        (
            "jmvae",
            set_field("model.options.alpha", 1.0),
            "config.model.options.alpha is no option of the model 'jmvae', which reads "
            "none; a model is chosen, with its options, by --config=FILE.py:jmvae",
        ),
        (
            "mvae",
            set_field("modality.network", "vit"),
            "unknown network 'vit'; choose one of conv, resnet, spatial, mlp, "
            "layered, text_conv, transformer",
        ),
        (
            "mvae",
            set_field("modality.likelihood", "cauchy"),
            f"unknown likelihood 'cauchy'; choose one of {', '.join(LIKELIHOODS)}",
        ),
    ],
)
def test_errors_of_configs(name, change, message, tiny_config):
    config = tiny_config(name)
    change(config)
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        models.make_model(config, SHAPES)


def trained(task, members, data, **options):
    """The states of members after some steps."""
    hyper, keys = sweep.stack_hyper(members), sweep.stack_keys(members)
    execution = Execution("vmap", 20)
    return loop.fit(
        compile_steps(task, execution),
        init_states(task, hyper, keys, data),
        hyper,
        keys,
        data,
        batch_size=8,
        data_seed=0,
        execution=execution,
        **options,
    )


@pytest.mark.slow
def test_experts_that_drift_do_not_stop_mvae(make, tiny_images):
    """Experts without a penalty of their own may drift to any variance. From a
    log-variance of 100 on, the published product's gradient is not finite
    (tests/mathematics/test_posteriors.py); the log-space product of bounded
    log-variances trains on."""
    model = make("mvae")
    drifted = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 100.0 * _is_bias_of_log_variance(path),
        params_of(model),
    )
    task = vae_task(model)._replace(init=lambda key: drifted)
    members = [Member(32.0, 1e-3, 0)]
    state = trained(task, members, tiny_images(SHAPES, 16), num_steps=5)
    assert bool(state.finite[0])


def _is_bias_of_log_variance(path):
    names = jax.tree_util.keystr(path)
    return "encoders" in names and "log_variance" in names and "bias" in names


@pytest.mark.slow
def test_mvae_trains_at_large_beta(make, tiny_images):
    """Where the paper reports numerical failure; the rate is far above its own."""
    model = make("mvae")
    params = params_of(model)
    task = vae_task(model)._replace(init=lambda key: params)
    members = [Member(beta, 0.05, 0) for beta in (9.0, 32.0)]
    losses = []
    events = loop.Events(20, lambda step, metrics, finite: losses.append(metrics))
    data = tiny_images(SHAPES, 32)
    state = trained(task, members, data, num_steps=60, events=events)
    assert state.finite.all() and len(losses) == 3
    for leaf in jax.tree.leaves((state.params, losses)):
        assert np.isfinite(leaf).all()
    # At a beta this large the posterior falls back to the prior.
    assert (losses[-1]["train/kl"] < 0.5 * losses[0]["train/kl"]).all()
    assert (losses[-1]["train/loss"] < losses[0]["train/loss"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m9": {"likelihood": "gaussian"}}, "names m9, but the data have"),
        ({"m0": {"likelihod": "gaussian"}}, "m0 has no field 'likelihod'"),
        (
            {"m0": {"network": "conv", "network_options": {"form": "fast"}}},
            "unknown network_options.form 'fast'",
        ),
    ],
)
def test_what_differs_for_one_modality_is_checked(changes, message):
    config = base.get_config()
    config.modalities.update(changes)
    with pytest.raises(UsageError, match=message):
        models.make_model(config, {"m0": (8, 8, 3), "m1": (8, 8, 3)})


def test_a_modality_may_have_a_network_of_its_own():
    config = base.get_config()
    config.model.latent_dim = 3
    config.modality.network = "mlp"
    config.modality.network_options.widths = (5,)
    config.modalities.m1 = {"network": "conv"}
    model = models.make_model(config, {"m0": (8, 8, 3), "m1": (8, 8, 3)})
    params = jax.eval_shape(model.init, jax.random.key(0))
    encoders = params["encoders"]
    assert "StridedConv_0" in encoders["m1"]["params"]
    assert "StridedConv_0" not in encoders["m0"]["params"]


def test_another_network_drops_the_options_of_the_former():
    config = polydigits.get_config("mopoe,network=conv")
    assert config.modality.network == "conv"
    assert not config.modality.network_options


def test_every_model_has_what_others_ask_for():
    labels = [model.label for model in models.MODELS.values()]
    assert len(set(labels)) == len(labels)
    keys = {}  # BibTeX key -> authors and year
    for model in models.MODELS.values():
        keys.setdefault(model.citation.key, set()).add(model.citation.text)
        assert model.citation.text
        for option in model.options.values():
            assert option.rule(option.default)
    assert all(len(texts) == 1 for key, texts in keys.items() if key)


def test_documents_cite_what_the_table_does():
    root = Path(__file__).parents[2]
    equations, *_ = (root / "docs/models.md").read_text().split("## ")
    lines = [line for line in equations.splitlines() if line.startswith("| `")]
    assert len(lines) > len(models.MODELS)
    for line in lines:
        first, *_, source = line.strip("| ").split(" | ")
        for name in re.findall(r"`(\w+)`", first):
            assert models.MODELS[name].citation.text in source, name
