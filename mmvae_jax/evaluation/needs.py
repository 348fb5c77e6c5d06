"""The needs of metrics: each is checked, or supplied, before training.

`METRICS` lists the needs of each metric.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmvae_jax.data.dataset import Dataset, Split
from mmvae_jax.evaluation import judges, metric
from mmvae_jax.evaluation.judges import inception_weights
from mmvae_jax.evaluation.metrics import METRICS
from mmvae_jax.networks import inception

# Needs of comparisons of modalities, which data with one modality do not have.
_OF_SEVERAL_MODALITIES = (
    "complete tuple",
    "complete tuples",
    "open attribute",
    "matchers",
    "second_classifiers",
)


class Setting(NamedTuple):
    """Config and data of a run.

    Attributes:
      config: as in configs/base.py.
      dataset: data of the used modalities.
      complete: data of all modalities, for the training of judges.
      test: the test examples to evaluate.
    """

    config: Any
    dataset: Dataset
    complete: Dataset
    test: Split


def check(setting: Setting) -> list[str]:
    """Refuses metrics that cannot be computed.

    Returns:
      Lines to print: folders that cannot be written, so that nothing is cached there.

    Raises:
      UsageError: a need of a metric is not met.
    """
    notes = {}
    for name, needs in _needed(setting.config.eval.metrics, setting.dataset).items():
        for need in needs:
            if need in NEEDS:
                NEEDS[need](name, setting)
            folder = _folder(name, need, setting.config)
            if folder is not None and not metric.is_writable(folder):
                notes[folder] = (
                    f"{folder} cannot be written: what the metric {name!r} keeps there "
                    "is not kept, and what is not there yet is made again by every run"
                )
    return list(notes.values())


def _needed(names: Iterable[str], dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """Metric -> its needs; for one modality, without comparisons."""
    is_single = len(dataset.train.modalities) == 1
    left_out = _OF_SEVERAL_MODALITIES if is_single else ()
    return {
        name: tuple(need for need in METRICS[name].needs if need not in left_out)
        for name in names
    }


def needed_judges(names: Iterable[str], dataset: Dataset) -> list[str]:
    """The kinds of judges that metrics need, keys of `judges.KINDS`."""
    asked = {need for own in _needed(names, dataset).values() for need in own}
    return [kind for kind in judges.KINDS if kind in asked]


def supplied(name: str, config: Any, data_dir: str) -> dict[str, Any]:
    """The arguments of a metric's function that come from its needs and the config.

    Args:
      name: name of the metric.
      config: the section `eval` of configs/base.py.
      data_dir: folder of data sets and of files that metrics store.

    Raises:
      UsageError: weights are missing.
    """
    own = METRICS[name]
    options = {argument: config[field] for argument, field in own.options.items()}
    if "weights" in own.needs:
        weights = inception_weights.load(config.inception_weights, data_dir)
        variables = inception.to_variables(weights)
        options["extractor"] = inception.make_extractor(variables)
    if "cache" in own.needs:
        folder = Path(data_dir).expanduser() / name
        options["cache_dir"] = folder if metric.is_writable(folder) else None
    return options


def _folder(name: str, need: str, config: Any) -> Path | None:
    """The folder of the cached files of a need; None if there are none."""
    data_dir = Path(config.data.data_dir).expanduser()
    if need == "cache":
        return data_dir / name
    if need == "weights" and not config.eval.inception_weights:
        return data_dir / need
    if need in judges.KINDS:
        return data_dir / judges.KINDS[need].folder
    return None


def _check_labels(name: str, setting: Setting) -> None:
    """Requires labels of both splits, for training and testing probes."""
    for split in (setting.complete.train, setting.complete.test):
        metric.require_labels(split, name)


def _check_attributes(name: str, setting: Setting) -> None:
    """Requires attributes of both splits."""
    for split in (setting.complete.train, setting.complete.test):
        metric.require_attributes(split, name)


def _check_judge(kind: str, name: str, setting: Setting) -> None:
    """Requires that judges of a kind can be trained."""
    judges.KINDS[kind].check(setting.config, setting.complete, name)


# Need -> function of a metric's name and a Setting that raises UsageError if the need
# is not met. Other needs are supplied (`supplied`).
NEEDS: dict[str, Callable[[str, Setting], Any]] = {
    "labels": _check_labels,
    "attributes": _check_attributes,
    "open attribute": lambda name, setting: metric.require_open(
        setting.test, setting.dataset.shown, name
    ),
    "captions": lambda name, setting: metric.captions_of(
        setting.test, setting.dataset.words, name
    ),
    "images": lambda name, setting: metric.images_of(setting.test, name),
    "images or vectors": lambda name, setting: metric.values_of(setting.test, name),
    "images of 1 or 3 channels": lambda name, setting: metric.inception_images_of(
        setting.test, name
    ),
    "complete tuple": lambda name, setting: metric.require_complete(
        setting.test, name, 1
    ),
    "complete tuples": lambda name, setting: metric.require_complete(
        setting.test, name
    ),
    **{kind: partial(_check_judge, kind) for kind in judges.KINDS},
}
SUPPLIED = ("weights", "cache")
