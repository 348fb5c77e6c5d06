"""`fit`: training on arrays in memory, with the train loop of every run."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mmvae_jax import tokens
from mmvae_jax.data import arrays
from mmvae_jax.data.dataset import Dataset, Split, is_tokens, with_counts
from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.interface import checks, description, settings, sweeps
from mmvae_jax.interface.progress import ProgressBar
from mmvae_jax.interface.trained import Trained, build
from mmvae_jax.mathematics.distributions import LIKELIHOODS
from mmvae_jax.models import parts
from mmvae_jax.training import devices, loop, mapping, stages
from mmvae_jax.types import OBSERVED, AnyArray

Values = float | Sequence[float]


def fit(
    data: Mapping[str, Any],
    *,
    model: str = "mopoe",
    observed: AnyArray | None = None,
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

    Args:
      data: modality -> array, in the order of the M axis: images uint8 [N, H, W] or
        [N, H, W, C], vectors float [N, ...], counts int [N, F] (by their likelihood),
        tokens int [N, T] with their vocabulary "NAME_words", or captions, N strings.
      model: one of `models.MODELS`.
      observed: bool [N, M], what is there of each example; default: everything. The
        values of what is missing may be anything, NaN too.
      labels: int [N]; not used in training.
      latent_dim: D.
      num_steps: of Adam.
      batch_size: examples a step; all, where there are fewer.
      beta: weight of the KL terms; several values make a sweep, as do several of the
        two that follow: every combination is a member.
      learning_rate: of Adam.
      seed: of the initialisation and of all sampling.
      network: one of `networks.NETWORKS`, of what is not tokens.
      likelihood: of all that is not tokens, or modality -> likelihood; scales and
        weights are settings of `config`.
      options: of the model (`models.MODELS[model].options`).
      config: "section.field" -> value, other settings of `settings.get_config`, for
        instance {"modality.likelihood_scale": 0.1, "train.clip_norm": 1.0}.
      is_shown: whether a progress bar is shown.

    Returns:
      Trained; a tuple of them, one a member, where one of the swept values is a
      sequence.

    Raises:
      UsageError: a setting or an array that does not fit, before anything is trained;
        or all members have diverged.
    """
    dataset = _dataset(data, observed, labels)
    found = _config(dataset.train, network, likelihood, config)
    counts = [m for m in dataset.train.modalities if parts.has_counts(found, m)]
    dataset = with_counts(dataset, counts)
    found.model.update(name=model, latent_dim=latent_dim)
    settings.parse_arg(found, model)
    with found.ignore_type():
        found.model.options.update(options or {})
    found.sweep.update(
        beta=_values(beta), learning_rate=_values(learning_rate), seed=_values(seed)
    )
    found.train.update(
        num_steps=num_steps,
        batch_size=min(batch_size, dataset.train.num_examples),
        log_every_steps=max(1, num_steps // 100),
    )
    checks.check(found)
    sweep, _ = sweeps.build(found, dataset)
    trained = train(sweep, is_shown=is_shown)
    if not any(one.is_finite for one in trained):
        raise UsageError(
            "all members have diverged: lower learning_rate, set train.clip_norm, or "
            "scale the data"
        )
    is_sweep = any(not np.isscalar(x) for x in (beta, learning_rate, seed))
    return trained if is_sweep else trained[0]


def train(sweep: sweeps.Sweep, *, is_shown: bool = True) -> tuple[Trained, ...]:
    """Trains all members of a sweep in memory, and gives a Trained each."""
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
    with ProgressBar(0, config.train.num_steps, examples, is_shown=is_shown) as bar:

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
            num_steps=config.train.num_steps,
            batch_size=config.train.batch_size,
            data_seed=config.train.data_seed,
            events=loop.Events(
                log_every_steps=config.train.log_every_steps,
                log=log,
                progress=bar.update,
            ),
        )
    layout = prepared.execution.layout
    params, finite = devices.gather((state.params, state.finite), layout)
    described = description.describe(sweep.dataset)
    first = build(config, described, None, members[0], config.train.num_steps)
    return tuple(
        first._replace(  # they share the compiled functions
            params=jax.tree.map(lambda leaf, k=k: leaf[k], params),
            member=member,
            history=tuple(histories[k]),
            is_finite=bool(finite[k]),
        )
        for k, member in enumerate(members)
    )


def _dataset(data: Mapping[str, Any], observed: Any, labels: Any) -> Dataset:
    """The arrays as a data set without test examples of its own."""
    given = {name: np.asarray(x) for name, x in data.items()}
    for name, x in list(given.items()):
        if x.dtype.kind in "UO" and x.ndim == 1 and not name.endswith("_words"):
            texts = [str(text) for text in x]
            words = tokens.build_vocabulary(texts)
            length = 1 + max(len(tokens.tokenize(text)) for text in texts)
            given[name] = tokens.encode(texts, words, length)
            given[f"{name}_words"] = np.array(words)
    for name, x in ((OBSERVED, observed), (description.LABELS, labels)):
        if x is not None:
            given[name] = np.asarray(x)
    split, vocabularies = arrays.to_split(given)
    return Dataset(split, split, arrays.fingerprint(split), "arrays", vocabularies)


def _config(
    train: Split,
    network: str,
    likelihood: str | Mapping[str, str],
    changes: Mapping[str, Any] | None,
) -> ConfigDict:
    """The settings, with networks and likelihoods by the kind of each modality."""
    found = settings.get_config()
    found.data.name = "arrays"
    found.eval.metrics = ()
    found.modality.network = network
    if isinstance(likelihood, str):
        found.modality.likelihood = likelihood
        likelihood = {}
    default = found.modality.likelihood
    for name, x in train.modalities.items():
        own = {"likelihood": likelihood[name]} if name in likelihood else {}
        if is_tokens(x) and not _is_of_counts(own.get("likelihood", default)):
            own = {"network": "mlp", "likelihood": "categorical"} | own
        if own:
            found.modalities[name] = ConfigDict(own)
    for name in likelihood:
        if name not in train.modalities:
            raise ArgumentError(
                "{likelihood} names {!r}, and the data have {}",
                name,
                ", ".join(train.modalities),
            )
    for path, value in (changes or {}).items():
        _set(found, path, value)
    return found


def _is_of_counts(likelihood: str) -> bool:
    """Whether int arrays of a likelihood are counts, and not tokens."""
    return likelihood in LIKELIHOODS and LIKELIHOODS[likelihood].is_of_counts


def _set(config: ConfigDict, path: str, value: Any) -> None:
    """Sets one field, "section.field"."""
    *sections, field = path.split(".")
    at: Any = config
    for name in sections:
        at = at[name] if name in at else None
        if not isinstance(at, ConfigDict):
            raise UsageError(f"there is no setting {path!r} (see settings.get_config)")
    is_open = sections[-1:] in (["network_options"], ["modalities"], ["options"])
    if field not in at and not is_open:
        raise UsageError(f"there is no setting {path!r} (see settings.get_config)")
    with config.ignore_type():
        at[field] = value


def _values(value: Any) -> tuple:
    """One value, or several, as a tuple."""
    return (value,) if np.isscalar(value) else tuple(value)
