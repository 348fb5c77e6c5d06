"""Checks of a config: one list of fields, rules and messages.

`CHECKS` need only the config and run before data are read; `CHECKS_WITH_DATA` run after
data are loaded and before training. A rule may be a function of mmvae_jax that checks
its own argument; its message then names the field of the config. Options of models
(`mmvae_jax.models.options`) and needs of metrics (`mmvae_jax.evaluation.needs`) have
their own tables.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from mmvae_jax import models
from mmvae_jax.data import batches, faults
from mmvae_jax.data.dataset import kind_of
from mmvae_jax.errors import ArgumentError, UsageError, fields_of
from mmvae_jax.evaluation import evaluate, needs, samplers
from mmvae_jax.evaluation.metrics import METRICS
from mmvae_jax.evaluation.metrics.log_likelihood import PROPOSALS
from mmvae_jax.mathematics import distributions
from mmvae_jax.models import parts
from mmvae_jax.networks import CLASSIFIERS
from mmvae_jax.training import devices, examples, mapping, schedules, sinks, step, sweep
from mmvae_jax.training.execution import matmul_precision
from mmvae_jax.types import PRIOR, MultimodalVAE


class Check(NamedTuple):
    """One rule for one field.

    Attributes:
      field: "section.name", below `config`.
      rule: value of the field -> whether it is valid; or a function that raises
        ArgumentError for an invalid value. In CHECKS_WITH_DATA it takes (value, Run).
      words: error message, with {} for the field and for the value.
      is_of_entries: whether the rule applies to each entry of a tuple.
    """

    field: str
    rule: Callable[..., Any]
    words: str = ""
    is_of_entries: bool = False


class Run(NamedTuple):
    """A run whose config is checked.

    Attributes:
      setting: config and data.
      model: the model of every member.
      task: the training of one member.
      num_members: K.
    """

    setting: needs.Setting
    model: MultimodalVAE
    task: step.Task
    num_members: int


def _at_least(least: int, *fields: str) -> list[Check]:
    """Checks that fields are at least a number."""
    words = f"{{}} must be >= {least}, got {{}}"
    return [Check(field, lambda value: value >= least, words) for field in fields]


def _one_of(field: str, choices: Iterable[str]) -> Check:
    """Check that a field is one of the choices."""
    words = f"unknown {{}} {{!r}}; choose one of {', '.join(choices)}"
    return Check(field, lambda value: value in choices, words)


def _number(field: str, rule: Callable[[Any], bool], bound: str) -> list[Check]:
    """Checks of a sweep's field: not empty, no repeated entry, only valid numbers."""
    return [
        Check(field, lambda values: len(values) > 0, _EMPTY),
        Check(field, lambda values: len(set(values)) == len(values), _REPEATED),
        Check(field, _is_number, "{} holds {!r}, not a number", is_of_entries=True),
        Check(field, rule, f"{{}} must be {bound}, got {{}}", is_of_entries=True),
    ]


def _is_rate(value: float) -> bool:
    """Whether a value is > 0 and finite."""
    return 0 < value < math.inf


def _is_number(value: Any) -> bool:
    """Whether a value is a real number; bool is excluded."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _require_seen(metric: str, run: Run) -> None:
    """Requires the test classes in the training data, for metrics that use them."""
    modalities = run.setting.dataset.train.modalities
    for kind, judge in (("labels", "classifiers"), ("attributes", "readers")):
        own = METRICS[metric].needs
        if kind in own:
            read = modalities if judge in own else ()
            faults.require_seen(run.setting.complete, kind, metric, read)


def _require_schedule(num_steps: int, run: Run) -> None:
    """Requires enough steps for a model's schedule and for all of its stages."""
    schedule = run.model.schedule
    if schedule is not None and schedule.num_steps >= num_steps:
        raise ArgumentError(
            "{num_steps}={} must be larger than the {} steps of the model's schedule "
            "({})",
            num_steps,
            schedule.num_steps,
            schedule.words,
        )
    for stage in run.task.stages:
        if not 0 <= stage.start < stage.end <= num_steps:
            raise ArgumentError(
                "{num_steps}={} leaves no step for the stage {!r}: set more steps",
                num_steps,
                stage.name,
            )


def _require_warmup(num_steps: int, run: Run) -> None:
    """Requires that a warm-up of beta ends in the first stage in which beta acts."""
    if num_steps == 0:
        return
    for stage, task in zip(run.model.stages, run.task.stages, strict=True):
        if not stage.has_beta:
            continue
        if not task.start < num_steps <= task.end:
            raise ArgumentError(
                "{beta_warmup_steps}={} must be in [{}, {}], the steps of the run in "
                "the stage {!r}, the first in which beta acts; 0 is no warm-up",
                num_steps,
                task.start + 1,
                task.end,
                task.name,
            )
        return


def _require_sampler(name: str, run: Run) -> None:
    """Requires a sampler that can be fitted and that some metric uses."""
    setting = run.setting
    metrics = setting.config.eval.metrics
    if metrics and not evaluate.measured(metrics, name):
        raise ArgumentError(
            "{sampler}={!r} changes none of {metrics}: add one of {}",
            name,
            ", ".join(evaluate.measured(METRICS, name)),
        )
    samplers.check(setting.config.eval, run.model, setting.dataset.train)


def factors_of(config: Any) -> schedules.Factors:
    """Schedules of beta and of the learning rate, from config.train.

    Raises:
      UsageError: an invalid field.
    """
    names = inspect.signature(schedules.make_factors).parameters
    with fields_of("config.train"):
        return schedules.make_factors(**{name: config.train[name] for name in names})


def _require_likelihoods(setting: needs.Setting) -> None:
    """Requires likelihoods that fit the types of the arrays."""
    for modality, x in setting.dataset.train.modalities.items():
        name = parts.options_of(setting.config, modality)["likelihood"]
        kinds = {"images": "uint8", "vectors": "float", "tokens": "int"}
        if line := distributions.misfit(name, modality, (kinds[kind_of(x)],)):
            raise UsageError(line)


_EMPTY = "{} is empty; give at least one value"
_REPEATED = "{} repeats a value: {}"
_PROBABILITY = "{} must be in [0, 1), got {}"
_RATE = "{} must be > 0 and finite, got {}"

CHECKS: tuple[Check, ...] = (
    *_number("sweep.beta", lambda value: 0 <= value < math.inf, ">= 0 and finite"),
    *_number("sweep.learning_rate", _is_rate, "> 0 and finite"),
    *_number(
        "sweep.seed",
        lambda value: 0 <= value < 2**32 and value == int(value),
        "an integer >= 0 and below 2**32",
    ),
    Check("data.missing", lambda value: 0 <= value < 1, _PROBABILITY),
    Check("data.missing_test", lambda value: 0 <= value < 1, _PROBABILITY),
    *_at_least(0, "data.seed"),
    *_at_least(1, "train.num_steps", "train.batch_size"),
    *_at_least(0, "train.data_seed"),
    Check("train.precision", lambda x: matmul_precision(x, jax.default_backend())),
    Check("train.clip_norm", lambda x: 0 <= x < math.inf, "{} must be >= 0, got {}"),
    *_at_least(1, "train.log_every_steps", "train.checkpoint_every_steps"),
    *_at_least(1, "train.checkpoints_kept"),
    *_at_least(0, "train.eval_every_steps", "train.steps_per_call"),
    *_at_least(0, "train.members_at_once"),
    Check("log.wandb", sinks.require_wandb),
    Check("log.mlflow", sinks.require_mlflow),
    _one_of("train.mapping", ("auto", *sweep.MAPPINGS)),
    _one_of("train.data_on", examples.PLACES),
    _one_of("classifier.network", CLASSIFIERS),
    *_at_least(1, "classifier.num_steps", "classifier.batch_size"),
    Check("classifier.learning_rate", _is_rate, _RATE),
    *_at_least(0, "classifier.seed"),
    _one_of("matcher.network", CLASSIFIERS),
    *_at_least(1, "matcher.feature_dim", "matcher.num_steps"),
    Check("matcher.learning_rate", _is_rate, _RATE),
    *_at_least(2, "matcher.batch_size"),
    *_at_least(0, "matcher.seed"),
    _one_of("eval.proposal", PROPOSALS),
    *_at_least(1, "eval.batch_size", "eval.importance_samples"),
    *_at_least(0, "eval.num_examples", "eval.seed"),
    _one_of("eval.sampler", (PRIOR, *samplers.SAMPLERS)),
    Check("eval.sampler_components", lambda sizes: len(sizes) > 0, _EMPTY),
    Check(
        "eval.sampler_components",
        lambda size: type(size) is int and size >= 1,
        "{} must be of whole numbers >= 1, got {!r}",
        is_of_entries=True,
    ),
    *_at_least(1, "eval.sampler_steps"),
)
CHECKS_WITH_DATA: tuple[Check, ...] = (
    Check("train.num_steps", _require_schedule),
    Check("train.beta_warmup_steps", _require_warmup),
    Check("modality.likelihood", lambda _, run: _require_likelihoods(run.setting)),
    Check(
        "train.batch_size",
        lambda size, run: batches.batch_indices(
            0, 0, 1, run.setting.dataset.train.num_examples, size
        ),
    ),
    Check(
        "train.precision",
        lambda precision, run: mapping.require_precision(
            precision, run.task.convolutions, jax.default_backend()
        ),
    ),
    Check(
        "train.mesh", lambda mesh, run: layout_of(run.setting.config, run.num_members)
    ),
    Check(
        "train.members_at_once",
        lambda at_once, run: mapping.require_chunks(
            at_once, run.num_members, layout_of(run.setting.config, run.num_members)
        ),
    ),
    Check("eval.metrics", _require_seen, is_of_entries=True),
    Check("eval.sampler", _require_sampler),
)


def check(config: Any) -> dict[str, Callable]:
    """Checks a config before data are loaded.

    Returns:
      The metrics of the config, from `evaluate.select_metrics`.

    Raises:
      UsageError: an invalid field, in one line.
    """
    models.check(config)
    _apply(CHECKS, config)
    factors_of(config)
    with fields_of("config.eval"):
        return evaluate.select_metrics(config.eval, config.data.data_dir)


def check_with_data(run: Run) -> list[str]:
    """Checks a config against its data, its model and the available devices.

    Returns:
      Lines to print, from `faults.notes` and `needs.check`.

    Raises:
      UsageError: an invalid field, invalid data, or a metric that cannot be computed.
    """
    config, dataset = run.setting.config, run.setting.dataset
    faults.require_observed(dataset)
    _apply(CHECKS_WITH_DATA, config, run)
    for modality, support in run.model.supports.items():
        with fields_of(f"config.modalities.{modality}"):
            faults.require_support(dataset, modality, support)
        if parts.takes_specials(config, modality):
            faults.require_specials(dataset, modality)
    with fields_of("config.eval"):
        return faults.notes(dataset) + needs.check(run.setting)


def applicable(run: Run) -> tuple[dict[str, Callable], list[str]]:
    """The metrics that can be computed for a run.

    Returns:
      (metrics, as `evaluate.select_metrics`; a line with the reason for each other
      metric).
    """
    found: dict[str, Callable] = {}
    lines = []
    for name in METRICS:
        config = run.setting.config.copy_and_resolve_references()
        config.eval.metrics = (name,)
        try:
            with fields_of("config.eval"):
                _require_seen(name, run)
                needs.check(run.setting._replace(config=config))
                found |= evaluate.select_metrics(config.eval, config.data.data_dir)
        except UsageError as error:
            lines.append(f"{name} cannot be computed: {error}")
    return found, lines


def layout_of(config: Any, num_members: int) -> devices.Layout:
    """Numbers of devices for the members and for a batch, from config.train.mesh."""
    return devices.choose_layout(
        tuple(config.train.mesh),
        num_members,
        config.train.batch_size,
        jax.device_count(),
        jax.process_count(),
    )


def _apply(checks: Iterable[Check], config: Any, *context: Any) -> None:
    """Raises UsageError at the first check that fails."""
    for one in checks:
        section, _, field = one.field.partition(".")
        if field not in config[section]:  # data sets have different fields
            continue
        value = config[section][field]
        value = tuple(value) if isinstance(value, list) else value
        with fields_of(f"config.{section}"):
            for item in value if one.is_of_entries else (value,):
                if one.rule(item, *context) is False:
                    raise UsageError(one.words.format(f"config.{one.field}", item))
