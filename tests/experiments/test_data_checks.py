"""Data of a run, checked before training, and what is said of them at its start."""

import re

import numpy as np
import pytest

from configs.arrays import get_config
from experiments.running import build
from mmvae_jax.errors import UsageError

N = 60
RNG = np.random.default_rng(0)
OBSERVED = np.tile([[True, True], [True, False], [True, True]], (N // 3, 1))
GOOD = {
    "image": RNG.integers(0, 256, (N, 8, 8, 3), dtype=np.uint8),
    "vector": RNG.normal(size=(N, 4)).astype(np.float32),
    "labels": np.arange(N) % 3,
}
TEXT = {"vector": None, "text": RNG.integers(0, 6, (N, 5))}
SPECIALS = np.array(["<exc>", "<pad>", "<eos>", "a", "b", "c"])


@pytest.fixture
def start(tmp_path):
    """(training arrays, test arrays, fields of the config) -> a sweep that is built."""

    def save(name, changes):
        arrays = {n: x for n, x in (GOOD | changes).items() if x is not None}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return str(tmp_path / f"{name}.npz")

    def build_it(train, test=None, **fields):
        config = get_config()
        config.model.latent_dim = 4
        config.modality.network_options.widths = (16,)
        config.train.num_steps, config.train.batch_size = 20, 10
        config.eval.metrics = ("elbo",)
        config.classifier.network = "mlp"
        config.data.path = save("train", train)
        if test is not None:
            config.data.test_path = save("test", test)
        for name, value in fields.items():
            if name == "modalities":
                config.modalities.update(value)
            else:
                config.update_from_flattened_dict({name.replace("__", "."): value})
        return build.build(config)

    return build_it


def test_the_start_of_a_run_names_modalities_and_what_is_missing(start, capsys):
    train = {"observed": OBSERVED, "mask": None}
    start(train, {}, modalities={"image": {"likelihood": "bernoulli"}})
    table = capsys.readouterr().out.splitlines()[-4:]
    cells = [re.split(r"\s{2,}", line.strip()) for line in table]
    assert cells[0] == [
        *("modality", "kind", "shape", "values", "likelihood"),
        *("missing in training", "in test"),
    ]
    image, vector = cells[2:]
    assert image[:3] == ["image", "images", "8 x 8 x 3"]
    assert image[3:] == ["0 to 255", "bernoulli", "0%", "0%"]
    low, high = GOOD["vector"][OBSERVED[:, 1]].min(), GOOD["vector"].max()
    assert vector[:3] == ["vector", "vectors", "4"] and vector[5:] == ["33%", "0%"]
    assert vector[3] == f"{low:.4g} to {high:.4g}" and vector[4] == "laplace"


def test_what_may_be_meant_is_said_before_training(start, capsys):
    start(
        {"mask": np.float32(OBSERVED)}, {"mask": np.float32(OBSERVED), "labels": None}
    )
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("mask holds a 0 or 1 for each other") for line in lines)
    assert any(re.match(r"mask +vectors +2 +0 to 1 +laplace", line) for line in lines)
    assert "only training examples have labels" in lines


REFUSED = {
    "support": (
        {},
        None,
        {"modality__likelihood": "bernoulli"},
        r"^config.modalities.vector.likelihood is one of numbers in .*, and train",
    ),
    "support in the test": (
        {"vector": np.abs(np.tanh(GOOD["vector"]))},
        {},
        {"modality__likelihood": "bernoulli"},
        "likelihood is one of .* and test examples of vector hold",
    ),
    "never observed": (
        {"observed": OBSERVED & [True, False]},
        None,
        {},
        "no training example of train has vector",
    ),
    "classes": (
        {},
        {"labels": GOOD["labels"] + 5},
        {"eval__metrics": ("elbo", "coherence")},
        r"'coherence' needs labels, .*\(5, 6, 7\).*leave it out of config.eval.metrics",
    ),
    "classes of one modality": (
        {"observed": OBSERVED},
        {},
        {"eval__metrics": ("linear_probe", "coherence")},
        r"'coherence' needs labels, .* no training example with vector has \(1\)",
    ),
    "labels of one file": (
        {},
        {"labels": None},
        {"eval__metrics": ("linear_probe",)},
        "'linear_probe' needs labels .* only training examples have them",
    ),
    "end of text in the network": (
        TEXT,
        None,
        {"modalities": {"text": {"network": "transformer"}}},
        "take token 2 for the end of a text, and the words of text do not begin",
    ),
    "end of text in the likelihood": (
        TEXT,
        None,
        {"modalities": {"text": {"count_padding": False}}},
        "take token 2 for the end of a text, and the words of text do not begin",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_do_not_fit_are_refused(case, start):
    train, test, fields, message = REFUSED[case]
    for own in fields.get("modalities", {}).values():
        own |= {"likelihood": "categorical", "network_options": {}}
    with pytest.raises(UsageError, match=message) as error:
        start(train, test, **fields)
    assert "\n" not in str(error.value)


def test_data_that_fit_are_not_refused(start):
    # Classes that only training has, and classes that no metric reads.
    fewer = {"labels": GOOD["labels"] % 2}
    start({}, fewer, eval__metrics=("coherence", "linear_probe"))
    start({}, {"labels": GOOD["labels"] + 5})
    # A class without vectors, for probes of the latent space.
    start({"observed": OBSERVED}, {}, eval__metrics=("linear_probe",))
    text = {"likelihood": "categorical", "network_options": {}}
    words = TEXT | {"text_words": SPECIALS}
    start(words, modalities={"text": text | {"count_padding": False}})
    start(TEXT, modalities={"text": text})
