"""Agreement on what a condition leaves open, of models of which it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import toy_model

from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import EvaluationData, Reader, Undefined, require_open
from mmvae_jax.evaluation.metrics import one_to_many
from mmvae_jax.types import Gaussian

MODALITIES = ("digit", "left", "right", "note")
SHOWN = {"place": ("left", "right")}
NUM, NUM_PLACES = 2000, 4
rng = np.random.default_rng(0)
PLACE = rng.integers(0, NUM_PLACES, NUM).astype(np.int32)


def reader():
    """The value of a pixel is 10 times the place."""

    def read(images):
        return np.round(np.asarray(images)[:, 0, 0, 0] * 255 / 10)

    return Reader(lambda images: (images, images), 1.0, read)


def make_data(shown=SHOWN, observed=None, batch_size=300):
    images = np.uint8(10 * PLACE)[:, None, None, None]
    split = Split(
        dict.fromkeys(MODALITIES, images),
        observed=observed,
        attributes={"place": PLACE},
    )
    readers = {"place": {m: reader() for m in SHOWN["place"]}}
    return EvaluationData(None, split, None, batch_size, readers=readers, shown=shown)


def make_model(places, modalities=MODALITIES):
    """z is uniform noise, [B, 2]; places: z -> places in left and in right."""

    def encode(params, batch):
        shape = (len(modalities), len(batch["digit"]), 2)
        return Gaussian(jnp.zeros(shape) + params, jnp.full(shape, 0.0))

    def posterior(params, experts, subset, key):
        assert not subset[1] and not subset[2]  # nothing that shows the place is given
        noise = jax.random.uniform(key, experts.mean.shape[1:])
        return Gaussian(noise + params, jnp.full(noise.shape, -60.0))

    def decode(params, z):
        left, right = places(jnp.clip(z, 0, 1 - 1e-6))
        pixels = {"left": left, "right": right}
        return {
            m: (10 / 255 * pixels.get(m, left) + params)[:, None, None, None]
            for m in modalities
        }

    return toy_model(modalities, 2, encode=encode, posterior=posterior, decode=decode)


def place_of(noise):
    return jnp.floor(NUM_PLACES * noise)


MODELS = {
    "of one mind": lambda z: (place_of(z[:, 0]), place_of(z[:, 0])),
    "independent": lambda z: (place_of(z[:, 0]), place_of(z[:, 1])),
    "always the first": lambda z: (0 * z[:, 0], 0 * z[:, 0]),
    "never the same": lambda z: (place_of(z[:, 0]), (place_of(z[:, 0]) + 1) % 4),
}
WANTED = {  # agreement, chance, total variation
    "of one mind": (1, 0.25, 0),
    "independent": (0.25, 0.25, 0),
    "always the first": (1, 1, 1 - np.mean(PLACE == 0)),
    "never the same": (0, 0.25, 0),
}
SCORES = ("agreement", "chance", "total_variation")


def measure(name, data=None, params=0.0):
    model = make_model(MODELS[name])
    data = make_data() if data is None else data
    return one_to_many.one_to_many(model, params, data, jax.random.key(0))


@pytest.mark.parametrize("name", MODELS)
def test_models_of_which_it_is_known(name):
    tags = measure(name)
    for score, wanted in zip(SCORES, WANTED[name], strict=True):
        for case in ("digit", "note", "digit+note"):
            found = tags[f"one_to_many/{score}/place_given_{case}"]
            # Five standard errors of a share of 2,000.
            assert found == pytest.approx(wanted, abs=0.05), (score, case)
        assert tags[f"one_to_many/{score}"] == pytest.approx(wanted, abs=0.05)
    assert tags["one_to_many/agreement"] in (0, 1) or name == "independent"
    assert len(tags) == 3 * 4


def test_scores_by_hand():
    values = np.array([[0, 1, 1, -1], [0, 1, 2, -1], [0, 0, 2, 2]], float)
    found = one_to_many.agreement(values, np.array([0, 1, 2, 2]))
    # Pairs agree in 2, 1 and 2 of 4; what shows nothing agrees with nothing.
    assert found["agreement"] == pytest.approx((2 + 1 + 2) / 12)
    # Shares of 0, 1, 2: (1, 2, 0), (1, 1, 1), (2, 0, 2) of 4.
    assert found["chance"] == pytest.approx((3 + 2 + 4) / 16 / 3)
    # Real shares are (1, 1, 2) of 4, and a missing value is one of its own.
    assert found["total_variation"] == pytest.approx((2 + 1 + 1) / 4 / 3)
    values[1, 1] = np.nan
    assert np.isnan(
        list(one_to_many.agreement(values, np.zeros(4, int)).values())
    ).all()


def test_a_value_that_no_real_example_has():
    found = one_to_many.agreement(np.full((2, 3), 7.0), np.zeros(3, int))
    assert found == {"agreement": 1, "chance": 1, "total_variation": 1}


def test_a_diverged_model_and_examples_that_lack_the_condition():
    assert all(np.isnan(list(measure("of one mind", params=np.nan).values())))
    observed = np.ones((NUM, 4), bool)
    observed[:, 0] = False
    observed[::2, 3] = False
    tags = measure("always the first", make_data(observed=observed))
    lacking = tags["one_to_many/agreement/place_given_digit"]
    assert isinstance(lacking, Undefined) and lacking.reason.endswith("has digit")
    # The real values are those of the examples that have what is given.
    wanted = 1 - np.mean(PLACE[1::2] == 0)
    found = tags["one_to_many/total_variation/place_given_note"]
    assert found == pytest.approx(wanted)


def test_data_in_which_nothing_is_left_open():
    for shown, words in (
        ({}, r"\(place: shown by all\)"),
        ({"place": ("left",)}, r"\(place: shown by left\)"),
        ({"place": ("other",)}, r"\(place: shown by none\)"),
    ):
        with pytest.raises(
            UsageError, match=f"'one_to_many' needs an attribu.*{words}"
        ):
            measure("independent", make_data(shown))
    bare = make_data()
    bare = bare._replace(test=bare.test._replace(attributes={}))
    with pytest.raises(UsageError, match="needs attributes, and the data have none"):
        measure("independent", bare)
    with pytest.raises(UsageError, match="none for place of left, place of right"):
        measure("independent", make_data()._replace(readers={}))
    single = toy_model(("digit",), 2)
    assert one_to_many.one_to_many(single, 0.0, make_data(), jax.random.key(0)) == {}


def test_conditions_are_each_modality_that_leaves_it_open_and_all_of_them():
    cases = require_open(make_data().test, SHOWN, "one_to_many")
    assert cases == [
        ("place", ("digit",)),
        ("place", ("note",)),
        ("place", ("digit", "note")),
    ]
    one = require_open(
        make_data().test, {"place": ("left", "right", "note")}, "one_to_many"
    )
    assert one == [("place", ("digit",))]
