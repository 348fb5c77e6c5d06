"""The user's own arrays: what is read, what is refused, and the page's example."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.arrays import get_config
from experiments.running import build
from mmvae_jax.data import arrays
from mmvae_jax.errors import UsageError
from mmvae_jax.types import TokenShape

ROOT = Path(__file__).resolve().parents[2]
N = 20
RNG = np.random.default_rng(0)
GOOD = {
    "image": RNG.integers(0, 256, (N, 4, 4), dtype=np.uint8),
    "vector": RNG.normal(size=(N, 3)),
    "text": RNG.integers(0, 5, (N, 6)),
    "text_words": np.array(["<pad>", "a", "b", "c", "d", "e"]),
    "labels": np.arange(N) % 4,
    "observed": np.tile([[True, True, True], [True, False, True]], (N // 2, 1)),
}


def write(path, **changes):
    np.savez(path, **{k: x for k, x in (GOOD | changes).items() if x is not None})
    return path


def test_what_is_read_is_what_was_written(tmp_path):
    missing = np.where(GOOD["observed"][:, 1:2], GOOD["vector"], np.nan)
    path = write(tmp_path / "own.npz", vector=missing)
    dataset = arrays.load(str(path), test_fraction=0.25)
    assert (dataset.train.num_examples, dataset.test.num_examples) == (15, 5)
    assert dataset.name == "own"
    assert dataset.shapes() == {
        "image": (4, 4, 1),
        "vector": (3,),
        "text": TokenShape(6, 6),
    }
    assert dataset.words == {"text": tuple(GOOD["text_words"])}
    kinds = {m: x.dtype for m, x in dataset.train.modalities.items()}
    assert kinds == {"image": np.uint8, "vector": np.float32, "text": np.int32}
    # Every example is in one of the splits, and its modalities stay together.
    both = [
        np.concatenate([own(split) for split in (dataset.train, dataset.test)])
        for own in (
            lambda split: split.modalities["image"][..., 0],
            lambda split: split.modalities["vector"],
            lambda split: split.modalities["text"],
            lambda split: split.labels,
            lambda split: split.observed,
        )
    ]
    images = GOOD["image"].reshape(N, -1)
    order = [int(np.flatnonzero((images == x.ravel()).all(1))[0]) for x in both[0]]
    assert sorted(order) == list(range(N))
    expected = np.where(np.isnan(missing), 0, missing)[order]
    np.testing.assert_allclose(both[1], expected, rtol=1e-6)
    for found, name in zip(both[2:], ("text", "labels", "observed"), strict=True):
        np.testing.assert_array_equal(found, GOOD[name][order])


def test_the_fingerprint_is_of_the_examples(tmp_path):
    def fingerprint(**changes):
        return arrays.load(str(write(tmp_path / "own.npz", **changes))).fingerprint

    assert fingerprint() == fingerprint()
    others = {
        fingerprint(),
        fingerprint(labels=None),
        fingerprint(observed=None),
        fingerprint(vector=GOOD["vector"] + 1),
    }
    assert len(others) == 4


def test_two_files(tmp_path):
    path, other = (
        str(write(tmp_path / f"{name}.npz", vector=GOOD["vector"] + i))
        for i, name in enumerate(("train", "test"))
    )
    dataset = arrays.load(path, other)
    assert dataset.train.num_examples == dataset.test.num_examples == N
    difference = dataset.test.modalities["vector"] - dataset.train.modalities["vector"]
    np.testing.assert_allclose(difference[0], 1, rtol=1e-5)
    write(tmp_path / "test.npz", vector=GOOD["vector"][:, :2])
    with pytest.raises(UsageError, match=r"train.npz holds .*vector float32\[3\].*but"):
        arrays.load(path, other)


BAD = {
    "a dot in a name": ({"observed": None, "a.b": GOOD["vector"]}, "'a.b'.*without do"),
    "no name": ({"observed": None, "": GOOD["vector"]}, "modality ''.*rename it"),
    "lengths": ({"vector": GOOD["vector"][:5]}, "equally many examples.*5 of vector"),
    "no modality": (dict.fromkeys(("image", "vector", "text", "text_words")), "no mod"),
    "objects": ({"vector": np.array([{}] * N)}, "is not a .npz file"),
    "strings": ({"vector": np.array(["x"] * N)}, "vector is <U1"),
    "flat bytes": ({"image": GOOD["image"][:, 0]}, "image is uint8.*type of images"),
    "numbers": ({"vector": GOOD["vector"][:, 0]}, r"vector is float64 .*\[N, F\]"),
    "label": (
        {"observed": None, "label": GOOD["labels"]},
        r"label is int.*name classes 'labels', int",
    ),
    "targets": (
        {"observed": None, "y": GOOD["labels"] / 2},
        r"y is float.*name classes .labels",
    ),
    "mask of another name": (
        {"observed": None, "mask": GOOD["observed"]},
        "mask is bool.*'observed'",
    ),
    "bits": ({"image": GOOD["image"] > 9}, r"image is bool.*uint8, 255 \* x"),
    "numbers as images": (
        {"image": GOOD["image"].astype(int)},
        "image is int.*uint8",
    ),
    "colours as numbers": (
        {"image": RNG.integers(0, 256, (N, 4, 4, 3))},
        r"image is int64 \(20, 4, 4, 3\): images are uint8",
    ),
    "channels first": (
        {"image": RNG.integers(0, 256, (N, 3, 8, 8), dtype=np.uint8)},
        r"image is uint8 .*\[N, C, H, W\].*moveaxis",
    ),
    "bytes of zeros and ones": ({"image": GOOD["image"] % 2}, r"ones.*give 255 \* x"),
    "captions": ({"text": np.array(["a bird"] * N)}, "text is <U6.*tokens.encode"),
    "beyond float32": ({"vector": GOOD["vector"] * 1e300}, "beyond float32"),
    "ragged": (
        {"vector": np.array([[1], [1, 2]] * 10, object)},
        "vector.npy holds o",
    ),
    "nan": ({"vector": GOOD["vector"] * np.nan}, "vector holds NaN.*'observed'"),
    "cube of tokens": ({"text": GOOD["text"][..., None]}, r"text .*int \[N, T\]"),
    "negative tokens": ({"text": GOOD["text"] - 1}, "text: tokens and counts are >= 0"),
    "few words": ({"text_words": GOOD["text_words"][:4]}, "token 4.*only 4 words"),
    "words of numbers": ({"text_words": np.arange(6)}, "text_words must be strings"),
    "large tokens": ({"text": np.full((N, 6), 2**40)}, "is beyond int32"),
    "words of nothing": ({"image_words": GOOD["text_words"]}, "image_words belongs to"),
    "labels": ({"labels": GOOD["labels"] / 2}, r"labels must be integers \(20,\)"),
    "negative labels": ({"labels": GOOD["labels"] - 1}, "classes 0, 1, .*-1 to 2"),
    "mask": ({"observed": GOOD["observed"][:, :2]}, r"observed must be bool \(20, 3\)"),
    "nothing": ({"observed": GOOD["observed"] & (RNG.random((N, 1)) > 0.5)}, "has no"),
    "empty": ({"vector": GOOD["vector"][:, :0]}, "vector is empty"),
}


@pytest.mark.parametrize(
    "shape", [(3, 16, 20), (1, 28, 32), (3, 8, 8), (1, 8, 9), (3, 5, 5)]
)
def test_images_with_channels_first_are_refused(shape):
    image = RNG.integers(0, 256, (N, *shape), dtype=np.uint8)
    with pytest.raises(UsageError, match=r"image is .*\[N, C, H, W\].*moveaxis"):
        arrays.to_split({"image": image})
    arrays.to_split({"image": np.moveaxis(image, 1, -1)})


@pytest.mark.parametrize(
    "shape", [(3, 16, 4), (1, 28, 3), (3, 3, 3), (3, 7, 9), (2, 16, 16), (4, 16, 16)]
)
def test_flat_images_and_those_of_many_channels_are_not(shape):
    arrays.to_split({"image": RNG.integers(0, 256, (N, *shape), dtype=np.uint8)})


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_do_not_fit_are_named(case, tmp_path):
    changes, message = BAD[case]
    path = write(tmp_path / "bad.npz", **changes)
    with pytest.raises(UsageError, match=message) as error:
        arrays.load(str(path))
    assert "\n" not in str(error.value) and "bad.npz" in str(error.value)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "own.npz"
    with pytest.raises(UsageError, match="^path is empty"):
        arrays.load("")
    with pytest.raises(UsageError, match=r"no file .*own.npz"):
        arrays.load(str(path))
    for content in (b"", b"no zip", write(path).read_bytes()[:500]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="is not a .npz file"):
            arrays.load(str(path))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UsageError, match="is not a .npz file"):
        arrays.load(str(tmp_path / "one.npy"))
    write(path)
    for fraction in (0.0, 1.0, 0.01):
        with pytest.raises(UsageError, match="test_fraction"):
            arrays.load(str(path), test_fraction=fraction)


@pytest.mark.slow
def test_the_example_of_the_page(tmp_path):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/adding.md").read_text(), re.S
    )
    (script,) = (block for block in blocks if "np.savez" in block)
    (config,) = (block for block in blocks if block.startswith("# configs/digits.py"))
    assert len(config.splitlines()) <= 30
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    (tmp_path / "digits.py").write_text(config)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.run",
            f"--config={tmp_path / 'digits.py'}:mopoe",
            f"--config.data.path={tmp_path / 'digits.npz'}",
            f"--config.data.data_dir={tmp_path}",
            f"--workdir={tmp_path / 'run'}",
            "--config.train.num_steps=60",
            "--config.eval.metrics=('elbo','log_likelihood')",
            "--config.eval.num_examples=200",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mopoe on digits" in done.stdout + done.stderr
    names = {path.name for path in (tmp_path / "run" / "samples").iterdir()}
    assert {"beta=1,seed=0_prior.png", "beta=1,seed=0_image_given_waves.png"} <= names


def test_two_files_number_their_words_alike(tmp_path):
    words = GOOD["text_words"]
    np.savez(tmp_path / "train.npz", **GOOD)
    np.savez(tmp_path / "more.npz", **GOOD | {"text_words": np.append(words, "f")})
    np.savez(tmp_path / "other.npz", **GOOD | {"text_words": words[::-1]})
    paths = [str(tmp_path / f"{name}.npz") for name in ("train", "more", "other")]
    found = arrays.load(paths[0], paths[1])
    assert found.words == {"text": (*words.tolist(), "f")}
    with pytest.raises(UsageError, match="number the words of text differently"):
        arrays.load(paths[0], paths[2])


@pytest.mark.parametrize("metric", ["coherence", "frechet", "linear_probe"])
@pytest.mark.parametrize("unlabelled", ["path", "test_path"])
def test_metrics_that_need_labels_need_them_in_both_files(metric, unlabelled, tmp_path):
    config = get_config()
    images = {"image": RNG.integers(0, 256, (N, 16, 16), dtype=np.uint8)}
    for name in ("path", "test_path"):
        labels = {} if name == unlabelled else {"labels": np.arange(N) % 4}
        np.savez(tmp_path / f"{name}.npz", **images, **labels)
        config.data[name] = str(tmp_path / f"{name}.npz")
    config.eval.metrics = (metric,)
    config.train.batch_size = 10
    with pytest.raises(UsageError, match="labels"):
        build.build(config)
