import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmvae_jax import networks
from mmvae_jax.errors import UsageError
from mmvae_jax.networks import images, vectors
from mmvae_jax.types import TokenShape

KEY = jax.random.key(0)
IMAGE = (28, 28, 3)


def shapes_of(module, *shape):
    """(output, parameters) as shapes, nothing computed."""
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    return jax.eval_shape(module.init_with_output, KEY, x)


def num_parameters(module, *shape):
    _, params = shapes_of(module, *shape)
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("network", "encoder_size", "decoder_size"),
    [("conv", 1_667_648, 1_143_747), ("resnet", 13_516_224, 7_104_963)],
)
def test_parameter_counts_of_the_published_networks(
    network, encoder_size, decoder_size
):
    encoder, decoder = networks.make_networks(network, IMAGE, 512)
    assert num_parameters(encoder, *IMAGE) == encoder_size
    assert num_parameters(decoder, 512) == decoder_size


def test_parameter_counts_of_the_resnet_trunk_and_the_classifiers():
    encoder, _ = networks.make_networks("resnet", IMAGE, 512)
    heads = 2 * (256 * 7 * 7 + 1) * 512
    assert num_parameters(encoder, *IMAGE) - heads == 670_144
    assert num_parameters(images.ConvClassifier(10), *IMAGE) == 130_568
    trunk_and_dense = 670_144 + (256 * 7 * 7 + 1) * 10
    assert num_parameters(images.ResNetClassifier(10), *IMAGE) == trunk_and_dense


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("conv", {"channels": (2, 3, 4)}),
        ("resnet", {"width": 2, "max_width": 4}),
        ("mlp", {"widths": (4,)}),
    ],
)
def test_square_images_of_any_size_round_trip(network, options):
    sizes = {"conv": range(8, 65), "resnet": range(8, 65, 3), "mlp": (8, 13)}
    for size in sizes[network]:
        shape = (size, size, 3)
        encoder, decoder = networks.make_networks(network, shape, 5, **options)
        q, _ = shapes_of(encoder, *shape)
        assert q.mean.shape == q.log_variance.shape == (2, 5)
        x, _ = shapes_of(decoder, 5)
        assert x.shape == (2, *shape)


def test_classifiers_take_any_square_image():
    for size in (8, 15, 28, 33):
        for name, classifier in networks.CLASSIFIERS.items():
            (features, logits), _ = shapes_of(classifier(7), size, size, 1)
            assert logits.shape == (2, 7) and features.ndim == 2
            assert name != "conv" or features.shape == (2, 128)


def test_dense_networks_take_any_shape():
    encoder, decoder = networks.make_networks("mlp", (3, 5), 4, widths=(8, 6))
    q, _ = shapes_of(encoder, 3, 5)
    assert q.mean.shape == (2, 4)
    # The decoder mirrors the encoder's widths.
    kernels = sorted(
        leaf.shape
        for leaf in jax.tree.leaves(shapes_of(decoder, 4)[1])
        if leaf.ndim > 1
    )
    assert kernels == [(4, 6), (6, 8), (8, 15)]
    assert shapes_of(decoder, 4)[0].shape == (2, 3, 5)


def test_log_variances_are_softly_bounded():
    head = vectors.GaussianHead(1)
    params = head.init(KEY, jnp.zeros((1, 1)))
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, leaf.ndim == 2), params)
    raw = np.float32([-1e6, -100, -5, -1, 0, 1, 5, 100, 1e6])
    q = head.apply(params, raw[:, None])
    np.testing.assert_array_equal(q.mean[:, 0], raw)
    log_variance = np.asarray(q.log_variance)[:, 0]
    assert (np.abs(log_variance) <= 20).all()
    np.testing.assert_allclose(log_variance[[0, -1]], [-20, 20])
    assert (np.diff(log_variance[1:-1]) > 0).all()
    inside = np.abs(raw) <= 5
    np.testing.assert_allclose(log_variance[inside], raw[inside], rtol=0.021)


def test_dropout_is_off_unless_training():
    classifier = images.ConvClassifier(3)
    x = jnp.float32(np.random.default_rng(0).uniform(size=(4, 8, 8, 3)))
    params = jax.jit(classifier.init)(KEY, x)
    features, logits = jax.jit(classifier.apply)(params, x)
    dense = params["params"]["Dense_1"]
    np.testing.assert_allclose(
        logits, features @ dense["kernel"] + dense["bias"], rtol=1e-5, atol=1e-6
    )

    @jax.jit
    def train(key):
        return classifier.apply(
            params,
            x,
            is_training=True,
            rngs={"dropout": key},
            capture_intermediates=lambda module, _: type(module).__name__ == "Dropout",
        )

    (_, first), captured = train(jax.random.key(0))
    (_, second), _ = train(jax.random.key(1))
    assert not np.allclose(first, second)
    # Behind the convolutions it drops whole feature maps.
    maps = np.asarray(captured["intermediates"]["Dropout_0"]["__call__"][0])
    zeros = (maps == 0).mean((1, 2))
    assert set(np.unique(zeros)) == {0.0, 1.0} and 0.2 < zeros.mean() < 0.8


def test_the_resnet_classifier_has_no_dropout():
    classifier = images.ResNetClassifier(3)
    x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    params = jax.eval_shape(classifier.init, KEY, x)
    jaxprs = [
        str(jax.make_jaxpr(lambda p, x, t=t: classifier.apply(p, x, t))(params, x))
        for t in (False, True)
    ]
    assert jaxprs[0] == jaxprs[1]


def test_unknown_network():
    message = "unknown network 'vit'; choose one of conv, resnet, spatial, mlp"
    with pytest.raises(UsageError, match=message):
        networks.make_networks("vit", IMAGE, 4)


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_unknown_option(network):
    shape = (
        IMAGE
        if networks.NETWORKS[network].takes == networks.IMAGES
        else TokenShape(4, 5)
    )
    with pytest.raises(UsageError, match=f"network '{network}': .*'height'"):
        networks.make_networks(network, shape, 49, height=3)


@pytest.mark.parametrize(
    "size", [8, *(pytest.param(x, marks=pytest.mark.slow) for x in (5, 13, 16, 28))]
)
def test_spatial_latents_have_a_place(size):
    """Round trip; and a pixel changes the latents of the places near it alone."""
    places = images.num_places(size, (2, 3))
    side = math.isqrt(places)
    encoder, decoder = networks.make_networks(
        "spatial", (size, size, 3), 2 * places, channels=(2, 3)
    )
    x = jax.random.uniform(KEY, (1, size, size, 3))
    params = encoder.init(KEY, x)
    q = encoder.apply(params, x)
    assert q.mean.shape == q.log_variance.shape == (1, 2 * places)
    changed = encoder.apply(params, x.at[0, 0, 0].add(1.0)).mean != q.mean
    where = np.asarray(changed).reshape(side, side, 2).any(-1)
    assert where.any() and not where[2:].any() and not where[:, 2:].any()
    decoded, decoder_params = shapes_of(decoder, 2 * places)
    assert decoded.shape == (2, size, size, 3)
    params = jax.tree.map(lambda x: jnp.ones(x.shape), decoder_params)
    z = jnp.ones((1, side, side, 2))
    one, other = (
        decoder.apply(params, z.reshape(1, -1)) for z in (z, z.at[0, 0, 0].add(1.0))
    )
    where = np.asarray(one != other).any((0, 3))
    assert where.any() and not where[10:].any() and not where[:, 10:].any()


def test_spatial_latents_fill_their_places():
    message = "latent dimensions, 50, must be a multiple of the 49 places .* 28 pixels"
    with pytest.raises(UsageError, match=message):
        networks.make_networks("spatial", IMAGE, 50)


@pytest.mark.parametrize("network", ["conv", "resnet", "spatial"])
@pytest.mark.parametrize("shape", [(8, 9, 3), (8, 8), (64,)])
def test_images_are_square(network, shape):
    message = f"network '{network}' is for square images, got shape {shape}; choose on"
    with pytest.raises(UsageError, match=re.escape(message)):
        networks.make_networks(network, shape, 4)


def test_an_option_is_given_to_the_network_that_has_it():
    made = networks.make_networks("layered", (8, 8, 1), 4, widths=(16,), reach=0.5)
    assert made[0].widths == made[1].widths == (16,) and made[1].reach == 0.5
    with pytest.raises(UsageError, match=r"widths must be a tuple like \(\d.*got 5"):
        networks.make_networks("layered", (8, 8, 1), 4, widths=5)
    message = "outer_kernel must be a whole number like 6, got .3,."
    with pytest.raises(UsageError, match=message):
        networks.make_networks("spatial", (8, 8, 1), 4, outer_kernel=(3,))


def test_the_table_of_docs_has_every_network_and_option():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    _, _, text = text.partition("## Networks")
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \| .* \| (.*) \|$", text.partition("\n## ")[0], re.M
    )
    given = {"latent_dim", "shape", "num_words", "parts", "parent", "name"}
    assert [name for name, _, _ in rows] == list(networks.NETWORKS)
    for name, what, cell in rows:
        row = networks.NETWORKS[name]
        assert what == row.takes
        known = dict(re.findall(r"`(\w+)` = ([^;]*)", cell))
        fields = [f for x in row[:2] for f in dataclasses.fields(x)]
        fields = [f for f in fields if f.name not in given]
        assert known.keys() == {f.name for f in fields}, name
        for f in fields:  # of both networks
            shown = f'"{f.default}"' if isinstance(f.default, str) else str(f.default)
            assert shown in known[f.name], (name, f.name)
