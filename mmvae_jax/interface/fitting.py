"""`fit`: training on arrays in memory, with the train loop of `experiments.run`."""

import contextlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mmvae_jax import tokens
from mmvae_jax.data import arrays
from mmvae_jax.data.dataset import Dataset, Split, is_tokens, with_counts
from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.interface import checks, description, interrupts, settings, sweeps
from mmvae_jax.interface.progress import ProgressBar
from mmvae_jax.interface.trained import Trained, build, diverged
from mmvae_jax.models import parts
from mmvae_jax.training import devices, loop, mapping, stages
from mmvae_jax.training.log import member_name
from mmvae_jax.types import OBSERVED, AnyArray

Values = float | Sequence[float]

_METRICS = (
    "`score` computes the elbo and the log_likelihood, and `python -m experiments.run` "
    "all metrics, of arrays in a .npz file"
)
_CHECKPOINTS = (
    "`export` writes what was trained, and `python -m experiments.run` checkpoints"
)
# Section, or "section.field", that `fit` does not apply -> what to use instead.
_NOT_APPLIED = {
    "data": "it trains on the arrays that it is given",
    "data.missing": "pass `observed`",
    "data.missing_test": "pass `observed` to the function that is applied",
    "data.use_modalities": "pass only these modalities",
    "log": "the values are in `Trained.history`; `python -m experiments.run` has "
    "trackers",
    "classifier": _METRICS,
    "matcher": _METRICS,
    "eval.metrics": _METRICS,
    "eval.num_examples": "pass these examples to the function that is applied",
    "eval.inception_weights": _METRICS,
    "eval.sampler": _METRICS,
    "eval.sampler_components": _METRICS,
    "eval.sampler_steps": _METRICS,
    "train.eval_every_steps": _METRICS,
    "train.checkpoint_every_steps": _CHECKPOINTS,
    "train.checkpoints_kept": _CHECKPOINTS,
}


def fit(
    data: Mapping[str, Any],
    *,
    model: str = "mopoe",
    observed: AnyArray | Mapping[str, AnyArray] | None = None,
    labels: AnyArray | None = None,
    latent_dim: int = 16,
    num_steps: int = 5_000,
    batch_size: int = 64,
    beta: Values = 1.0,
    learning_rate: Values = 1e-3,
    seed: int | Sequence[int] = 0,
    network: str = "mlp",
    likelihood: str | Mapping[str, str] = "laplace",
    options: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    is_shown: bool = True,
) -> Trained | tuple[Trained, ...]:
    """Trains a model, or a sweep of models in one program, on arrays.

    Ctrl-C (SIGINT in the main thread) ends the training: what is trained so far is
    returned, with its number of steps.

    Args:
      data: modality -> array, in the order of the M axis: images uint8 [N, H, W] or
        [N, H, W, C], vectors float [N, ...], counts int [N, F] (by their likelihood),
        tokens int [N, T] with their vocabulary "NAME_words", or captions, N strings.
        Lists and DataFrames are converted by NumPy.
      model: one of `models.MODELS`.
      observed: which modalities each example has, bool [N, M], or a mapping of some
        modalities to bool [N]; default: all. Missing values may be anything, also NaN.
      labels: int [N]; not used in training.
      latent_dim: D.
      num_steps: number of steps of Adam.
      batch_size: examples per step, or all examples if there are fewer.
      beta: weight of the KL terms. Several values of beta, learning_rate or seed make a
        sweep: every combination is a member.
      learning_rate: learning rate of Adam.
      seed: seed of the initialisation and of all sampling.
      network: one of `networks.NETWORKS`, for all modalities except tokens.
      likelihood: likelihood of all modalities except tokens, or modality -> likelihood;
        set scales and weights in `config`.
      options: options of the model (`models.MODELS[model].options`).
      config: "section.field" -> value, other settings of `settings.get_config`, for
        instance {"modality.likelihood_scale": 0.1, "train.clip_norm": 1.0}; those of
        evaluation, data sets, checkpoints and trackers are refused.
      is_shown: whether a progress bar is shown.

    Returns:
      Trained; or a tuple with one per member, if beta, learning_rate or seed is a
      sequence.

    Warns:
      UserWarning: the data are valid but unusual, for instance images of floats, which
        are treated as vectors; some members have diverged, but not all; or Ctrl-C has
        ended the training.

    Raises:
      UsageError: an invalid setting or array, or no device (before training), or all
        members have diverged.
      KeyboardInterrupt: Ctrl-C before the first step, or before the last stage of a
        model that is trained in stages, which cannot be used then; or a second Ctrl-C.
    """
    devices.require_devices()
    dataset = _dataset(data, observed, labels)
    found = _config(dataset.train, network, likelihood)
    counts = [m for m in dataset.train.modalities if parts.has_counts(found, m)]
    dataset = with_counts(dataset, counts)
    arguments = {
        ("model", "name"): model,
        ("model", "latent_dim"): latent_dim,
        ("train", "num_steps"): num_steps,
        ("train", "batch_size"): batch_size,
        ("sweep", "beta"): _values(beta),
        ("sweep", "learning_rate"): _values(learning_rate),
        ("sweep", "seed"): _values(seed),
    }
    for path, value in arguments.items():
        _set(found, path, value)
    found.train.log_every_steps = max(1, found.train.num_steps // 100)
    default = found.copy_and_resolve_references()
    for name, value in _mapping(config or {}, "config").items():
        _set(found, tuple(str(name).split(".")), value, arguments)
    _require_applied(found, default)
    settings.parse_arg(found, found.model.name)
    with found.ignore_type():
        found.model.options.update(_mapping(options or {}, "options"))
    num = dataset.train.num_examples
    found.train.batch_size = min(found.train.batch_size, num)
    checks.check(found)
    sweep, notes = sweeps.build(found, dataset)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    trained = train(sweep, is_shown=is_shown)
    if not any(one.is_finite for one in trained):
        raise UsageError(
            "all members have diverged: lower learning_rate, set train.clip_norm, or "
            "scale the data"
        )
    for one in trained:
        if not one.is_finite:
            name = member_name(one.member, sweep.members)
            warnings.warn(diverged(name), stacklevel=2)
    is_sweep = any(np.ndim(x) for x in (beta, learning_rate, seed))
    return trained if is_sweep else trained[0]


def train(sweep: sweeps.Sweep, *, is_shown: bool = True) -> tuple[Trained, ...]:
    """Trains a sweep in memory; returns one Trained per member.

    Warns and raises as `fit` where Ctrl-C ends the training.
    """
    config, members = sweep.config, sweep.members
    prepared = mapping.prepare(
        sweep.task,
        sweep.execution,
        sweep.hyper,
        sweep.keys,
        sweep.dataset.train.leaves(),
        batch_size=config.train.batch_size,
    )
    histories: list[list[dict[str, float]]] = [[] for _ in members]
    examples = config.train.batch_size * len(members)
    num_steps = config.train.num_steps
    with (
        ProgressBar(0, num_steps, examples, is_shown=is_shown) as bar,
        interrupts.caught_interrupt() as stop,
    ):

        def log(step: int, values: Mapping[str, np.ndarray], finite: Any) -> None:
            del finite
            for k, history in enumerate(histories):
                row = {tag: float(of_members[k]) for tag, of_members in values.items()}
                history.append({"step": step} | row)
            bar.losses = [history[-1]["train/loss"] for history in histories]

        state = stages.fit(
            sweep.task,
            prepared,
            prepared.state,
            sweep.hyper,
            sweep.keys,
            num_steps=num_steps,
            batch_size=config.train.batch_size,
            data_seed=config.train.data_seed,
            events=loop.Events(
                log_every_steps=config.train.log_every_steps,
                log=log,
                progress=bar.update,
                is_stopping=lambda: bool(stop),
            ),
        )
    step = int(devices.first(state.step))
    if step < num_steps:
        _require_usable(sweep, step)
        warnings.warn(
            f"Ctrl-C has ended the training after {step:,} of {num_steps:,} steps: "
            "the model is the one of these steps",
            stacklevel=3,
        )
    layout = prepared.execution.layout
    params, finite = devices.gather((state.params, state.finite), layout)
    described = description.describe(sweep.dataset)
    first = build(config, described, None, members[0], step)
    return tuple(
        first._replace(  # they share the compiled functions
            params=jax.device_put(jax.tree.map(lambda leaf, k=k: leaf[k], params)),
            member=member,
            history=tuple(histories[k]),
            is_finite=bool(finite[k]),
        )
        for k, member in enumerate(members)
    )


def _require_usable(sweep: sweeps.Sweep, step: int) -> None:
    """Raises KeyboardInterrupt if parts of a model have taken no step by `step`."""
    start, stages = 0, ""
    if sweep.task.stages:
        last = sweep.task.stages[-1]
        start, stages = last.start, f" of its last stage ({last.name})"
    if step <= start:
        raise KeyboardInterrupt(
            f"nothing is returned: the training has ended after {step:,} steps, and "
            f"the model cannot be used before step {start + 1:,}{stages}"
        )


def _dataset(data: Mapping[str, Any], observed: Any, labels: Any) -> Dataset:
    """The arrays as a data set without a test split."""
    given = description.to_arrays(data)
    if labels is not None:
        given[description.LABELS] = np.asarray(labels)
    observed = given.pop(OBSERVED, None) if observed is None else observed
    own = {m: x for m, x in given.items() if description.is_modality(m)}
    masks = description.observed_masks(own, own, observed)
    for (name, x), mask in zip(own.items(), masks.T, strict=True):
        if x.dtype.kind in "UO" and x.ndim == 1:
            texts = description.texts_of(name, x, mask)
            words = tokens.build_vocabulary(texts)
            length = 1 + max(len(tokens.tokenize(text)) for text in texts)
            given[name] = tokens.encode(texts, words, length)
            given[f"{name}{description.WORDS}"] = np.array(words)
    split, vocabularies = arrays.to_split(given | {OBSERVED: masks})
    return Dataset(split, split, arrays.fingerprint(split), "arrays", vocabularies)


def _config(
    train: Split, network: str, likelihood: str | Mapping[str, str]
) -> ConfigDict:
    """The settings, with a network and a likelihood for the kind of each modality."""
    found = settings.get_config()
    found.data.name = "arrays"
    found.eval.metrics = ()
    found.modality.network = network
    if isinstance(likelihood, str):
        found.modality.likelihood = likelihood
        likelihood = {}
    likelihood = _mapping(likelihood, "likelihood")
    for name, choice in likelihood.items():
        if name not in train.modalities:
            raise ArgumentError(
                "{likelihood} names {!r}, and the data have {}",
                name,
                ", ".join(train.modalities),
            )
        found.modalities[name] = ConfigDict({"likelihood": choice})
    for name, x in train.modalities.items():
        if is_tokens(x) and not parts.has_counts(found, name):
            own = {"network": "mlp", "likelihood": likelihood.get(name, "categorical")}
            found.modalities[name] = ConfigDict(own)
    return found


def _set(
    config: ConfigDict,
    path: tuple[str, ...],
    value: Any,
    arguments: Collection[tuple[str, ...]] = (),
) -> None:
    """Sets a field, or the fields of a section; refuses those in `arguments`."""
    *sections, field = path
    shown = ".".join(path)
    at: Any = config
    for name in sections:
        if at is config.modalities and name not in at:
            at[name] = ConfigDict()
        at = at[name] if name in at else None
        if not isinstance(at, ConfigDict):
            raise UsageError(f"there is no setting {shown!r} (see settings.get_config)")
    if path in arguments:
        raise UsageError(f"config has {shown!r}: pass it to fit as an argument instead")
    if isinstance(value, Mapping) and isinstance(at.get(field), ConfigDict):
        for name, own in value.items():
            _set(config, (*path, str(name)), own, arguments)
        return
    is_open = path[0] == "modalities" or sections[-1:] in (
        ["network_options"],
        ["options"],
    )
    if field not in at and not is_open:
        raise UsageError(f"there is no setting {shown!r} (see settings.get_config)")
    try:
        with config.ignore_type() if is_open else contextlib.nullcontext():
            if value is None:
                raise TypeError
            at[field] = _plain(value)
    except TypeError:
        kind = type(at.get(field)).__name__
        raise UsageError(f"{shown} is of type {kind}, got {value!r}") from None


def _require_applied(config: ConfigDict, default: ConfigDict) -> None:
    """Refuses settings that `fit` does not apply and that differ from the default."""
    for section in config:
        for name in config[section]:
            field = f"{section}.{name}"
            instead = _NOT_APPLIED.get(field, _NOT_APPLIED.get(section))
            if instead and config[section][name] != default[section].get(name):
                raise UsageError(f"config has {field!r}, unused by fit: {instead}")


def _plain(value: Any) -> Any:
    """Converts a scalar of NumPy or JAX to a Python number."""
    return value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    """The value, which must be a mapping."""
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{{{name}}} must be a mapping, got {{!r}}", value)
    return value


def _values(value: Any) -> tuple:
    """One or several values as a tuple."""
    return tuple(_plain(x) for x in (value if np.ndim(value) else (value,)))
