import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import (
    NUM_CLASSES,
    label_classifier,
    label_images,
    toy_model,
    toy_split,
)

from mmvae_jax.evaluation.metric import EvaluationData
from mmvae_jax.evaluation.metrics import coherence
from mmvae_jax.types import Gaussian

MODALITIES = ("m0", "m1", "m2")
LABELS = np.random.default_rng(0).integers(0, NUM_CLASSES, 37)


def copying_model(log_variance=-60.0, modalities=MODALITIES):
    """Copies the first observed modality to m0 and m1; m2 is always black.

    The decoder's black is -0.3, which only clipping makes an image.
    """

    def encode(params, batch):
        values = jnp.stack([batch[m][:, 0, 0, :] for m in modalities])
        return Gaussian(values + params, jnp.full_like(values, log_variance))

    def posterior(params, experts, subset, key):
        first = np.argmax(np.asarray(subset))
        return Gaussian(experts.mean[first], experts.log_variance[first])

    def decode(params, z):
        image = jnp.broadcast_to(z[:, :, None, None], (len(z), 2, 2, 1))
        black = jnp.full_like(image, -0.3)
        return dict(zip(modalities, (image, image, black), strict=True))

    def sample_prior(params, key, num):
        labels = jax.random.randint(key, (num, 1), 0, NUM_CLASSES)
        return labels * 20 / 255

    return toy_model(
        modalities,
        1,
        encode=encode,
        posterior=posterior,
        decode=decode,
        sample_prior=sample_prior,
    )


@pytest.fixture(scope="module")
def data():
    """m1 shows the wrong digit."""
    wrong = (LABELS + 1) % NUM_CLASSES
    images = {
        "m0": label_images(LABELS),
        "m1": label_images(wrong),
        "m2": label_images(LABELS),
    }
    classifiers = {m: label_classifier(0.9 + i / 100) for i, m in enumerate(MODALITIES)}
    return EvaluationData(None, toy_split(images, LABELS), classifiers, 16)


def conditional_table(model, data):
    """(subset, target) -> fraction of the label, of every subset."""
    return coherence.conditional_coherence(
        model,
        0.0,
        data,
        {"label": data.classifiers},
        {"label": data.test.labels},
        coherence.non_empty_subsets(MODALITIES),
        jax.random.key(0),
    )["label"]


@pytest.fixture(scope="module")
def tags(data):
    return coherence.coherence(copying_model(), 0.0, data, jax.random.key(0))


def test_every_subset_and_target_as_constructed(tags):
    black = np.mean(LABELS == 0)
    for size in (1, 2, 3):
        for subset in itertools.combinations(MODALITIES, size):
            copied = 0.0 if subset[0] == "m1" else 1.0
            expected = {"m0": copied, "m1": copied, "m2": black}
            for target in MODALITIES:
                tag = f"coherence/subset/{'+'.join(subset)}/{target}"
                assert tags[tag] == pytest.approx(expected[target]), tag


@pytest.mark.parametrize(
    "names", [("a", "b", "a+b"), ("a", "a/b", "b/a"), ("a", "+", "a%2B")]
)
def test_tags_of_different_subsets_differ(names, data):
    images = zip(names, data.test.modalities.values(), strict=True)
    own = data._replace(
        test=data.test._replace(modalities=dict(images)),
        classifiers=dict.fromkeys(names, data.classifiers["m0"]),
    )
    model = copying_model(modalities=names)
    tags = coherence.coherence(model, 0.0, own, jax.random.key(0))
    num = sum(tag.startswith("coherence/subset/") for tag in tags)
    assert num == 7 * 3


def test_summaries_average_targets_outside_the_subset(tags):
    black = np.mean(LABELS == 0)
    # Given the rest: m0 <- m1 (wrong), m1 <- m0 (right), m2 <- black.
    assert tags["coherence/leave_one_out/m0"] == 0.0
    assert tags["coherence/leave_one_out/m1"] == 1.0
    assert tags["coherence/leave_one_out/m2"] == pytest.approx(black)
    assert tags["coherence/leave_one_out"] == pytest.approx((1 + black) / 3)
    assert tags["coherence/size_2"] == tags["coherence/leave_one_out"]
    # m0 -> m1 right, m0 -> m2 black, m1 -> m0 wrong, m1 -> m2 black, m2 -> both right.
    assert tags["coherence/size_1"] == pytest.approx((3 + 2 * black) / 6)
    assert "coherence/size_3" not in tags


def test_the_classifiers_own_accuracy_stands_beside(tags):
    assert tags["classifier_accuracy/m0"] == 0.9
    assert tags["classifier_accuracy/m2"] == 0.92


def test_all_tags_and_no_others(tags):
    assert len(tags) == 7 * 3 + 3 + 1 + 2 + 1 + 3
    assert all(type(value) is float for value in tags.values())


def test_joint_is_the_rate_of_agreement(data):
    # All agree if and only if the prior draws class 0.
    readers = {"label": data.classifiers}
    found = coherence.joint_coherence(
        copying_model(), None, data, readers, jax.random.key(1), 4000
    )
    assert found["label"] == pytest.approx(1 / NUM_CLASSES, abs=0.025)


def test_by_a_fitted_sampler_nothing_is_conditioned_on(data, tags):
    model = copying_model()._replace(sampler="gmm", encode=None, posterior=None)
    found = coherence.coherence(model, 0.0, data, jax.random.key(0))
    assert found == {"coherence/joint": tags["coherence/joint"]}


def test_subsets_in_order_of_size():
    assert coherence.non_empty_subsets(MODALITIES) == [
        ("m0",),
        ("m1",),
        ("m2",),
        ("m0", "m1"),
        ("m0", "m2"),
        ("m1", "m2"),
        ("m0", "m1", "m2"),
    ]


def test_latents_are_sampled_not_means(data):
    model = copying_model(log_variance=2 * np.log(60 / 255))
    table = conditional_table(model, data)
    assert table[("m0",), "m0"] < 0.7
    assert table[("m1",), "m0"] > 0.0


def test_each_batch_is_encoded_once(data):
    calls = []
    model = copying_model()

    def encode(*args):
        calls.append(args)
        return model.encode(*args)

    counting = model._replace(encode=encode)
    conditional_table(counting, data)
    assert len(calls) == 3


def test_a_diverged_model_has_no_coherence(data):
    broken = copying_model()
    broken = broken._replace(
        decode=lambda params, z: {
            m: jnp.full((len(z), 2, 2, 1), jnp.nan) for m in MODALITIES
        }
    )
    tags = coherence.coherence(broken, 0.0, data, jax.random.key(0))
    assert all(np.isnan(v) for t, v in tags.items() if t.startswith("coherence/"))


def test_one_modality_has_nothing_to_compare(data):
    model = toy_model(
        ("m0",),
        1,
        encode=lambda params, batch: Gaussian(
            batch["m0"][None, :, 0, 0, :], jnp.full((1, 16, 1), -60.0)
        ),
        posterior=lambda params, experts, subset, key: Gaussian(
            *(x[0] for x in experts)
        ),
        decode=lambda params, z: {
            "m0": jnp.broadcast_to(z[..., None, None], (16, 2, 2, 1))
        },
    )
    tags = coherence.coherence(model, None, data, jax.random.key(0))
    assert tags == {"coherence/subset/m0/m0": 1.0, "classifier_accuracy/m0": 0.9}


def test_only_what_is_observed_is_conditioned_on(data):
    # Where m0 is missing, the labels are wrong: nobody must look.
    observed = np.ones((len(LABELS), 3), bool)
    observed[::2, 0] = False
    labels = np.where(observed[:, 0], LABELS, (LABELS + 2) % NUM_CLASSES)
    test = toy_split(data.test.modalities, labels)._replace(observed=observed)
    table = conditional_table(copying_model(), data._replace(test=test))
    assert table[("m0",), "m0"] == 1 and table[("m0", "m1"), "m1"] == 1
    assert table[("m2",), "m0"] == pytest.approx(observed[:, 0].mean())
    observed[:, 1] = False
    table = conditional_table(copying_model(), data._replace(test=test))
    assert np.isnan(table[("m1",), "m0"]) and np.isnan(table[("m0", "m1"), "m0"])
    assert table[("m0", "m2"), "m0"] == 1


def test_what_does_not_show_the_label_is_no_target_and_no_condition(data, tags):
    own = data._replace(
        classifiers={m: data.classifiers[m] for m in ("m0", "m1")},
        shown={"label": ("m0", "m1")},
    )
    found = coherence.coherence(copying_model(), 0.0, own, jax.random.key(0))
    kept = {
        t: x
        for t, x in tags.items()
        if t.startswith(("coherence/subset/", "classifier_accuracy/"))
        and not t.endswith("/m2")
        and "/m2/" not in t
    }
    for m in ("m0", "m1"):
        kept[f"coherence/leave_one_out/{m}"] = tags[f"coherence/leave_one_out/{m}"]
    # m0 is copied, and m1 is wrong; m2 says nothing, so that it is given with another.
    kept |= {"coherence/leave_one_out": 0.5, "coherence/size_1": 0.5}
    kept["coherence/size_2"] = 0.5
    assert found.pop("coherence/joint") == 1  # of two that copy one z
    assert found == kept
    alone = own._replace(shown={"label": ("m1",)})
    found = coherence.coherence(copying_model(), 0.0, alone, jax.random.key(0))
    assert set(found) == {"classifier_accuracy/m1"} | {
        f"coherence/subset/{s}/m1" for s in ("m1", "m0+m1", "m1+m2", "m0+m1+m2")
    }
