"""Evaluation of all members of a sweep."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.running import processes, signals, terminal
from experiments.running.command import Stopped
from mmvae_jax.errors import UsageError, first_line
from mmvae_jax.evaluation import evaluate, judges, needs, pictures, samplers
from mmvae_jax.evaluation.metric import EvaluationData, Failed, sampled
from mmvae_jax.evaluation.metrics import METRICS
from mmvae_jax.evaluation.samples import draw_samples
from mmvae_jax.interface import sweeps
from mmvae_jax.interface.progress import ProgressBar
from mmvae_jax.training import devices, loop
from mmvae_jax.training.step import TrainState
from mmvae_jax.types import PRIOR


def make_evaluator(
    sweep: sweeps.Sweep,
    metrics: dict[str, Callable],
    stop: signals.Signals,
    writer: Any,
    is_beside: bool = False,
) -> Callable:
    """A function (step, state) -> tag -> value of each member, which also writes them.

    With a fitted config.eval.sampler, its examples are evaluated in addition to those
    of the prior; with `is_beside`, only its examples.

    The values of a metric that raises an unexpected error are Failed; the others stay.
    """
    config = sweep.config
    by = list(dict.fromkeys((PRIOR, config.eval.sampler)))[is_beside:]
    model = evaluate.compile_model(sweep.model)
    given = EvaluationData(
        train=sweep.dataset.train,
        test=sweeps.evaluated(sweep.dataset, config.eval),
        classifiers=None,
        batch_size=config.eval.batch_size,
        words=sweep.dataset.words,
        whole_test=sweep.dataset.test,
        shown=sweep.dataset.shown,
    )
    trained: dict[str, Any] = {}  # judges, after the first evaluation

    def evaluate_all(step: int, state: TrainState) -> list[dict[str, float]]:
        if not trained:
            trained.update(get_judges(sweep, metrics, stop))
        data = given._replace(**trained)
        # The same random draws for all members reduce the noise of differences.
        key = jax.random.fold_in(jax.random.key(config.eval.seed), step)

        def evaluate_by(
            sampler: str, params: Any, announce: Callable, faults: list[str]
        ) -> tuple[dict[str, float], Callable[[], pictures.Samples] | None]:
            own = model
            if sampler != PRIOR:
                announce(f"fit of {sampler}")
                train = sweep.dataset.train
                own_key = evaluate.key_of("sampler", key)
                try:
                    own = samplers.fit(config.eval, model, params, train, own_key)
                except UsageError:
                    raise
                except Exception as error:
                    line = f"the fit of {sampler} failed ({_first_line(error)})"
                    faults.append(f"{line}: the values of its examples are nan")
                    names = evaluate.measured(metrics, sampler)
                    return _failed_by(sampler, names, line), None
            chosen = {
                name: partial(_computed, name, metric, faults)
                for name, metric in metrics.items()
            }
            values = evaluate.evaluate_member(chosen, own, params, data, key, announce)
            if writer is not None and writer.date:
                # Keep the pictures of the run's own evaluation.
                if sampler == PRIOR or step != config.train.num_steps:
                    return values, None
            return values, partial(draw_samples, own, params, data.test, key)

        def evaluate_one(params: Any, announce: Callable) -> Evaluated:
            found = Evaluated({}, {}, {}, ())
            for sampler in by:
                faults: list[str] = []
                values, draw = evaluate_by(sampler, params, announce, faults)
                found = found._replace(
                    values=found.values | values, faults=(*found.faults, *faults)
                )
                if draw is not None:
                    found = _with_samples(found, draw, data)
            return found

        name = f"evaluation at step {step}"
        num = sum(len(evaluate.measured(metrics, x)) + (x != PRIOR) for x in by)
        found = _evaluate_members(sweep, state, evaluate_one, num, name, stop)
        for fault in dict.fromkeys(line for one in found for line in one.faults):
            terminal.say(fault)
        if writer is not None:
            if sweep.model.draws_missing and not writer.date:
                terminal.say(
                    f"no latent traversals: {config.model.name} samples the latent "
                    "vectors of missing modalities, and has no dimension to traverse"
                )
            _write_evaluation(writer, step, found)
        return [one.values for one in found]

    def evaluator(step: int, state: TrainState) -> list[dict[str, float]]:
        with stop.at_once():
            return evaluate_all(step, state)

    return evaluator


class Evaluated(NamedTuple):
    """Results of the evaluation of a member.

    Attributes:
      values: tag -> value.
      grids: name -> uint8 [H, W, C], pictures of samples.
      captions: name of a file -> generated captions.
      faults: lines that say what is missing, and why.
    """

    values: dict[str, float]
    grids: dict[str, np.ndarray]
    captions: dict[str, str]
    faults: tuple[str, ...]


def _computed(
    name: str, metric: Callable, faults: list[str], *given: Any
) -> dict[str, float]:
    """The values of a metric; an unexpected error makes its main ones Failed.

    It must not lose the values of other metrics, after a long training. A line is added
    to `faults`.
    """
    try:
        return metric(*given)
    except UsageError:
        raise
    except Exception as error:
        line = f"metric {name!r} failed ({_first_line(error)})"
        faults.append(f"{line}: its values are nan")
        return dict.fromkeys(_main_tags(name), Failed(line))


def _failed_by(sampler: str, names: Iterable[str], reason: str) -> dict[str, float]:
    """The main values of metrics for a sampler that could not be fitted."""
    return {
        f"eval/{sampled(tag, sampler)}": Failed(reason)
        for name in names
        for tag in _main_tags(name)
        if METRICS[name].is_unconditional(tag)
    }


def _main_tags(name: str) -> list[str]:
    """The tags of a metric that are known without its values."""
    return [own.tag for own in METRICS[name].columns if "*" not in own.tag]


def _first_line(error: Exception) -> str:
    """Type and first line: a device without memory lists what takes it, on many."""
    kind, reason = type(error).__name__, first_line(error)
    return kind if reason == kind else f"{kind}: {reason}"


def _with_samples(
    found: Evaluated, draw: Callable[[], pictures.Samples], data: EvaluationData
) -> Evaluated:
    """Adds pictures and captions of the samples of `draw` to the results.

    An error in drawing must not lose results: it becomes one line of `faults`.
    """
    try:
        samples = draw()
        shown = (samples, data.test, data.words)
        grids = found.grids | pictures.draw_grids(*shown)
        text = pictures.write_captions(*shown)
    except Exception as error:
        reason = _first_line(error)
        fault = f"samples cannot be drawn and are left out ({reason})"
        return found._replace(faults=(*found.faults, fault))
    name = "captions" if samples.sampler == PRIOR else f"captions_{samples.sampler}"
    captions = found.captions | ({name: text} if text else {})
    return found._replace(grids=grids, captions=captions)


def _write_evaluation(writer: Any, step: int, found: Sequence[Evaluated]) -> None:
    """Writes values, and then pictures and captions, of all members."""
    writer.write_scalars(step, [one.values for one in found])
    for k, one in enumerate(found):
        writer.write_images(step, k, one.grids)
        if one.captions:
            writer.write_texts(step, k, one.captions)


def _evaluate_members(
    sweep: sweeps.Sweep,
    state: TrainState,
    evaluate_one: Callable,
    num_metrics: int,
    name: str,
    stop: signals.Signals,
) -> list[Evaluated]:
    """Evaluates each member on a device that has it, all devices in parallel.

    Args:
      sweep: the run.
      state: state of all members.
      evaluate_one: (params, announce: name of a metric -> None) -> Evaluated.
      num_metrics: number of calls of `announce` per member.
      name: label of the progress bar.
      stop: the signals received so far.

    Returns:
      The results of all members, including those of other processes.

    Raises:
      Stopped: a signal arrived in this or another process.
    """
    num, layout = len(sweep.members), sweep.execution.layout
    shares: dict[Any, list[int]] = {}  # device of this process -> members
    for k in range(num):
        device = devices.member_device(k, num, layout)
        if device is None or device.process_index == jax.process_index():
            shares.setdefault(device, []).append(k)
    total = sum(len(share) for share in shares.values()) * num_metrics
    own: dict[int, Evaluated] | None = {}
    with terminal.steps(total, name) as bar:

        def announce(metric: str) -> None:
            if stop:
                raise Stopped(stop[0])
            bar.set_postfix_str(metric)
            bar.update()

        def evaluate_share(device: Any) -> None:
            with jax.default_device(device):
                for k in shares[device]:
                    params = devices.member_on(state.params, k, device)
                    own[k] = evaluate_one(params, announce)

        try:
            if len(shares) == 1:
                evaluate_share(*shares)
            else:
                with ThreadPoolExecutor(len(shares)) as pool:
                    list(pool.map(evaluate_share, shares))
        except Stopped:
            own = None
    everyone = processes.exchange((own, stop[:1]))
    if any(part is None for part, _ in everyone):
        raise Stopped(next(itertools.chain(*(stop for _, stop in everyone))))
    found = {k: one for part, _ in everyone for k, one in part.items()}
    return [found[k] for k in range(num)]


def get_judges(
    sweep: sweeps.Sweep, metrics: Iterable[str], stop: signals.Signals
) -> dict[str, Any]:
    """Loads or trains the judges that metrics need.

    Returns:
      Fields of EvaluationData.

    Raises:
      Stopped: a signal arrived during training.
    """
    kinds = needs.needed_judges(metrics, sweep.dataset)

    @contextlib.contextmanager
    def watched(name: str, settings: Any) -> Iterator[loop.Events]:
        with ProgressBar(0, settings.num_steps, settings.batch_size, name) as bar:
            yield loop.Events(progress=bar.update, is_stopping=lambda: bool(stop))

    def find() -> dict[str, Any]:
        found = judges.get_judges(kinds, sweep.config, sweep.complete, watched)
        if found is None:
            raise Stopped(stop[0])
        return found

    return processes.run_first_then_others(find)
