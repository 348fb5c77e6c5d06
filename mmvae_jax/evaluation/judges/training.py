"""Training of the networks of judges and samplers, and the files that keep them.

The train loop of the models trains them, one network per member of a sweep. They are
stored beside the data; the file name contains the hashes of data and settings.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import numpy as np

from mmvae_jax.data.dataset import Dataset
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metric import is_writable, keep
from mmvae_jax.training import examples, loop, mapping, step
from mmvae_jax.training.execution import compile_steps, init_states
from mmvae_jax.types import Params

_DIGEST_BYTES = hashlib.sha256().digest_size


def fit_members(
    task: step.Task,
    hyper: Any,
    data: Mapping[str, np.ndarray],
    settings: Any,
    events: loop.Events,
) -> tuple[Params, np.ndarray]:
    """Trains networks for the evaluation, one per member.

    Args:
      task: the training of one member.
      hyper: fields [K].
      data: modality -> uint8 [N, ...], and other inputs of the task, [N].
      settings: with num_steps, batch_size (at most N is used) and seed.
      events: callbacks of the train loop.

    Returns:
      (the parameters of all members, [K, ...]; bool [K], False for members that
      diverged, whose parameters are the last finite ones), in host memory.
    """
    keys = jax.random.split(jax.random.key(settings.seed), len(hyper.learning_rate))
    batch_size = min([settings.batch_size, *(len(leaf) for leaf in data.values())])
    batch = {name: leaf[:batch_size] for name, leaf in data.items()}
    execution = mapping.choose_execution(
        "auto", 0, task.convolutions, jax.default_backend()
    )
    execution = mapping.place_data(execution, examples.AUTO, data, batch_size)
    state = loop.fit(
        compile_steps(task, execution),
        init_states(task, hyper, keys, batch),
        hyper,
        keys,
        data,
        num_steps=settings.num_steps,
        batch_size=batch_size,
        data_seed=settings.seed,
        execution=execution,
        events=events,
    )
    return jax.device_get((state.params, state.finite))


def require_converged(diverged: Sequence[str], section: str, settings: Any) -> None:
    """Refuses judges that diverged: they would judge, and be stored, half-trained.

    Args:
      diverged: the modalities whose networks diverged.
      section: the section of the config with their settings.
      settings: this section.

    Raises:
      UsageError: a network diverged.
    """
    if diverged:
        raise UsageError(
            f"training of the {section} of {', '.join(diverged)} diverged: lower "
            f"config.{section}.learning_rate, which is {settings.learning_rate:g}"
        )


def load_or_train(
    directory: str, dataset: Dataset, settings: Any, train_all: Callable
) -> dict | None:
    """Loads parameters for these data and settings from a file, or trains them.

    Args:
      directory: folder of the file; if it cannot be written, nothing is stored.
      dataset: its fingerprint is the first half of the file's name.
      settings: a section of a config, whose hash is the second half.
      train_all: () -> a tree of dicts and arrays, or None if it was stopped; called if
        the file does not exist or cannot be read.

    Returns:
      The loaded or trained parameters; None if the training was stopped.
    """
    described = json.dumps(settings.to_dict(), sort_keys=True)
    source = f"{dataset.fingerprint} {described}"
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = Path(directory) / f"{name}.msgpack"
    trained = _load(path)
    if trained is None:
        trained = train_all()
        if trained is not None and is_writable(path.parent):
            _save(path, trained)
    return trained


def _save(path: Path, trained: Mapping[str, Any]) -> None:
    """Writes a file that starts with the sha256 of its content."""
    body = flax.serialization.msgpack_serialize(dict(trained))
    keep(path, hashlib.sha256(body).digest() + body)


def _load(path: Path) -> dict | None:
    """The content of a file; None if it does not exist or is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None  # truncated, damaged or another file: train and overwrite it
    return flax.serialization.msgpack_restore(body)
