import functools
import gzip
import http.server
import importlib
import os
import re
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import dataset_images
import numpy as np
import pytest
from dataset_errors import DatasetError
from ml_collections import ConfigDict
from PIL import Image
from polymnist import (
    backgrounds,
    digits,
    exact,
    options,
    polymnist_dataset_builder,
    published,
    recipe,
)
from tensorflow_datasets.core import registered, shuffle

from experiments.running import datasets
from mmvae_jax.data import prepared
from mmvae_jax.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
MNIST = ROOT.parent / "shared" / "data" / "mnist"
SMALL_FINGERPRINT = "48645a73ad98a4226c590ae945f43fc037ebeac445ba7b314e7284dd4c70f8d6"


def data_config(data_dir, **changes):
    """`config.data` of a small set."""
    fields = {
        "name": "polymnist",
        "data_dir": str(data_dir),
        "digits": "sklearn",
        "digits_dir": "",
        "backgrounds_dir": "",
        "published_dir": "",
        "num_modalities": 2,
        "image_size": 16,
        "translate_scale": 1.0,
        "repeated": False,
        "pairings": 1,
        "validation": 0,
        "quadrant": "",
        "label_modalities": (),
        "seed": 0,
    }
    return ConfigDict({**fields, **changes})


@functools.cache
def sklearn_digits():
    return digits.load_sklearn(16)


def open_small(split="train", num_modalities=3, **changes):
    """A split of sklearn digits, and its plan."""
    source = sklearn_digits()[split]
    scenes = backgrounds.load("", num_modalities, 16)
    arguments = {"side": 16, "pairings": 1, "seed": 0, **changes}
    repeated = arguments.pop("repeated", False)
    plan = recipe.make_plan(
        source.labels,
        scenes[:1] * num_modalities if repeated else scenes,
        split=split,
        image_size=16,
        **arguments,
    )
    opened = recipe.open_split(
        source,
        scenes,
        split=split,
        num_modalities=num_modalities,
        repeated=repeated,
        **arguments,
    )
    return source, scenes, plan, opened


# ---- exact arithmetic


def test_random_numbers_are_the_raw_stream():
    raw = np.random.PCG64(np.random.SeedSequence([1, 2])).random_raw(5)
    np.testing.assert_array_equal(exact.random_bits((1, 2), 5), raw)
    assert sorted(exact.random_order((3,), 50)) == list(range(50))


def test_random_integers_reach_both_ends_evenly():
    counts = np.bincount(exact.random_integers((0,), 70_000, 6), minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - 10_000).max() < 500


def test_resize_by_two_is_the_mean_of_four():
    images = exact.random_integers((4,), 2 * 8 * 8, 255).reshape(2, 8, 8)
    images = images.astype(np.uint8)
    sums = images.astype(int).reshape(2, 4, 2, 4, 2).sum((2, 4))
    np.testing.assert_array_equal(exact.resize(images, 4, 4), (sums + 2) // 4)


@pytest.mark.parametrize("target", [21, 7, 40])
def test_resize_is_bilinear_with_aligned_pixel_centres(target):
    images = exact.random_integers((5,), 28 * 28, 255).reshape(1, 28, 28)
    images = images.astype(np.uint8)
    position = np.clip((np.arange(target) + 0.5) * 28 / target - 0.5, 0, 27)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(28)))
    expected = weights @ images[0].astype(float) @ weights.T
    result = exact.resize(images, target, target)[0]
    assert np.abs(result - expected).max() <= 0.5 + 1e-9
    np.testing.assert_array_equal(exact.resize(images, 28, 28), images)


# ---- the recipe


def test_modalities_share_the_class_but_not_the_digit_image():
    source, _, plan, _ = open_small()
    for m in range(3):
        np.testing.assert_array_equal(source.labels[plan.digits[m]], plan.labels)
        # Every digit image is used once.
        assert sorted(plan.digits[m]) == list(range(len(source.labels)))
    assert (plan.digits[0] == plan.digits[1]).mean() < 0.05


def test_examples_are_not_sorted_by_class():
    _, _, plan, _ = open_small()
    assert len(np.unique(plan.labels[:100])) == 10


@pytest.mark.parametrize("repeated", [False, True])
def test_colours_are_inverted_exactly_under_the_digit(repeated):
    source, scenes, plan, opened = open_small(repeated=repeated)
    modalities, labels = opened.read(10, 30)
    np.testing.assert_array_equal(labels, plan.labels[10:30])
    for m in range(3):
        for i in range(20):
            y, x = plan.crops[m, 10 + i]
            crop = scenes[0 if repeated else m][y : y + 16, x : x + 16]
            mask = source.images[plan.digits[m, 10 + i]] > 128
            expected = np.where(mask[..., None], 255 - crop, crop)
            np.testing.assert_array_equal(modalities[f"m{m}"][i], expected)


def test_repeated_modalities_differ_in_crop_and_handwriting():
    _, _, plan, _ = open_small(repeated=True)
    assert (plan.crops[0] == plan.crops[1]).all(-1).mean() < 0.01
    assert (plan.digits[0] == plan.digits[1]).mean() < 0.05


def test_crops_reach_the_border_of_the_background():
    scene = backgrounds.load("", 1, 16)[0][:18, :17]
    plan = recipe.make_plan(
        np.zeros(500, np.uint8),
        [scene],
        split="train",
        image_size=16,
        side=16,
        pairings=1,
        seed=0,
    )
    assert plan.crops.min((0, 1)).tolist() == [0, 0]
    assert plan.crops.max((0, 1)).tolist() == [2, 1]


@pytest.mark.parametrize("side", [12, 8])
def test_translated_digits_stay_inside(side):
    source, scenes, plan, opened = open_small(side=side)
    assert plan.offsets.min() == 0 and plan.offsets.max() == 16 - side
    assert not np.array_equal(plan.offsets[0], plan.offsets[1])
    modalities, _ = opened.read(0, 50)
    patches = exact.resize(source.images, side, side)
    for i in range(50):
        (y, x), (down, right) = plan.crops[1, i], plan.offsets[1, i]
        inverted = (modalities["m1"][i] != scenes[1][y : y + 16, x : x + 16]).any(-1)
        mask = np.zeros((16, 16), bool)
        patch = patches[plan.digits[1, i]] > 128
        mask[down : down + side, right : right + side] = patch
        np.testing.assert_array_equal(inverted, mask)
        assert mask.any()


def test_pairings_repeat_the_recipe_with_other_choices():
    source, _, plan, opened = open_small(pairings=3)
    size = len(source.labels)
    assert opened.num_examples == 3 * size
    np.testing.assert_array_equal(
        np.bincount(plan.labels), 3 * np.bincount(source.labels)
    )
    np.testing.assert_array_equal(np.bincount(plan.digits[0]), np.full(size, 3))
    assert len(np.unique(plan.digits, axis=1).T) > 2.9 * size


def test_validation_digits_are_training_digits_that_are_not_trained_on(tmp_path):
    before = sklearn_digits()
    parted = digits.for_validation(before, 25)

    def rows(images):
        return {image.tobytes() for image in images}

    train, held_out = rows(parted["train"].images), rows(parted["test"].images)
    assert train | held_out == rows(before["train"].images)
    assert not train & held_out and not held_out & rows(before["test"].images)
    counts = np.bincount(parted["test"].labels)
    np.testing.assert_array_equal(
        counts, np.ceil(np.bincount(before["train"].labels) / 4)
    )
    dataset = prepared.load(datasets.prepare(data_config(tmp_path, validation=25)))
    assert dataset.test.num_examples == len(parted["test"].labels)
    assert dataset.name.endswith("25validation-seed0")


def test_a_modality_does_not_depend_on_the_others():
    few, many = open_small(num_modalities=1)[3], open_small(num_modalities=4)[3]
    np.testing.assert_array_equal(few.read(0, 9)[0]["m0"], many.read(0, 9)[0]["m0"])


def test_blocks_do_not_depend_on_where_they_are_cut():
    opened = open_small(side=8)[3]
    whole, labels = opened.read(0, 20)
    parts = [opened.read(0, 7), opened.read(7, 20)]
    np.testing.assert_array_equal(
        whole["m2"], np.concatenate([part[0]["m2"] for part in parts])
    )
    np.testing.assert_array_equal(labels, np.concatenate([part[1] for part in parts]))


def test_sklearn_splits_are_disjoint_stratified_and_readable():
    splits = sklearn_digits()
    counts = {s: np.bincount(splits[s].labels, minlength=10) for s in splits}
    assert counts["train"].sum() == 1433 and counts["test"].sum() == 364
    assert counts["test"].min() >= 35
    train = {image.tobytes() for image in splits["train"].images}
    assert not train & {image.tobytes() for image in splits["test"].images}
    ink = (splits["train"].images > recipe.THRESHOLD).mean((1, 2))
    assert 0.05 < ink.min() and ink.max() < 0.6


def test_textures_differ_and_never_hide_a_digit():
    textures = backgrounds.load("", 5, 28)
    means = np.array([texture.reshape(-1, 3).mean(0) for texture in textures])
    distances = np.linalg.norm(means[:, None] - means, axis=-1)
    assert (distances + 1e3 * np.eye(5)).min() > 30
    for texture in textures:
        assert texture.shape == (512, 512, 3) and texture.dtype == np.uint8
        # The change by inversion, in the channel where it is largest.
        change = np.abs(255 - 2 * texture.astype(int)).max(-1)
        assert np.percentile(change, 1) > 60


# ---- preparation


def test_prepared_bytes_are_pinned(tmp_path, capfd):
    config = data_config(
        tmp_path, num_modalities=5, translate_scale=0.75, pairings=2, seed=7
    )
    directory = datasets.prepare(config)
    assert directory.parent.name == ("sklearn-m5-16px-translated12px-2pairings-seed7")
    dataset = prepared.load(directory)
    # The same on every machine; changes only together with Builder.VERSION.
    assert dataset.fingerprint == SMALL_FINGERPRINT
    assert len(dataset.train.labels) == 2 * 1433
    assert capfd.readouterr().out == ""
    before = [path.stat().st_mtime_ns for path in sorted(directory.iterdir())]
    assert datasets.prepare(config) == directory
    assert before == [path.stat().st_mtime_ns for path in sorted(directory.iterdir())]


def test_fingerprint_tells_seeds_apart(tmp_path):
    first, second = (
        prepared.load(datasets.prepare(data_config(tmp_path, seed=seed)))
        for seed in (0, 1)
    )
    assert first.fingerprint != second.fingerprint
    assert first.name != second.name


def test_many_blocks_come_back_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(polymnist_dataset_builder, "BLOCK_BYTES", 12 * 2 * 16 * 16 * 3)
    dataset = prepared.load(datasets.prepare(data_config(tmp_path)))
    opened = open_small(num_modalities=2)[3]
    modalities, labels = opened.read(0, opened.num_examples)
    np.testing.assert_array_equal(dataset.train.labels, labels)
    for name, images in modalities.items():
        np.testing.assert_array_equal(dataset.train.modalities[name], images)


def test_large_splits_need_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    dataset = prepared.load(datasets.prepare(data_config(tmp_path)))
    assert len(dataset.train.labels) == 1433
    assert shuffle.MAX_MEM_BUFFER_SIZE == 1000


def test_unknown_data_set(tmp_path):
    with pytest.raises(
        UsageError, match="config.data.name='x' is unknown; .*polymnist"
    ):
        datasets.prepare(data_config(tmp_path, name="x"))


# A data set of one modality, each part of which a test breaks.
OPTIONS = """
import dataclasses
import tensorflow_datasets as tfds
from dataset_errors import DatasetError

@dataclasses.dataclass(eq=False, kw_only=True)
class Options(tfds.core.BuilderConfig):
    name: str = ""
    size: int = 3

    def __post_init__(self):
        if self.size < 1:
            raise DatasetError("config.data.size is too small")
        self.name = f"{self.size}"
"""
BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        x = tfds.features.Tensor(shape=(None, 2), dtype=np.float32, encoding="bytes")
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"x": x}),
            metadata=tfds.core.MetadataDict(
                modalities=["x"], num_examples={}, fingerprint=""
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        num = self.builder_config.size
        self.info.metadata["num_examples"] = {"train": num, "test": num}
        self.info.metadata["fingerprint"] = "none"
        return {split: self._generate_examples() for split in ("train", "test")}

    def _generate_examples(self):
        yield 0, {"x": np.ones((self.builder_config.size, 2), np.float32)}
"""


@pytest.fixture
def new_data_set(tmp_path, monkeypatch):
    """(name, module -> source) -> config.data of a data set in a folder of its own."""
    root = tmp_path / "datasets"
    monkeypatch.setattr(datasets, "DATASETS", root)
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    before = set(sys.modules)

    def write(name, **sources):
        folder = root / name
        folder.mkdir(parents=True)
        for module, source in sources.items():
            (folder / f"{module}.py").write_text(source)
        importlib.invalidate_caches()
        fields = {"name": name, "data_dir": str(tmp_path / "data"), "size": 3}
        return ConfigDict(fields)

    # TFDS refuses a second class of a name.
    with registered.skip_registration():
        yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_new_data_set_is_a_folder(new_data_set):
    config = new_data_set("new", options=OPTIONS, new_dataset_builder=BUILDER)
    assert datasets.names() == ["arrays", "new"]
    assert datasets.option_names("new") == ("size",)
    assert datasets.shapes(config) == {"x": (2,)}
    assert datasets.load(config).test.modalities["x"].shape == (3, 2)
    config.size = 0
    with pytest.raises(UsageError, match="config.data.size is too small"):
        datasets.load(config)


@pytest.mark.parametrize(
    "options_source, builder_source, message",
    [
        (None, BUILDER, "options.py is missing: datasets/README.md"),
        ("", BUILDER, "options.py has no class Options: datasets/README.md"),
        (
            OPTIONS.replace("@dataclasses.dataclass(eq=False, kw_only=True)", ""),
            BUILDER,
            "Options must be a dataclass that extends tfds.core.BuilderConfig",
        ),
        (
            OPTIONS.replace("Options(tfds.core.BuilderConfig)", "Options"),
            BUILDER,
            "Options must be a dataclass that extends tfds.core.BuilderConfig",
        ),
        (
            OPTIONS.replace('self.name = f"{self.size}"', "pass"),
            BUILDER,
            "Options must set a name that depends on its values",
        ),
        (OPTIONS, None, "broken_dataset_builder.py is missing: datasets/README.md"),
        (OPTIONS, "", "broken_dataset_builder.py has no class Builder"),
        (
            OPTIONS,
            BUILDER.replace('modalities=["x"], ', ""),
            "broken_dataset_builder.py: the metadata have no 'modalities'",
        ),
        (
            OPTIONS,
            BUILDER.replace('["fingerprint"] = "none"', '["fingerprint"] = ""'),
            "broken_dataset_builder.py: the metadata lack the fingerprint, or the nu",
        ),
        (
            OPTIONS,
            BUILDER.replace('{"train": num, "test": num}', '{"train": num}'),
            "broken_dataset_builder.py: the metadata lack the fingerprint, or the nu",
        ),
    ],
)
def test_what_a_new_data_set_lacks_is_one_line(
    new_data_set, options_source, builder_source, message
):
    sources = {"options": options_source, "broken_dataset_builder": builder_source}
    given = {module: text for module, text in sources.items() if text is not None}
    config = new_data_set("broken", **given)
    for _ in range(2):  # nothing is left that is taken for a prepared set
        with pytest.raises(UsageError, match=message) as caught:
            datasets.load(config)
        assert len(str(caught.value).splitlines()) == 1


def test_a_data_set_with_the_name_of_another_module(new_data_set):
    config = new_data_set("json", options=OPTIONS, json_dataset_builder=BUILDER)
    with pytest.raises(UsageError, match="json has the name of another Python module"):
        datasets.load(config)


@pytest.mark.parametrize("name", ["", "..", "../datasets/polymnist", "polymnist.py"])
def test_names_that_are_no_folder_of_a_data_set(tmp_path, name):
    with pytest.raises(UsageError, match="config.data.name=.* is unknown; available"):
        datasets.load(data_config(tmp_path, name=name))


def test_a_field_that_the_data_set_does_not_read(tmp_path):
    config = data_config(tmp_path, digit="mnist")
    message = "config.data.digit is not read by the data set 'polymnist', whose options"
    for use in (datasets.prepare, datasets.shapes):
        with pytest.raises(UsageError, match=message):
            use(config)
    datasets.prepare(data_config(tmp_path, missing=0.5))


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("shapes", {"quadrant": "shared"}, "quadrant"),
        ("arrays", {"quadrant": "shared", "image_size": 32}, "image_size"),
        ("discrete", {"label_modalities": ("digit",)}, "label_modalities"),
        ("cub", {"pairings": 3}, "pairings"),
    ],
)
def test_a_field_of_another_data_set(tmp_path, name, changes, field):
    """All configs have the fields of polymnist; set, they would change nothing."""
    config = importlib.import_module(f"configs.{name}").get_config().data
    config.update(data_dir=str(tmp_path), missing=0.1, use_modalities=1, seed=3)
    # As they are, these fields have the defaults of configs/base.py.
    datasets.check_fields(config)
    config.update(changes)
    options = ", ".join(datasets.option_names(name))
    message = (
        f"config.data.{field} is not read by the data set '{name}', whose options are "
        f"{options}: leave it out"
    )
    with pytest.raises(UsageError) as caught:
        datasets.load(config)
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_modalities": 6}, "6 modalities need 6 backgrounds but .* give 5: lower"),
        ({"num_modalities": 0}, r"config.data.num_modalities=0 must be in 1\.\.1000"),
        ({"image_size": 4}, r"config.data.image_size=4 must be in 8\.\.512"),
        ({"pairings": 0}, "config.data.pairings=0 must be in"),
        ({"validation": 95}, "config.data.validation=95 must be in"),
        ({"seed": -1}, "config.data.seed=-1 must be in"),
        ({"digits": "svhn"}, "config.data.digits='svhn' must be one of mnist, sklearn"),
        ({"translate_scale": 1.5}, r"config.data.translate_scale=1.5 must be in 0.25"),
        ({"digits": "published"}, "needs config.data.published_dir, a folder with"),
        (
            {"digits": "published", "published_dir": "x", "repeated": True},
            "takes the images as they are: leave translate_scale=1.0",
        ),
        (
            {"digits": "published", "published_dir": "x", "validation": 10},
            "pairings=1, validation=0, quadrant",
        ),
        ({"backgrounds_dir": "no/such"}, "no/such is not a folder: set config.data.ba"),
        (
            {"digits": "mnist", "digits_dir": "no/such"},
            "no/such has no train-images-idx3-ubyte.gz .*set config.data.digits_dir",
        ),
    ],
)
def test_wrong_options(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        datasets.prepare(data_config(tmp_path, **changes))
    assert not list(tmp_path.glob("polymnist/*/1*"))


def test_data_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match="cannot prepare data in .*config.data.data_dir"
    ):
        datasets.prepare(data_config(tmp_path / "file"))


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {datasets!r}]
from ml_collections import ConfigDict
from polymnist import recipe
from experiments.running import datasets
compose, calls = recipe.compose, []
def dying(*args):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return compose(*args)
if {die}:
    recipe.compose = dying
print(datasets.prepare(ConfigDict({config!r})))
"""


def start(config, die=False):
    code = KILLED.format(
        root=str(ROOT),
        datasets=str(ROOT / "datasets"),
        die=die,
        config=config.to_dict(),
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
def test_killed_preparation_is_not_taken_for_a_finished_one(tmp_path):
    config = data_config(tmp_path)
    process = start(config, die=True)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "polymnist").iterdir()
    assert list(folder.glob("incomplete.*")) and not (folder / "1.0.0").exists()
    with pytest.raises(UsageError, match="no prepared data set"):
        prepared.load(folder / "1.0.0")
    dataset = prepared.load(datasets.prepare(config))
    assert len(dataset.train.labels) == 1433
    assert not list(folder.glob("incomplete.*"))


def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "compose", interrupt)
    with pytest.raises(KeyboardInterrupt):
        datasets.prepare(data_config(tmp_path))
    assert [p.name for p in tmp_path.glob("polymnist/*/*")] == [".lock"]


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    config = data_config(tmp_path, pairings=4)
    processes = [start(config) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    # One of them did the work, the other waited for it.
    assert sum(b"preparing" in stderr for _, stderr in outputs) == 1
    dataset = prepared.load(outputs[0][0].decode().strip())
    alone = prepared.load(datasets.prepare(data_config(tmp_path / "alone", pairings=4)))
    assert dataset.fingerprint == alone.fingerprint


@pytest.mark.slow
def test_command_reports_in_one_line(tmp_path):
    file = tmp_path / "config.py"
    config = data_config(tmp_path, num_modalities=9).to_dict()
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config(arg=''):\n    return ConfigDict({{'data': {config!r}}})\n"
    )
    command = [sys.executable, "-m", "experiments.prepare", f"--config={file}"]
    run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    wrong = run(command)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: 9 modalities need 9 back")
    assert "Traceback" not in wrong.stderr
    right = run([*command, "--config.data.num_modalities=1"])
    assert right.returncode == 0, right.stderr
    assert len(prepared.load(right.stdout.strip()).train.modalities) == 1


# ---- idx files


def idx(array, dtype_code=8):
    head = struct.pack(">HBB", 0, dtype_code, array.ndim)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx_files(folder, size=40):
    """Random 28x28 digits, every class in both splits."""
    folder.mkdir(exist_ok=True)
    for word, (images, labels) in enumerate(digits.FILES.values()):
        pixels = exact.random_integers((word,), size * 784, 255).astype(np.uint8)
        pixels = pixels.reshape(size, 28, 28)
        (folder / f"{images}.gz").write_bytes(gzip.compress(idx(pixels), mtime=0))
        (folder / labels).write_bytes(idx(np.arange(size).astype(np.uint8) % 10))
    return folder


def test_idx_files_are_read_raw_and_compressed(tmp_path):
    splits = digits.load_mnist(digits.find_files(write_idx_files(tmp_path)), 28)
    assert splits["train"].images.shape == (40, 28, 28)
    np.testing.assert_array_equal(splits["test"].labels, np.arange(40) % 10)
    resized = digits.load_mnist(digits.find_files(tmp_path), 14)
    assert resized["train"].images.shape == (40, 14, 14)


ONES = np.ones((2, 3, 3), np.uint8)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an idx file but 0 bytes of its beginning; fetch"),
        (idx(ONES)[:9], "not an idx file but 9 bytes of its beginning; fetch"),
        (
            b"<!DOCTYPE html>",
            "not an idx file, .* begins with b'<!DOCTYP'; put the file of that name",
        ),
        (
            gzip.compress(idx(ONES), mtime=0),
            "that gzip has compressed; add .gz to its name",
        ),
        (idx(ONES, dtype_code=13), "data type code 0x0d is not 0x08"),
        (idx(np.ones(20, np.uint8)), "1 dimensions where 3 are expected"),
        (idx(ONES)[:-1], "announces 18 bytes of data but the file has 17"),
        (
            idx(ONES) + b"\0",
            "announces 18 bytes .* the file has more; correct its header",
        ),
        (idx(np.ones((0, 3, 3), np.uint8)), r"impossible shape \(0, 3, 3\)"),
        (struct.pack(">HBB3I", 0, 8, 3, 1 << 31, 1 << 31, 4), "impossible shape"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_damaged_idx_files(tmp_path, content, message, compress):
    path = tmp_path / ("file.gz" if compress else "file")
    path.write_bytes(gzip.compress(content, mtime=0) if compress else content)
    with pytest.raises(DatasetError, match=re.escape(str(path)) + ".*" + message):
        digits.read_idx(path, 3)


@pytest.mark.parametrize("damage", ["cut", "flip", "raw"])
def test_damaged_gzip(tmp_path, damage):
    path = tmp_path / "file.gz"
    packed = bytearray(
        gzip.compress(idx(np.arange(180, dtype=np.uint8).reshape(5, 6, 6)))
    )
    if damage == "cut":
        packed = packed[:-20]
    elif damage == "flip":
        packed[-6] ^= 255
    else:
        packed = idx(ONES)
    path.write_bytes(packed)
    message = "cannot be read to its end .*; fetch"
    if damage == "raw":
        message = "not compressed by gzip, .* if a program has unpacked it, compress"
    with pytest.raises(DatasetError, match=f"file.gz: {message}"):
        digits.read_idx(path, 3)


@pytest.mark.parametrize("name", ["file", "file.gz"])
def test_a_file_that_the_system_does_not_give_is_not_damaged(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DatasetError, match=r"cannot be read \(Is a directory\); check"):
        digits.read_idx(tmp_path / name, 3)


def test_labels_must_fit_the_images(tmp_path):
    files = digits.find_files(write_idx_files(tmp_path))
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(39, np.uint8)))
    with pytest.raises(DatasetError, match="has 40 images but .* has 39 labels: take"):
        digits.load_mnist(files, 28)
    labels.write_bytes(idx(np.full(40, 10, np.uint8)))
    with pytest.raises(
        DatasetError, match="train-labels.*label 10 is not a digit .*; le"
    ):
        digits.load_mnist(files, 28)


def test_other_digits_get_another_folder(tmp_path):
    first, second = write_idx_files(tmp_path / "a"), write_idx_files(tmp_path / "b")
    names = [options.Options(digits_dir=str(f)).name for f in (first, second)]
    assert names[0] == names[1]
    (second / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(40, np.uint8)))
    assert options.Options(digits_dir=str(second)).name != names[0]


def test_download_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "MNIST_URL", "http://127.0.0.1:9/")
    message = "MNIST cannot be downloaded .*set config.data.digits_dir to it"
    with pytest.raises(UsageError, match=message):
        datasets.prepare(data_config(tmp_path, digits="mnist"))


def test_download_happens_once(tmp_path, monkeypatch):
    folder = write_idx_files(tmp_path / "server")
    for labels in folder.glob("*labels*"):
        (folder / f"{labels.name}.gz").write_bytes(
            gzip.compress(labels.read_bytes(), mtime=0)
        )

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(
            digits, "MNIST_URL", f"http://127.0.0.1:{server.server_port}/"
        )
        config = data_config(tmp_path, digits="mnist", image_size=28)
        first = prepared.load(datasets.prepare(config))
        server.shutdown()
    config.seed = 1
    assert len(prepared.load(datasets.prepare(config)).train.labels) == 40
    local = data_config(tmp_path, digits="mnist", image_size=28, digits_dir=str(folder))
    assert prepared.load(datasets.prepare(local)).fingerprint == first.fingerprint


@pytest.mark.skipif(not MNIST.is_dir(), reason="no MNIST files beside the checkout")
def test_real_mnist():
    splits = digits.load_mnist(digits.find_files(MNIST), 28)
    counts = {split: len(source.labels) for split, source in splits.items()}
    assert counts == {"train": 60000, "test": 10000}
    subset = digits.Digits(*(field[:2000] for field in splits["test"]))
    opened = recipe.open_split(
        subset,
        backgrounds.load("", 5, 28),
        split="test",
        num_modalities=5,
        side=14,
        repeated=False,
        pairings=1,
        seed=0,
    )
    modalities, labels = opened.read(0, 2000)
    assert modalities["m4"].shape == (2000, 28, 28, 3)
    np.testing.assert_array_equal(np.bincount(labels), np.bincount(subset.labels))


# ---- backgrounds of a folder


def save_noise(path, height, width, word=0):
    pixels = exact.random_integers((word,), height * width * 3, 255)
    image = Image.fromarray(pixels.astype(np.uint8).reshape(height, width, 3))
    image.save(path)
    return np.asarray(image)


def test_backgrounds_are_sorted_by_number(tmp_path):
    saved = {n: save_noise(tmp_path / f"{n}.png", 30, 40, n) for n in (10, 2, 1)}
    (tmp_path / "notes.txt").write_text("not an image")
    loaded = backgrounds.load(tmp_path, 3, 28)
    for image, number in zip(loaded, (1, 2, 10), strict=True):
        np.testing.assert_array_equal(image, saved[number])


def test_grey_backgrounds_become_colour(tmp_path):
    Image.new("L", (30, 30), 9).save(tmp_path / "1.png")
    assert backgrounds.load(tmp_path, 1, 28)[0].shape == (30, 30, 3)


def test_backgrounds_in_a_prepared_set(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        save_noise(folder / f"{number}.png", 16, 16 + number, number)
    config = data_config(tmp_path, num_modalities=6, backgrounds_dir=str(folder))
    directory = datasets.prepare(config)
    assert len(prepared.load(directory).test.modalities) == 6
    save_noise(folder / "3.png", 16, 19, 99)
    assert datasets.prepare(config) != directory


@pytest.mark.parametrize("kind", ["text", "cut", "small", "huge", "few"])
def test_unusable_backgrounds(tmp_path, monkeypatch, kind):
    path = tmp_path / "1.png"
    save_noise(path, 40, 40)
    if kind == "text":
        path.write_text("no image")
        message = r"1\.png: not a readable image"
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:2000])
        message = r"1\.png: not a readable image"
    elif kind == "small":
        save_noise(path, 40, 27)
        message = r"1\.png: 27x40 pixels are smaller than the image size 28"
    elif kind == "huge":
        monkeypatch.setattr(dataset_images, "MAX_PIXELS", 1599)
        message = r"1\.png: 40x40 pixels are more than the 1599 that are decoded"
    else:
        message = f"2 modalities need 2 backgrounds but {tmp_path} has 1: lower"
    with pytest.raises(DatasetError, match=message):
        backgrounds.load(tmp_path, 2 if kind == "few" else 1, 28)


# ---- the published layout


def write_published(folder, num_modalities=2, numbers=range(12)):
    """Solid images whose colour tells modality and number."""
    for split in ("train", "test"):
        for m in range(num_modalities):
            place = folder / split / f"m{m}"
            place.mkdir(parents=True)
            for n in numbers:
                image = Image.new("RGB", (16, 16), (n, m, split == "test"))
                image.save(place / f"{n}.{n % 10}.png")
    return folder


def test_published_layout_is_read_by_number(tmp_path):
    folder = write_published(tmp_path / "published")
    config = data_config(tmp_path, digits="published", published_dir=str(folder))
    dataset = prepared.load(datasets.prepare(config))
    np.testing.assert_array_equal(dataset.train.labels, np.arange(12) % 10)
    for m in range(2):
        images = dataset.test.modalities[f"m{m}"]
        np.testing.assert_array_equal(images[:, 5, 5, 0], np.arange(12))
        assert (images[..., 1] == m).all() and (images[..., 2] == 1).all()


def test_changed_published_files_get_another_folder(tmp_path):
    folder = write_published(tmp_path / "published")
    config = {"digits": "published", "published_dir": str(folder), "num_modalities": 2}
    before = options.Options(**config).name
    save_noise(folder / "test" / "m1" / "3.3.png", 16, 16)
    assert options.Options(**config).name != before


@pytest.mark.parametrize(
    "wrong", ["label", "number", "count", "twice", "name", "empty"]
)
def test_published_files_that_do_not_pair(tmp_path, wrong):
    folder = write_published(tmp_path)
    place = folder / "train" / "m1"
    message = {
        "label": r"m1/3\.4\.png and .*m0/3\.3\.png differ in their label",
        "number": r"m1/99\.3\.png and .*differ in their number|m1/4\.4.*number",
        "count": "m1 has 11 images but .*m0 has 12: every modality",
        "twice": "m1: number 3 occurs twice; remove one file",
        "name": "m1: 3.png is not named {number}.{digit}.png",
        "empty": "m1: no file named",
    }[wrong]
    target = {"label": "3.4.png", "number": "99.3.png", "name": "3.png"}.get(wrong)
    if target:
        os.rename(place / "3.3.png", place / target)
    elif wrong == "count":
        (place / "3.3.png").unlink()
    elif wrong == "twice":
        (place / "03.3.png").write_bytes((place / "3.3.png").read_bytes())
    else:
        for path in place.iterdir():
            path.unlink()
    with pytest.raises(DatasetError, match=message):
        published.open_split(folder, "train", 2, 16)


def test_published_modality_is_missing(tmp_path):
    folder = write_published(tmp_path / "published")
    config = data_config(
        tmp_path, digits="published", published_dir=str(folder), num_modalities=3
    )
    with pytest.raises(UsageError, match="train/m2 is not a folder: config.data.publ"):
        datasets.prepare(config)


@pytest.mark.parametrize("damage", ["cut", "size"])
def test_damaged_published_image(tmp_path, damage):
    folder = write_published(tmp_path / "published")
    path = folder / "test" / "m1" / "7.7.png"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
        message = r"7\.7\.png: not a readable image"
    else:
        Image.new("RGB", (16, 17)).save(path)
        message = r"7\.7\.png: 16x17 pixels where 16x16 are expected; set config.data"
    config = data_config(tmp_path, digits="published", published_dir=str(folder))
    with pytest.raises(UsageError, match=message):
        datasets.prepare(config)
    assert not list(tmp_path.glob("polymnist/*/1.0.0"))
