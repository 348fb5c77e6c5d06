"""Flows of latents by a Transformer: its tokens, what a draw depends on, training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_models import flow_params

import mmvae_jax
from mmvae_jax import models
from mmvae_jax.errors import UsageError

# Latents of images are 2 x 2 places of 2 numbers, those of a vector one token of 8.
IMAGES = {"m0": (4, 4, 1), "m1": (3, 3, 2)}
MIXED = {**IMAGES, "m2": (3,)}
D, B, C, WIDTH = 8, 3, 4, 8
KEY = jax.random.key(1)
# Model, its options, its modalities, the tokens of a network.
FORMS = {
    "latent_flow": ("latent_flow", {}, MIXED, 9),
    "joint": ("code_flow", {"flow": "joint"}, MIXED, 9),
    "modality": ("code_flow", {"flow": "modality"}, IMAGES, 4),
}
slow = pytest.mark.slow


def make(tiny_config, name, shapes, **options):
    small = {"flow_width": WIDTH, "flow_depth": 1, "ode_steps": 2, "guidance": 1.0}
    options = {"flow_network": "transformer"} | small | options
    if name == "code_flow":
        options = {"code_dim": C, "code_network": "mlp"} | options
    config = tiny_config(name, D, **options)
    for m, shape in shapes.items():
        if len(shape) == 3:
            own = {"network": "spatial", "network_options": {"channels": (3,)}}
            config.modalities[m] = own
    return models.make_model(config, shapes)


def examples(shapes, num=B):
    rng = np.random.default_rng(0)
    return {m: np.float32(rng.uniform(size=(num, *x))) for m, x in shapes.items()}


@pytest.fixture(
    scope="module",
    params=[
        "latent_flow",
        *(pytest.param(x, marks=slow) for x in ("joint", "modality")),
    ],
)
def form(request, tiny_config):
    name, options, shapes, num_tokens = FORMS[request.param]
    return request.param, make(tiny_config, name, shapes, **options), num_tokens


def test_draws_depend_on_every_token_that_is_given(form):
    """And on the code, if any; of one flow for each modality, on the code alone."""
    name, model, num_tokens = form
    params, batch = flow_params(model), examples(FORMS[name][2])
    flow = params["flows"]
    flow = flow if name == "latent_flow" else flow[name]
    assert flow["params"]["positions"].shape[-2:] == (num_tokens, WIDTH)
    num, given = len(batch), np.arange(len(batch)) != 1
    experts = jax.tree.map(np.asarray, jax.jit(model.encode)(params, batch))
    code = experts.mean.shape[-1] - D

    @jax.jit
    def slopes(mean):
        def drawn(mean):
            q = model.posterior(params, experts._replace(mean=mean), given, KEY)
            rest = q.mean[:, code:].reshape(B, num, D)
            return jnp.sum(rest[:, 1] * jnp.arange(1.0, D + 1)), rest

        return jax.grad(drawn, has_aux=True)(mean)

    slope, rest = slopes(experts.mean)
    assert rest.shape == (B, num, D) and np.isfinite(rest).all()
    np.testing.assert_array_equal(
        rest[:, given], experts.mean.swapaxes(0, 1)[:, given, code:]
    )
    is_used = np.abs(slope) > 1e-7
    assert is_used[given][..., :code].all()
    assert is_used[given][..., code:].all() == (name != "modality")
    assert not is_used[1].any()
    if name == "modality":
        assert not is_used[..., code:].any()


@slow
def test_samples_and_densities_are_those_of_all_latents(form):
    _, model, _ = form
    params = flow_params(model)
    sample = jax.jit(model.sample_prior, static_argnums=2)(params, KEY, 2)
    assert sample.shape == (2, model.latent_dim) and np.ptp(sample, axis=0).all()
    density = jax.jit(model.log_prior)
    one = density(params, sample)
    assert one.shape == (2,) and np.isfinite(one).all()
    np.testing.assert_allclose(density(params, sample[::-1])[::-1], one, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["latent_flow", "joint", "modality"])
def test_training_lowers_the_loss_of_the_flow(tiny_config, name):
    model_name, options, shapes, _ = FORMS[name]
    model = make(tiny_config, model_name, shapes, **options)
    objective, batch = model.stages[-1].objective, examples(shapes, 16)
    params, optimiser = jax.jit(model.init)(KEY), optax.adam(1e-2)
    # Latents that are nearly constant leave little to guess.
    params["whitening"]["squares"] *= 25

    @jax.jit
    def run(params):
        def step(carry, key):
            flow, state = carry
            value, slope = jax.value_and_grad(
                lambda flow: objective(params | {"flows": flow}, batch, key, 1.0)[0]
            )(flow)
            updates, state = optimiser.update(slope, state)
            return (optax.apply_updates(flow, updates), state), value

        start = params["flows"], optimiser.init(params["flows"])
        return jax.lax.scan(step, start, jax.random.split(KEY, 200))[1]

    losses = np.asarray(run(params))
    assert losses[-40:].mean() < 0.7 * losses[:40].mean()


@slow
def test_what_was_trained_is_loaded(tmp_path):
    name, options, shapes, _ = FORMS["latent_flow"]
    rng = np.random.default_rng(0)
    data = {
        m: rng.integers(0, 256, (9, *x)).astype(np.uint8)
        if len(x) == 3
        else rng.normal(size=(9, *x)).astype(np.float32)
        for m, x in shapes.items()
    }
    small = {"flow_network": "transformer", "flow_width": WIDTH, "flow_depth": 1}
    spatial = {"network": "spatial", "network_options": {"channels": (3,)}}
    fitted = mmvae_jax.fit(
        data,
        model=name,
        num_steps=6,
        latent_dim=D,
        is_shown=False,
        options=small | {"ode_steps": 2} | options,
        config={
            "modality.network_options.widths": (4,),
            **{f"modalities.{m}": spatial for m in IMAGES},
        },
    )
    loaded = mmvae_jax.load(mmvae_jax.export(fitted, tmp_path / "model"))
    for found in (
        (fitted.params, loaded.params),
        (mmvae_jax.embed(fitted, data), mmvae_jax.embed(loaded, data)),
    ):
        jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize(
    ("name", "shapes", "options", "message"),
    [
        ("latent_flow", MIXED, {"flow_width": 6}, "flow_width to be a multiple of its"),
        (
            "code_flow",
            {"m0": (3,), "m1": (3,)},
            {},
            "m0 is a single one: .* flow to 'jo",
        ),
        ("code_flow", MIXED, {}, r"m0 and m2 are \(2, 2, 2\) and \(8,\): set flow to"),
        ("latent_flow", {"m0": (3,)}, {}, "m0 is a single one: set config.modality"),
        ("latent_flow", MIXED, {"flow_network": "cnn"}, "one of mlp, transformer"),
    ],
)
def test_what_has_no_sense_is_refused(tiny_config, name, shapes, options, message):
    with pytest.raises(UsageError, match=f"flow_network.*{message}") as error:
        make(tiny_config, name, shapes, **options)
    assert "\n" not in str(error.value)
