import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmvae_jax import models, networks, tokens
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import distributions
from mmvae_jax.networks import text
from mmvae_jax.training import sweep
from mmvae_jax.types import TokenShape

KEY = jax.random.key(0)
CATEGORICAL = distributions.make_likelihood("categorical")
CUB = TokenShape(32, 1590)
SMALL = TokenShape(7, 9)
TEXT = {
    # Both forms have the same values (tests/networks/test_layers.py); this one
    # compiles faster.
    "text_conv": {"channels": (2, 4, 4, 4, 8), "form": "lax"},
    "transformer": {"width": 8, "depth": 2, "num_heads": 2},
    "mlp": {"widths": (8,)},
}


def captions(num=3, shape=SMALL, seed=0):
    """Random tokens; caption i has i + 1 words, then the end and padding."""
    rng = np.random.default_rng(seed)
    x = rng.integers(3, shape.num_words, (num, shape.length)).astype(np.int32)
    for i, row in enumerate(x):
        row[i + 1] = tokens.EOS
        row[i + 2 :] = tokens.PAD
    return jnp.asarray(x)


def num_parameters(module, example):
    _, params = jax.eval_shape(module.init_with_output, KEY, example)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module", params=TEXT)
def pair(request):
    """Encoder, decoder, and their parameters."""
    modules = networks.make_networks(request.param, SMALL, 4, **TEXT[request.param])

    @jax.jit
    def init(key):
        given = (captions(), jnp.ones((1, 4)))
        return [m.init(key, x) for m, x in zip(modules, given, strict=True)]

    return *modules, init(KEY)


def test_parameter_counts_of_the_published_pair():
    encoder, decoder = networks.make_networks("text_conv", CUB, 64)
    x, z = networks.blank(CUB), jnp.zeros((1, 64))
    head_biases, last_layer = 2 * 64, (128 + 1) * 1590
    assert num_parameters(encoder, x) - head_biases == 762_048
    assert num_parameters(decoder, z) - last_layer == 426_496 + 960


def test_parameter_counts_of_the_resnet_at_64_pixels():
    shape, options = (64, 64, 3), {"min_size": 2, "max_width": 256}
    encoder, decoder = networks.make_networks("resnet", shape, 64, **options)
    heads = 2 * (1024 + 1) * 64
    assert num_parameters(encoder, networks.blank(shape)) - heads == 4_210_624
    assert num_parameters(decoder, jnp.zeros((1, 64))) == 4_276_931


def test_parameter_counts_of_the_transformer():
    encoder, decoder = networks.make_networks("transformer", CUB, 64)
    width, length, words = 128, CUB.length, CUB.num_words
    block = 12 * width**2 + (4 + 5 + 4) * width
    heads = 2 * (width + 1) * 64
    trunk = words * width + (length + 1) * width + 2 * block + 2 * width
    assert num_parameters(encoder, networks.blank(CUB)) == trunk + heads
    others = (64 + 1) * width + length * width + 2 * width + (width + 1) * words
    assert num_parameters(decoder, jnp.zeros((1, 64))) == 2 * block + others


@pytest.mark.parametrize("network", TEXT)
def test_captions_of_any_length(network):
    for length in (1, 2, 5, 8, 16, 31, 32):
        shape = TokenShape(length, 6)
        pair = networks.make_networks(network, shape, 3, **TEXT[network])
        x, z = networks.blank(shape, 2), jnp.zeros((2, 3))
        q, _ = jax.eval_shape(pair[0].init_with_output, KEY, x)
        assert q.mean.shape == q.log_variance.shape == (2, 3)
        logits, _ = jax.eval_shape(pair[1].init_with_output, KEY, z)
        assert logits.shape == (2, length, 6)


@pytest.mark.slow
def test_every_parameter_learns(pair):
    encoder, decoder, params = pair
    # Every word occurs, and every position.
    x = jnp.arange(8 * SMALL.length, dtype=jnp.int32).reshape(8, -1) % 7 + 2
    x = jnp.where((x == tokens.EOS) | (x == 8), x - 2, x).at[:4, 3].set(tokens.EOS)

    @jax.jit
    @jax.grad
    def gradient(params):
        q = encoder.apply(params[0], x)
        z = q.mean + jnp.exp(0.5 * q.log_variance)
        return CATEGORICAL.log_prob(decoder.apply(params[1], z), x).sum()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        name = jax.tree_util.keystr(path)
        assert jnp.isfinite(leaf).all(), name
        # A key's bias adds the same to all logits of a query: softmax ignores it.
        assert jnp.any(leaf != 0) or "['key']['bias']" in name, name


def test_examples_do_not_look_at_each_other(pair):
    encoder, decoder, params = pair
    x, z = captions(4), jax.random.normal(KEY, (4, 4))
    order = np.array([2, 0, 3, 1])
    for module, own, given in ((encoder, params[0], x), (decoder, params[1], z)):
        apply = jax.jit(module.apply)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[order], b, rtol=1e-4, atol=1e-5),
            apply(own, given),
            apply(own, given[order]),
        )


def test_the_order_of_words_matters(pair):
    encoder, _, params = pair
    x = captions()[2:]
    swapped = x[:, jnp.array([1, 0, *range(2, SMALL.length)])]
    one, other = (jax.jit(encoder.apply)(params[0], own).mean for own in (x, swapped))
    assert np.abs(one - other).max() > 1e-4


def test_the_transformer_reads_up_to_the_end():
    encoder, _ = networks.make_networks("transformer", SMALL, 4, **TEXT["transformer"])
    x = captions()
    params = jax.jit(encoder.init)(KEY, x)
    is_after = np.asarray(x) == tokens.PAD
    other = jnp.where(is_after, jnp.arange(SMALL.length) + 2, x)
    apply = jax.jit(encoder.apply)
    jax.tree.map(np.testing.assert_array_equal, apply(params, x), apply(params, other))
    # Its end, and what is before, are seen.
    for changed in (x.at[0, 1].set(3), x.at[0, 0].set(4)):
        assert np.abs(apply(params, x).mean - apply(params, changed).mean).max() > 1e-4


def test_a_block_attends_to_what_the_mask_shows():
    block = text.TransformerBlock(2)
    h = jax.random.normal(KEY, (2, 5, 4))
    params, apply = jax.jit(block.init)(KEY, h), jax.jit(block.apply)
    mask = jnp.array([True, True, False, True, False])[None, None, None]
    other = h.at[:, 2].add(1.0).at[:, 4].add(1.0)
    one, two = apply(params, h, mask), apply(params, other, mask)
    np.testing.assert_array_equal(one[:, [0, 1, 3]], two[:, [0, 1, 3]])
    # Without positions it treats all alike.
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        apply(params, h[:, order]),
        apply(params, h)[:, order],
        rtol=1e-4,
        atol=1e-5,
    )


def test_positions_count_up_to_the_end():
    logits = jax.random.normal(KEY, (3, *SMALL))
    x = captions()
    masked = distributions.make_likelihood("categorical", count_padding=False)
    words = [
        sum(jax.nn.log_softmax(logits[i, t])[x[i, t]] for t in range(i + 2))
        for i in range(3)
    ]
    np.testing.assert_allclose(masked.log_prob(logits, x), words, rtol=1e-5)
    # What follows the end has no influence, whatever it is, nor a gradient.
    is_after = np.asarray(x) == tokens.PAD
    other = jnp.where(is_after, 5, x)
    np.testing.assert_array_equal(
        masked.log_prob(logits, x), masked.log_prob(logits, other)
    )
    gradient = jax.grad(lambda out: masked.log_prob(out, x).sum())(logits)
    assert (np.asarray(gradient)[is_after] == 0).all()
    assert (np.abs(gradient).sum(-1)[~is_after] > 0).all()
    published = distributions.make_likelihood("categorical").log_prob(logits, x)
    assert (published < masked.log_prob(logits, x)).all()


def test_a_caption_without_an_end_counts_whole():
    x = np.full((1, 4), 7)
    assert tokens.until_eos(x).all()
    x[0, [1, 3]] = tokens.EOS
    np.testing.assert_array_equal(tokens.until_eos(x), [[True, True, False, False]])
    np.testing.assert_array_equal(tokens.until_eos(jnp.asarray(x)), tokens.until_eos(x))


@pytest.mark.slow
def test_a_member_is_its_solo_run(pair):
    encoder, decoder, params = pair
    x = captions()

    def value(params):
        logits = decoder.apply(params[1], encoder.apply(params[0], x).mean)
        return CATEGORICAL.log_prob(logits, x)

    members = [params, jax.tree.map(lambda leaf: 0.9 * leaf, params)]
    solo = np.stack(list(map(jax.jit(value), members)))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    together = jax.jit(sweep.map_members(value, "vmap", 0))(stacked)
    np.testing.assert_allclose(together, solo, rtol=1e-5)


@pytest.fixture(scope="module")
def config_of(tiny_config):
    """(model, weight of images, weight of captions) -> a config for both."""

    def build(name, image=1.0, caption=1.0, **fields):
        config = tiny_config(name, **fields)
        config.modalities.image = {"likelihood_weight": image}
        config.modalities.caption = {
            "network": "mlp",
            "network_options": {"widths": (8,)},
            "likelihood": "categorical",
            "likelihood_weight": caption,
        }
        return config

    return build


SHAPES = {"image": (4, 4, 1), "caption": SMALL}
BETA = 0.7


@pytest.fixture(scope="module")
def losses(config_of):
    """(model, weights) -> loss, its terms, and its gradient."""

    @functools.cache
    def build(name, image=1.0, caption=1.0):
        config = config_of(name, image, caption)
        if "num_samples" in config.model.options:
            config.model.options.num_samples = 1
        model = models.make_model(config, SHAPES)
        params = jax.jit(model.init)(KEY)
        batch = {
            "image": jax.random.uniform(KEY, (6, 4, 4, 1)),
            "caption": captions(5)[jnp.array([0, 1, 2, 3, 4, 0])],
        }
        step = jax.value_and_grad(model.objective, has_aux=True)
        return jax.jit(step)(params, batch, jax.random.key(3), BETA)

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mopoe",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("mvae_plus", "mmvae_official")
        ),
    ],
)
def test_weights_act_in_the_loss_alone(losses, name):
    (plain, terms), _ = losses(name)
    (value, same), gradient = losses(name, 1.0, 5.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        terms._replace(auxiliary_log_likelihood=0.0),
        same._replace(auxiliary_log_likelihood=0.0),
    )
    gained = 4 * np.mean(terms.log_likelihood["caption"])
    # What is no part of a bound is weighted before it is summed.
    gained += np.mean(same.auxiliary_log_likelihood - terms.auxiliary_log_likelihood)
    assert float(plain - value) == pytest.approx(float(gained), rel=1e-4)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_weights_of_terms_that_are_summed_over_modalities(losses):
    """Each weight counts its own part: 5 a + b and a + 5 b are together 6 (a + b)."""
    (_, terms), _ = losses("mvae_plus")
    found = [losses("mvae_plus", *own)[0][1] for own in ((1.0, 5.0), (5.0, 1.0))]
    one, other = (terms.auxiliary_log_likelihood for terms in found)
    assert np.abs(one - other).min() > 1
    np.testing.assert_allclose(
        one + other, 6 * terms.auxiliary_log_likelihood, rtol=1e-5
    )


@pytest.mark.slow
def test_what_is_evaluated_has_no_weights(config_of):
    batch = {"image": jnp.ones((3, 4, 4, 1)), "caption": captions()}
    z, found = jnp.ones((3, 6)), []
    for weight in (1.0, 5.0):
        model = models.make_model(config_of("mopoe", 1.0, weight), SHAPES)
        params = jax.jit(model.init)(KEY)
        found.append(jax.jit(model.log_likelihood)(params, z, batch))
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_weights_of_one_change_no_bit(config_of):
    config = config_of("mopoe")
    plain = config_of("mopoe")
    for modality in ("image", "caption"):
        del plain.modalities[modality]["likelihood_weight"]
    jaxprs = []
    for own in (config, plain):
        model = models.make_model(own, SHAPES)
        params = jax.eval_shape(model.init, KEY)
        batch = {m: networks.blank(shape, 2) for m, shape in SHAPES.items()}
        jaxprs.append(str(jax.make_jaxpr(model.objective)(params, batch, KEY, 1.0)))
    assert jaxprs[0] == jaxprs[1]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_weights(config_of, bad):
    message = f"likelihood_weight of caption must be > 0 and finite, got {bad}"
    with pytest.raises(UsageError, match=message):
        models.make_model(config_of("mopoe", 1.0, bad), SHAPES)


@pytest.mark.parametrize("network", ["text_conv", "transformer"])
def test_networks_for_captions_alone(network):
    message = rf"network '{network}' is for tokens, got shape \(8, 8, 3\)"
    with pytest.raises(UsageError, match=message):
        networks.make_networks(network, (8, 8, 3), 4)
    with pytest.raises(
        UsageError, match="'conv' is for square .* choose one of mlp, tex"
    ):
        networks.make_networks("conv", SMALL, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 6}, "width 6 is no multiple of num_heads 4"),
        ({"depth": 0}, r"layers need >= 1 unit, got \[0\]"),
    ],
)
def test_impossible_sizes_of_the_transformer(options, message):
    with pytest.raises(UsageError, match=message):
        networks.make_networks("transformer", SMALL, 4, **options)
