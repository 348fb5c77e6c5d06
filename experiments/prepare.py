"""Prepares a data set: a function for `experiments.run`, and a command.

    python -m experiments.prepare --config=configs/polymnist.py

Prints the folder of the prepared data. Prepared data are left as they are, so the
command may be repeated. `datasets/` is a source root, put on the path here and
nowhere else, so that a library of that name is never shadowed.
"""

import contextlib
import errno
import fcntl
import importlib
import io
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags, logging

from experiments import command
from mmvae_jax import arrays, data
from mmvae_jax.errors import UsageError
from mmvae_jax.types import TokenShape

DATASETS = Path(__file__).resolve().parents[1] / "datasets"
POLYMNIST_OPTIONS = (
    "digits",
    "digits_dir",
    "backgrounds_dir",
    "published_dir",
    "num_modalities",
    "image_size",
    "translate_scale",
    "repeated",
    "pairings",
    "seed",
)
ARRAYS = "arrays"
ARRAYS_OPTIONS = ("path", "test_path", "test_fraction", "seed")
DISCRETE_OPTIONS = (
    "num_modalities",
    "shared_bits",
    "specific_bits",
    "one_in",
    "patch",
    "repeats",
)
CUB_OPTIONS = (
    "cub_dir",
    "image_size",
    "crop",
    "split",
    "captions_per_image",
    "caption_length",
    "min_count",
)
SHAPES_OPTIONS = (
    "image_size",
    "num_train",
    "num_test",
    "held_out",
    "caption_length",
    "seed",
)


class Source(NamedTuple):
    """Where a data set is in datasets/, and what of config.data it is made of.

    Attributes:
      config: the class of its options, in its module `options`.
      options: fields of config.data.
      errors: the folder whose `errors` it raises; "" for its own.
    """

    config: str
    options: tuple[str, ...]
    errors: str = ""


SOURCES = {
    "cub": Source("CubConfig", CUB_OPTIONS, "pairs"),
    "discrete": Source("DiscreteConfig", DISCRETE_OPTIONS),
    "polymnist": Source("PolymnistConfig", POLYMNIST_OPTIONS),
    "shapes": Source("ShapesConfig", SHAPES_OPTIONS, "pairs"),
}


def _builder(data_config, data_dir):
    """The TFDS builder of a data set, and the exception of its mistakes."""
    name = data_config.name
    config, dataset_error = _options(data_config)
    module = importlib.import_module(f"{name}.{name}_dataset_builder")
    try:
        builder = module.Builder(
            config=config, data_dir=data_dir, file_format="array_record"
        )
    except Exception as error:
        directory = Path(data_dir) / name / config.name
        if not directory.exists():
            raise
        # What is there is read at once, and damage shows as many kinds of exception.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"the data set in {directory} is damaged ({reason[:200]}): delete the "
            "folder, and it is prepared again"
        ) from error
    return builder, dataset_error


def _options(data_config):
    """The checked options of a data set, and the exception of its mistakes."""
    if str(DATASETS) not in sys.path:
        sys.path.insert(0, str(DATASETS))
    name = data_config["name"]
    source = SOURCES[name]
    errors = importlib.import_module(f"{source.errors or name}.errors")
    make_config = getattr(importlib.import_module(f"{name}.options"), source.config)
    missing = [field for field in source.options if field not in data_config]
    if missing:
        raise UsageError(
            f"config.data.name={name!r} needs config.data.{missing[0]}; start from "
            f"configs/{name}.py"
        )
    try:
        config = make_config(**{field: data_config[field] for field in source.options})
    except errors.DatasetError as error:
        raise UsageError(str(error)) from error
    return config, errors.DatasetError


def discrete_pmf(data_config) -> np.ndarray:
    """The joint pmf of the data set "discrete", as `mmvae_jax.theory` takes it.

    Args:
      data_config: mapping `config.data`; with `use_modalities`, of the first ones.

    Returns:
      float64 [n, ...], axis m is modality m, summing to 1.

    Raises:
      UsageError: an option that cannot be used.
    """
    options, _ = _options(data_config)
    from discrete import pmf

    table = pmf.joint_pmf(**options.pmf_options)
    used = data_config.get("use_modalities", 0) or table.ndim
    return table.sum(axis=tuple(range(used, table.ndim)))


def polymnist_process(data_config) -> tuple[np.ndarray, list[int]]:
    """PolyMNIST as a generating process, as `theory.polymnist_discrepancy` takes it.

    Args:
      data_config: ConfigDict `config.data`, of name "polymnist"; it is prepared.

    Returns:
      int [num_classes], digit images of each class in the training split; and of each
      modality the number of places of its crop, times those of its digit.

    Raises:
      UsageError: other data, whose process is not known.
    """
    if data_config.name != "polymnist" or data_config.digits == "published":
        raise UsageError(
            "the generating process is known of config.data.name='polymnist' with "
            "digits that are put together here"
        )
    directory = prepare(data_config)
    from polymnist import backgrounds

    config, _ = _options(data_config)
    num = 1 if config.repeated else config.num_modalities
    scenes = backgrounds.load(config.backgrounds_dir, num, config.image_size)
    size = config.image_size
    digit_places = (size - config.side + 1) ** 2
    places = [
        (scene.shape[0] - size + 1) * (scene.shape[1] - size + 1) * digit_places
        for scene in scenes
    ]
    labels = data.load(directory).train.labels
    counts = np.bincount(labels) // config.pairings
    return counts, places * (config.num_modalities // num)


def prepare(data_config):
    """Prepares a data set unless that has been done.

    A data set is written to a folder of another name that is renamed when all is
    written, so an interrupted preparation is never taken for a finished one. A lock
    makes a second process wait for the first.

    Args:
      data_config: ConfigDict `config.data`: `name`, `data_dir` and the options of
        the data set; see datasets/<name>/README.md.

    Returns:
      Path of the prepared data, for `mmvae_jax.data.load`.

    Raises:
      UsageError: an option or an input file that cannot be used.
    """
    _check_name(data_config)
    root = Path(data_config.data_dir).expanduser().resolve()
    with _quiet():
        builder, dataset_error = _builder(data_config, root)
        directory = Path(builder.data_dir)
        if directory.exists():
            return directory
        try:
            with _locked(directory.parent):
                if not directory.exists():
                    _build(builder, root)
        except dataset_error as error:
            raise UsageError(str(error)) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # no mistake of the user's
            raise UsageError(
                f"cannot prepare data in {root} ({error}): check config.data.data_dir"
            ) from error
    return directory


def load(data_config):
    """The data set of a config, prepared if need be, with all that it has.

    Args:
      data_config: ConfigDict `config.data`.

    Returns:
      Dataset; of name "arrays", what is in the user's own files.

    Raises:
      UsageError: as `prepare`; or a file that cannot be used.
    """
    if data_config.name == ARRAYS:
        missing = [name for name in ARRAYS_OPTIONS if name not in data_config]
        if missing:
            raise UsageError(
                f"config.data.name={ARRAYS!r} needs config.data.{missing[0]}; start "
                "from configs/arrays.py"
            )
        options = {name: data_config[name] for name in ARRAYS_OPTIONS}
        return arrays.load(**options)
    return data.load(prepare(data_config))


def reduce(dataset, data_config):
    """What of a data set is trained and evaluated on: `use_modalities`, `missing`.

    Raises:
      UsageError: as `data.first_modalities` and `data.with_missing`.
    """
    reduced = data.first_modalities(dataset, data_config.use_modalities)
    return data.with_missing(
        reduced, data_config.missing, data_config.missing_test, data_config.seed
    )


def shapes(data_config):
    """Modality -> shape of one example; a TokenShape where it is tokens.

    Data without tokens are not prepared for it; a vocabulary is known of prepared data.

    Raises:
      UsageError: as `prepare`.
    """
    if data_config.name == ARRAYS:
        return load(data_config).shapes()
    _check_name(data_config)
    root = Path(data_config.data_dir).expanduser().resolve()

    def describe():
        with _quiet():
            builder, _ = _builder(data_config, root)
            return builder.info

    info = describe()
    if "words" in info.metadata:
        prepare(data_config)
        info = describe()
    words = info.metadata.get("words", {})
    # TFDS keeps the features in no order, the metadata do.
    found = {m: info.features[m].shape[1:] for m in info.metadata["modalities"]}
    return {
        m: TokenShape(*shape, len(words[m])) if m in words else tuple(shape)
        for m, shape in found.items()
    }


def _check_name(data_config):
    """Refuses a data set that does not exist."""
    if data_config.name not in SOURCES:
        raise UsageError(
            f"config.data.name={data_config.name!r} is unknown; available: "
            f"{', '.join(sorted([*SOURCES, ARRAYS]))}"
        )


def _build(builder, root):
    """Removes what killed preparations left, then writes the data set."""
    directory = Path(builder.data_dir)
    for leftover in directory.parent.glob(f"incomplete.*_{directory.name}"):
        shutil.rmtree(leftover)
    print(f"preparing {directory}", file=sys.stderr, flush=True)
    builder.download_and_prepare(download_dir=root / "downloads")


@contextlib.contextmanager
def _locked(folder):
    """Holds the lock of a folder; the system frees it when the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet():
    """Silences what TFDS prints and logs; our own bar goes to standard error."""
    import tensorflow_datasets as tfds

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()


def main():
    """Prepares the data of a config and prints where they are."""
    data_config = flags.FLAGS.config.data
    if data_config.name == ARRAYS:
        load(data_config)  # for its checks: there is nothing to prepare
        print(Path(data_config.path).expanduser().resolve())
    else:
        print(prepare(data_config))


if __name__ == "__main__":
    command.define_config("configs/polymnist.py")
    command.run(main)
