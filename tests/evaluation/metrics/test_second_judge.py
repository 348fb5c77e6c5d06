import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_models import (
    NUM_CLASSES,
    averaging_model,
    label_classifier,
    label_images,
    toy_split,
)

from configs import base
from mmvae_jax.data.dataset import Dataset
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.judges import classifiers
from mmvae_jax.evaluation.metric import EvaluationData, Reader, Undefined
from mmvae_jax.evaluation.metrics import second_judge

MODALITIES = ("m0", "m1")
LABELS = np.arange(40) % NUM_CLASSES


def shifted(images):
    """Takes each class for the next one."""
    features, logits = label_classifier().apply(images)
    return features, jnp.roll(logits, 1, axis=-1)


def measure(second, params=0.0, observed=None, modalities=MODALITIES, accuracy=0.7):
    images = dict.fromkeys(modalities, label_images(LABELS))
    split = toy_split(images, LABELS)._replace(observed=observed)
    first = dict.fromkeys(modalities, label_classifier())
    judges = (
        None if second is None else dict.fromkeys(modalities, Reader(second, accuracy))
    )
    data = EvaluationData(None, split, first, 16, second_classifiers=judges)
    model = averaging_model(modalities, (2, 2, 1))
    return second_judge.second_judge(model, params, data, jax.random.key(0))


@pytest.mark.parametrize(
    ("judge", "coherence"), [(label_classifier().apply, 1), (shifted, 0)]
)
def test_judges_that_agree_always_or_never(judge, coherence):
    tags = measure(judge)
    assert tags["second_judge/coherence/leave_one_out"] == coherence
    for name in ("disagreement", "real_disagreement"):
        assert tags[f"second_judge/{name}/leave_one_out"] == 1 - coherence
        assert tags[f"second_judge/{name}/leave_one_out/m1"] == 1 - coherence
    assert tags["second_judge/accuracy/m0"] == 0.7


def test_a_judge_that_tells_generated_examples_from_real_ones():
    """Generated examples of class 0 are brighter by a grey level: it says 1."""

    def strict(images):
        features, logits = label_classifier().apply(images)
        is_off = (features.mean(axis=1) * 255 > 0.5) & (
            features.mean(axis=1) * 255 < 10
        )
        return features, jnp.where(is_off[:, None], jnp.eye(NUM_CLASSES)[1], logits)

    tags = measure(strict, params=1 / 255)
    assert tags["second_judge/real_disagreement/leave_one_out"] == 0
    share = np.mean(LABELS == 0)
    found = tags["second_judge/disagreement/leave_one_out"]
    assert found == pytest.approx(share)
    assert tags["second_judge/coherence/leave_one_out"] == pytest.approx(1 - share)


def test_nan_undefined_and_refused():
    tags = measure(shifted, params=np.nan)
    for name in ("coherence", "disagreement"):
        assert np.isnan(tags[f"second_judge/{name}/leave_one_out"])
    tags = measure(shifted, observed=np.eye(2, dtype=bool)[np.arange(40) % 2])
    value = tags["second_judge/coherence/leave_one_out/m0"]
    assert isinstance(value, Undefined) and "too few test examples" in value.reason
    assert measure(shifted, modalities=("m0",)) == {}
    with pytest.raises(UsageError, match="needs a classifier for every modality"):
        measure(None)


def test_the_accuracy_on_no_example_has_its_reason():
    absent = np.ones((40, 2), bool) & [True, False]
    tags = measure(shifted, observed=absent, accuracy=np.nan)
    assert tags["second_judge/accuracy/m1"].reason == "no test example has m1"


@pytest.mark.parametrize(("network", "other"), [("conv", "mlp"), ("mlp", "conv")])
def test_the_second_is_another_network_with_another_seed(network, other, monkeypatch):
    seen = []
    monkeypatch.setattr(
        classifiers, "get_classifiers", lambda *given: seen.append(given)
    )
    config = base.get_config()
    config.classifier.network = network
    split = toy_split({"m0": np.zeros((8, 8, 8, 1), np.uint8)}, np.arange(8) % 2)
    dataset = Dataset(split, split, "0" * 64, "toy")
    classifiers.check_second(config, dataset)
    classifiers.get_second(config, dataset, "folder")
    ((second, *_),) = seen
    assert (second.classifier.network, second.classifier.seed) == (other, 1)
    assert (config.classifier.network, config.classifier.seed) == (network, 0)


def test_only_modalities_that_show_the_label_are_judged():
    modalities = ("m0", "m1", "other")
    images = dict.fromkeys(modalities, label_images(LABELS))
    judges = dict.fromkeys(MODALITIES, label_classifier())
    data = EvaluationData(
        None,
        toy_split(images, LABELS),
        judges,
        16,
        second_classifiers=judges,
        shown={"label": MODALITIES},
    )
    model = averaging_model(modalities, (2, 2, 1))
    tags = second_judge.second_judge(model, 0.0, data, jax.random.key(0))
    assert tags["second_judge/coherence/leave_one_out"] == 1
    assert {tag.rpartition("/")[2] for tag in tags} == {*MODALITIES, "leave_one_out"}
    alone = data._replace(shown={"label": ("m0",)})
    assert second_judge.second_judge(model, 0.0, alone, jax.random.key(0)) == {}
