"""Finds, prepares, loads and reduces the data set of a config.

A data set is a folder `datasets/NAME` with two modules: `options.py` has the dataclass
`Options`, whose fields are in config.data, and `NAME_dataset_builder.py` has the TFDS
class `Builder` (datasets/README.md). The name "arrays" means a file of the user's own
arrays, `mmvae_jax.data.arrays`.

`datasets/` is a source root. Only this file adds it to the path, so that it does not
shadow a library of that name.
"""

import contextlib
import dataclasses
import errno
import fcntl
import importlib
import inspect
import io
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from ml_collections import ConfigDict

from configs import base
from mmvae_jax.data import arrays, prepared
from mmvae_jax.data.dataset import Dataset, with_counts
from mmvae_jax.data.reduce import first_modalities, with_missing
from mmvae_jax.errors import UsageError, fields_of, first_line
from mmvae_jax.models import parts
from mmvae_jax.types import TokenShape

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
ARRAYS = "arrays"
# Metadata of every prepared data set, see `mmvae_jax.data.dataset`.
_METADATA = ("modalities", "num_examples", "fingerprint")
_GUIDE = "datasets/README.md lists what a data set needs"
# The fields of config.data that have a meaning for every data set.
_COMMON = ("name", "data_dir", "use_modalities", "missing", "missing_test", "seed")


def prepare(data_config: ConfigDict) -> Path:
    """Prepares a data set, unless it is already prepared.

    The data are written to a temporary folder, which is renamed at the end, so that an
    existing folder is always complete. A lock makes a second process wait.

    Args:
      data_config: `config.data`: `name`, `data_dir` and the options of the data set;
        see datasets/<name>/README.md.

    Returns:
      Path of the prepared data, for `mmvae_jax.data.prepared.load`.

    Raises:
      UsageError: an option or an input file is invalid.
    """
    root = _root(data_config)
    with _quiet(), _one_line():
        builder = _builder(data_config)
        directory = Path(builder.data_dir)
        if directory.exists():
            return directory
        try:
            with _locked(directory.parent):
                if not directory.exists():
                    _build(builder, root)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # not a mistake of the user
            raise UsageError(
                f"cannot prepare data in {root} ({error}): check config.data.data_dir"
            ) from error
    return directory


def load(data_config: ConfigDict) -> Dataset:
    """Loads the whole data set of a config; prepares it if necessary.

    Args:
      data_config: `config.data`; the name "arrays" means the user's own files.

    Returns:
      Dataset.

    Raises:
      UsageError: from `prepare`; or a file is invalid.
    """
    if data_config.name != ARRAYS:
        return prepared.load(prepare(data_config))
    check_fields(data_config)
    with fields_of("config.data"):
        return arrays.load(**{x: data_config[x] for x in option_names(ARRAYS)})


def load_of(config: ConfigDict) -> Dataset:
    """`load`, with int arrays as vectors if their likelihood is one of counts.

    Args:
      config: as in configs/base.py.
    """
    dataset = load(config.data)
    return with_counts(
        dataset, [m for m in dataset.train.modalities if parts.has_counts(config, m)]
    )


def keep_modalities(dataset: Dataset, data_config: ConfigDict) -> Dataset:
    """The used modalities of a data set, with missing ones removed at random.

    Args:
      dataset: result of `load`.
      data_config: `config.data`: `use_modalities`, `missing`, `missing_test`, `seed`.

    Raises:
      UsageError: from `reduce.first_modalities` or `reduce.with_missing`.
    """
    with fields_of("config.data"):
        reduced = first_modalities(dataset, data_config.use_modalities)
        return with_missing(
            reduced, data_config.missing, data_config.missing_test, data_config.seed
        )


def shapes(data_config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Modality -> shape of one example; a TokenShape for tokens.

    It prepares only data with tokens, whose vocabulary is not known before.

    Raises:
      UsageError: from `prepare`.
    """
    if data_config.name == ARRAYS:
        return load(data_config).shapes()

    def describe() -> Any:
        with _quiet():
            return _builder(data_config).info

    info = describe()
    if "words" in info.metadata:
        prepare(data_config)
        info = describe()
    words = info.metadata.get("words", {})
    # TFDS does not keep the order of features; the metadata do.
    found = {m: info.features[m].shape[1:] for m in info.metadata["modalities"]}
    return {
        m: TokenShape(*shape, len(words[m])) if m in words else tuple(shape)
        for m, shape in found.items()
    }


def names() -> list[str]:
    """The known values of config.data.name, sorted."""
    return sorted(
        [*(path.parent.name for path in DATASETS.glob("*/options.py")), ARRAYS]
    )


def option_names(name: str) -> tuple[str, ...]:
    """The fields of config.data that are options of a data set.

    Raises:
      UsageError: there is no such data set, or it has no `Options`.
    """
    if name == ARRAYS:
        return tuple(inspect.signature(arrays.load).parameters)
    inherited = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    own = dataclasses.fields(_options_class(name))
    return tuple(field.name for field in own if field.name not in inherited)


def unread(data_config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of configs/base.py that the data set does not read -> their defaults.

    A new run is refused if one has another value (`check_fields`). Older runs may have
    such values, which changed nothing.

    Args:
      data_config: `config.data`, or a mapping with the same fields.

    Raises:
      UsageError: there is no such data set, or it has no `Options`.
    """
    read = (*_COMMON, *option_names(data_config["name"]))
    return {x: y for x, y in base.get_config().data.items() if x not in read}


def options_of(data_config: Mapping[str, Any]) -> Any:
    """The checked `Options` of a data set, from a config.

    Args:
      data_config: `config.data`, or a mapping with the same fields.

    Raises:
      UsageError: a field is missing or invalid.
    """
    name = data_config["name"]
    make_options = _options_class(name)
    fields = option_names(name)
    _require_fields(data_config, fields)
    with _one_line():
        options = make_options(**{field: data_config[field] for field in fields})
    if not options.name:
        raise UsageError(
            f"{DATASETS / name / 'options.py'}: Options must set a name that depends "
            f"on its values; {_GUIDE}"
        )
    return options


def _require_fields(data_config: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    """Refuses a config that lacks options of its data set."""
    name = data_config["name"]
    missing = [field for field in fields if field not in data_config]
    if missing:
        raise UsageError(
            f"config.data.name={name!r} needs config.data.{missing[0]}; start from "
            f"configs/{name}.py"
        )


def check_fields(data_config: ConfigDict) -> None:
    """Refuses a config with a missing option, or a field that is not read.

    All configs have the fields of configs/base.py; those that the data set does not
    read must have their defaults.

    Raises:
      UsageError: one line.
    """
    fields = option_names(data_config.name)
    _require_fields(data_config, fields)
    allowed = unread(data_config)
    wrong = [
        field
        for field, value in data_config.items()
        if field not in (*_COMMON, *fields)
        and (field not in allowed or value != allowed[field])
    ]
    if wrong:
        raise UsageError(
            f"config.data.{min(wrong)} is not read by the data set "
            f"{data_config.name!r}, whose options are {', '.join(fields)}: leave it out"
        )


def _options_class(name: str) -> Any:
    """The class `Options` of a data set."""
    made = _attribute(name, "options", "Options")
    is_made = dataclasses.is_dataclass(made) and "__dataclass_fields__" in vars(made)
    if not is_made or not issubclass(made, tfds.core.BuilderConfig):
        raise UsageError(
            f"{DATASETS / name / 'options.py'}: Options must be a dataclass that "
            f"extends tfds.core.BuilderConfig; {_GUIDE}"
        )
    return made


def _builder(data_config: ConfigDict) -> Any:
    """The TFDS builder of a data set."""
    name = data_config.name
    check_fields(data_config)
    options = options_of(data_config)
    make_builder = _attribute(name, f"{name}_dataset_builder", "Builder")
    root = _root(data_config)
    try:
        builder = make_builder(
            config=options, data_dir=root, file_format="array_record"
        )
        metadata = builder.info.metadata or {}
    except Exception as error:
        directory = root / name / options.name
        if not directory.exists():
            raise
        # TFDS reads prepared data here; damage raises many types of exception.
        reason = first_line(error)
        raise UsageError(
            f"the data set in {directory} is damaged ({reason[:200]}): delete the "
            "folder, and it is prepared again"
        ) from error
    for key in _METADATA:
        if key not in metadata:
            raise UsageError(
                f"{_file_of(builder)}: the metadata have no {key!r}; {_GUIDE}"
            )
    return builder


def _attribute(name: str, module: str, attribute: str) -> Any:
    """A class of a data set, from its module.

    Args:
      name: `config.data.name`.
      module: name of the module in the folder of the data set.
      attribute: name of the class.

    Raises:
      UsageError: the folder, module or class does not exist.
    """
    folder = DATASETS / name
    if not name.isidentifier() or not folder.is_dir():
        raise UsageError(
            f"config.data.name={name!r} is unknown; available: {', '.join(names())}"
        )
    file = folder / f"{module}.py"
    if not file.is_file():
        raise UsageError(f"{file} is missing: {_GUIDE}")
    # Another module with this name has priority over a folder without __init__.py.
    paths = getattr(_import(name), "__path__", ())
    if folder not in (Path(path).resolve() for path in paths):
        raise UsageError(
            f"{folder} has the name of another Python module: rename the data set"
        )
    found = _import(f"{name}.{module}")
    if not hasattr(found, attribute):
        raise UsageError(f"{file} has no class {attribute}: {_GUIDE}")
    return getattr(found, attribute)


def _import(module: str) -> ModuleType:
    """Imports a module of datasets/, after adding it to the path."""
    if str(DATASETS) not in sys.path:
        sys.path.insert(0, str(DATASETS))
    return importlib.import_module(module)


def _build(builder: Any, root: Path) -> None:
    """Removes files of killed preparations, then writes the data set."""
    directory = Path(builder.data_dir)
    for leftover in directory.parent.glob(f"incomplete.*_{directory.name}"):
        shutil.rmtree(leftover)
    print(f"preparing {directory}", file=sys.stderr, flush=True)
    builder.download_and_prepare(download_dir=root / "downloads")
    metadata = builder.info.metadata
    if not metadata["fingerprint"] or set(metadata["num_examples"]) != set(
        builder.info.splits
    ):
        shutil.rmtree(directory)
        raise UsageError(
            f"{_file_of(builder)}: the metadata lack the fingerprint, or the "
            f"num_examples of a split; {_GUIDE}"
        )


def _file_of(builder: Any) -> str:
    """The file of a builder, for messages."""
    return inspect.getfile(type(builder))


def _root(data_config: ConfigDict) -> Path:
    """The folder of all prepared data."""
    return Path(data_config.data_dir).expanduser().resolve()


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Converts DatasetError to UsageError."""
    try:
        yield
    except _import("dataset_errors").DatasetError as error:
        raise UsageError(str(error)) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder; the system frees it when the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS; our progress bar uses standard error."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()
