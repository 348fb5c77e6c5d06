"""Judges of generated examples: networks and parsers that metrics need.

Classifiers and readers tell what an example shows; matchers tell how well two examples
match. Judges are trained on real data by the train loop of the models and stored beside
the data, so that runs on the same data share them.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from mmvae_jax.data.dataset import Dataset
from mmvae_jax.evaluation.judges import classifiers, matchers, readers
from mmvae_jax.training import loop


class Kind(NamedTuple):
    """A kind of judge.

    Attributes:
      check: (config, dataset, name of a metric) -> None; raises UsageError if training
        would.
      get: (config, dataset, folder, loop.Events) -> the judges, loaded or trained; None
        if the events stopped the training.
      section: section of the config.
      folder: folder in config.data.data_dir.
    """

    check: Callable[[Any, Dataset, str], None]
    get: Callable[..., Any]
    section: str
    folder: str


# Need of metrics, which is also a field of EvaluationData -> Kind.
KINDS = {
    "classifiers": Kind(
        classifiers.check, classifiers.get_classifiers, "classifier", "classifiers"
    ),
    "second_classifiers": Kind(
        classifiers.check_second, classifiers.get_second, "classifier", "classifiers"
    ),
    "matchers": Kind(matchers.check, matchers.get_matchers, "matcher", "matchers"),
    "readers": Kind(readers.check, readers.get_readers, "classifier", "classifiers"),
}


def get_judges(
    needed: Iterable[str],
    config: Any,
    dataset: Dataset,
    watched: Callable[[str, Any], AbstractContextManager[loop.Events]],
) -> dict[str, Any] | None:
    """Loads judges from beside the data, or trains and stores them.

    Args:
      needed: keys of `KINDS`.
      config: with the fields `classifier`, `matcher` and `data` of configs/base.py.
      dataset: the real data.
      watched: (folder, section of the config) -> a context with the events of a
        training.

    Returns:
      Kind -> judges, the fields of EvaluationData; None if a training was stopped.

    Raises:
      UsageError: the data or the config do not fit.
    """
    found = {}
    for name in needed:
        kind = KINDS[name]
        folder = Path(config.data.data_dir).expanduser() / kind.folder
        with watched(kind.folder, config[kind.section]) as events:
            judges = kind.get(config, dataset, folder, events)
        if judges is None:
            return None
        found[name] = judges
    return found
