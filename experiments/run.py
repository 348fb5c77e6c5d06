"""Trains and evaluates a sweep.

    python -m experiments.run --config=configs/translated_polymnist.py:mopoe \\
        --workdir=runs/tp --config.sweep.beta="(0.3,1.,3.)"

The same command again takes up an interrupted run where its last checkpoint is;
the result has the bits of a run without interruption. Several devices are used by
themselves; on several hosts, each runs this command (docs/scaling.md).
"""

import contextlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from clu import parameter_overview
from ml_collections import config_flags

from configs import base
from experiments import command, datasets, hosts, terminal, workdirs
from experiments.command import Stopped
from mmvae_jax import (
    checkpoints,
    data,
    evaluate,
    judges,
    meshes,
    models,
    needs,
    pictures,
    sweeps,
    train,
    tuning,
    writers,
)
from mmvae_jax.errors import UsageError
from mmvae_jax.metrics.metric import EvaluationData
from mmvae_jax.types import Hyper, MultimodalVAE, PRNGKey


class Signals(list):
    """The numbers of the signals received so far; not empty means stop.

    Attributes:
      is_at_once: whether a signal raises Stopped where it arrives.
    """

    is_at_once = False

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """For what may take long while there is nothing that is not saved.

        One of several processes waits for the moment when all of them stop.

        Raises:
          Stopped: a signal arrives, or has arrived.
        """
        self.is_at_once = jax.process_count() == 1
        try:
            if self and self.is_at_once:
                raise Stopped(self[0])
            yield
        finally:
            self.is_at_once = False


class Sweep(NamedTuple):
    """Everything a run is made of, before its first step.

    Attributes:
      config: as of configs/base.py.
      members: of the sweep.
      dataset: real data, in host memory, of the modalities that are used.
      complete: the same with all modalities: what classifiers are trained on, so
        that runs on different numbers of modalities share them.
      model: of every member.
      task: its training.
      hyper: fields [K].
      keys: key [K].
      execution: how members and steps are executed.
      stop: the signals received so far; not empty means stop.
      is_over: set once all members have diverged: nothing is left to train.
    """

    config: Any
    members: Sequence[sweeps.Member]
    dataset: data.Dataset
    complete: data.Dataset
    model: MultimodalVAE
    task: train.Task
    hyper: Hyper
    keys: PRNGKey
    execution: train.Execution
    stop: Signals
    is_over: threading.Event


def train_and_evaluate(config: Any, workdir: Path) -> int:
    """One run: data, training, evaluation, and everything it leaves in `workdir`.

    Args:
      config: as of configs/base.py.
      workdir: folder of the run; created, or taken up again.

    Returns:
      The exit code: 0, or 1 if all members diverged, or 128 + n after signal n.

    Raises:
      UsageError: a mistake in the config, the data or the working directory.
    """
    members = sweeps.grid(config.sweep)
    metrics = evaluate.select_metrics(config.eval, config.data.data_dir)
    check(config)
    with contextlib.ExitStack() as stack:
        hosts.first_does(lambda: stack.enter_context(workdirs.claimed(workdir, config)))
        summary = hosts.first_does(lambda: workdirs.read_summary(workdir))
        if summary is not None:
            terminal.say(f"{workdir} is finished; its results:")
        else:
            start = time.perf_counter()
            with caught_signals() as stop:
                try:
                    with stop.at_once():
                        sweep = build(config, members, stop)
                        hosts.first_does(lambda: workdirs.record(workdir, config))
                        prepared = prepare_program(sweep, workdir)
                        sweep = sweep._replace(execution=prepared.execution)
                    results, finite = run(sweep, prepared, metrics, workdir)
                    seconds = time.perf_counter() - start
                    summary = summarise(sweep, results, finite, seconds)
                    write = partial(
                        writers.write_json, workdir / "summary.json", summary
                    )
                    hosts.first_does(write)
                    for number in stop[:1]:  # while it was written
                        raise Stopped(number)
                except Stopped as stopped:
                    (number,) = stopped.args
                    name = signal.Signals(number).name
                    terminal.say(f"{name}: saved; the same command continues this run")
                    return 128 + number
        terminal.print_table(summary)
        terminal.say(f"metrics, samples and checkpoints are in {workdir}")
        return 0 if any(member["finite"] for member in summary["members"]) else 1


def check(config: Any) -> None:
    """Checks what the types of the fields do not say, before data are prepared.

    Raises:
      UsageError: an unknown model, or a number out of its range.
    """
    models.check(config)
    least = {
        "train": {
            "num_steps": 1,
            "batch_size": 1,
            "data_seed": 0,
            "log_every_steps": 1,
            "eval_every_steps": 0,
            "checkpoint_every_steps": 1,
            "checkpoints_kept": 1,
            "steps_per_call": 0,
            "members_at_once": 0,
        },
        "classifier": {"num_steps": 1, "batch_size": 1, "seed": 0},
        "matcher": {"feature_dim": 1, "num_steps": 1, "batch_size": 2, "seed": 0},
        "eval": {
            "batch_size": 1,
            "num_examples": 0,
            "importance_samples": 1,
            "seed": 0,
        },
    }
    train.matmul_precision(config.train.precision, jax.default_backend())
    if config.data.get("seed", 0) < 0:
        raise UsageError(f"config.data.seed must be >= 0, got {config.data.seed}")
    clip_norm = config.train.clip_norm
    if not 0 <= clip_norm < math.inf:
        raise UsageError(f"config.train.clip_norm must be >= 0, got {clip_norm}")
    for section, fields in least.items():
        for field, bound in fields.items():
            if config[section][field] < bound:
                raise UsageError(
                    f"config.{section}.{field} must be >= {bound}, "
                    f"got {config[section][field]}"
                )


def build(config: Any, members: Sequence[sweeps.Member], stop: Signals) -> Sweep:
    """Loads (and if need be prepares) the data and builds the model."""
    complete = hosts.in_turn(lambda: datasets.load(config.data))
    dataset = datasets.reduce(complete, config.data)
    for line in needs.check(
        needs.Setting(config, dataset, complete, evaluated(dataset, config.eval))
    ):
        terminal.say(line)
    data.batch_indices(0, 0, 1, dataset.train.num_examples, config.train.batch_size)
    model = models.make_model(config, dataset.shapes())
    task = train.vae_task(model, config.train.clip_norm)
    hyper = sweeps.stack_hyper(members)
    execution = tuning.choose_execution(
        config.train.mapping,
        config.train.steps_per_call,
        task.convolutions,
        jax.default_backend(),
    )
    tuning.require_precision(
        config.train.precision, task.convolutions, jax.default_backend()
    )
    num_devices = jax.device_count()
    layout = meshes.choose_layout(
        tuple(config.train.mesh),
        len(members),
        config.train.batch_size,
        num_devices,
        jax.process_count(),
    )
    at_once, on_device = config.train.members_at_once, len(members) // layout[0]
    if at_once and on_device % at_once:
        raise UsageError(
            f"config.train.members_at_once={at_once} must divide the {on_device} "
            "members of a device evenly"
        )
    execution = execution._replace(
        precision=config.train.precision, layout=layout, members_at_once=at_once
    )
    size = parameter_overview.count_parameters(
        jax.eval_shape(model.init, jax.random.key(0))
    )
    terminal.say(
        f"{config.model.name} on {dataset.name}: {dataset.train.num_examples} "
        f"examples, {len(model.modalities)} modalities, {size:,} parameters, "
        f"{len(members)} members on {device_name(layout)}, mapped by "
        f"{execution.mapping}, up to {execution.steps_per_call} steps a call"
    )
    return Sweep(
        config=config,
        members=members,
        dataset=dataset,
        complete=complete,
        model=model,
        task=task,
        hyper=hyper,
        keys=sweeps.stack_keys(members),
        execution=execution,
        stop=stop,
        is_over=threading.Event(),
    )


def device_name(layout: meshes.Layout) -> str:
    """What a run runs on: "cpu", or "4 devices: 4 x 1 (cpu)"."""
    kind = jax.devices()[0].device_kind
    if jax.device_count() == 1:
        return kind
    return f"{meshes.describe(layout, jax.device_count())} ({kind})"


def prepare_program(sweep: Sweep, workdir: Path) -> tuning.Prepared:
    """The program of a run and its first states; says what is not by the rule.

    Raises:
      UsageError: the members do not fit the memory of a device.
    """
    execution = sweep.execution
    device = jax.devices()[0].device_kind
    mapping = workdirs.earlier_mapping(workdir, device, execution.layout)
    if mapping not in (None, execution.mapping):
        execution = execution._replace(mapping=mapping)
        terminal.say(f"mapped by {mapping}, as execution.json of this run has it")
    prepared = tuning.prepare(
        sweep.task,
        execution,
        sweep.hyper,
        sweep.keys,
        sweep.dataset.train.leaves(),
        batch_size=sweep.config.train.batch_size,
    )
    if prepared.execution.members_at_once != execution.members_at_once:
        terminal.say(
            f"the memory of the device holds {prepared.execution.members_at_once} "
            "members at once: they are trained in such chunks"
        )
    return prepared


def run(
    sweep: Sweep,
    prepared: tuning.Prepared,
    metrics: dict[str, Callable],
    workdir: Path,
) -> tuple[list[dict[str, float]], np.ndarray]:
    """Trains from the last checkpoint, or from the start, and evaluates.

    Returns:
      (tag -> value of every member at the last step, finite bool [K]).

    Raises:
      Stopped: a signal arrived.
    """
    settings, layout = sweep.config.train, sweep.execution.layout
    state = prepared.state
    with contextlib.ExitStack() as stack:
        num_kept = settings.checkpoints_kept
        saved = checkpoints.open_checkpoints(workdir / "checkpoints", num_kept)
        stack.callback(checkpoints.close, saved)
        step = 0
        restored = checkpoints.restore(saved, state, num_kept)
        if restored is not None:
            step, state = restored
            terminal.say(f"resuming {workdir} at step {step}")
        writer = None
        if hosts.is_first():
            writer = writers.RunWriter(workdir, sweep.members, step)
            stack.callback(writer.close)
            if step == 0:
                writer.write_hparams(sweep.config.to_dict())
        evaluator = make_evaluator(sweep, metrics, writer)
        finite = np.array(meshes.gather(state.finite, layout))
        is_due = settings.eval_every_steps and step % settings.eval_every_steps == 0
        if 0 < step < settings.num_steps and is_due:
            evaluator(step, state)
        bar = stack.enter_context(
            terminal.ProgressBar(
                step, settings.num_steps, settings.batch_size * len(sweep.members)
            )
        )
        state = train.fit(
            prepared.program,
            state,
            sweep.hyper,
            sweep.keys,
            prepared.data,
            num_steps=settings.num_steps,
            batch_size=settings.batch_size,
            data_seed=settings.data_seed,
            execution=sweep.execution,
            events=make_events(sweep, writer, bar, saved, evaluator, finite),
        )
        bar.close()
        step = int(meshes.first(state.step))
        checkpoints.save(saved, step, state)
        for number in itertools.chain(*hosts.exchange(sweep.stop[:1])):
            raise Stopped(number)
        results = evaluator(step, state)
        return results, np.asarray(meshes.gather(state.finite, layout))


def make_events(
    sweep: Sweep, writer, bar, saved, evaluator, finite: np.ndarray
) -> train.Events:
    """What the train loop calls: the log, the progress bar, checkpoints, metrics.

    `writer` is None in all processes but the first; `finite`, bool [K], is False for
    members that an earlier start has reported.
    """
    reported = set(np.flatnonzero(~finite).tolist())
    if not finite.any():
        sweep.is_over.set()

    def log(step: int, metrics: dict, finite: np.ndarray) -> None:
        scalars = [
            {tag: float(values[k]) for tag, values in metrics.items()}
            | {"train/finite": bool(finite[k])}
            for k in range(len(sweep.members))
        ]
        if writer is not None:
            writer.write_scalars(step, scalars)
        bar.losses = [values["train/loss"] for values in scalars]
        for k in np.flatnonzero(~finite):
            if k not in reported:
                reported.add(int(k))
                name = writers.member_name(sweep.members[k], sweep.members)
                terminal.say(
                    f"member {k} ({name}) has diverged by step {step}: its last finite "
                    "parameters are kept, the other members go on"
                )
        if not finite.any() and not sweep.is_over.is_set():
            sweep.is_over.set()
            terminal.say(f"all members have diverged by step {step}: training ends")

    settings = sweep.config.train

    def evaluate_between(step: int, state: train.TrainState) -> None:
        # Stopped within an evaluation: the loop ends by itself, and what it has
        # reached is saved. The evaluation is taken up by the resumed run.
        if step < settings.num_steps:
            checkpoints.save(saved, step, state)  # an evaluation may take long
            with contextlib.suppress(Stopped):
                evaluator(step, state)

    return train.Events(
        log_every_steps=settings.log_every_steps,
        log=log,
        eval_every_steps=settings.eval_every_steps,
        evaluate=evaluate_between,
        save_every_steps=settings.checkpoint_every_steps,
        save=lambda step, state: checkpoints.save(saved, step, state),
        progress=bar.update,
        is_stopping=lambda: bool(sweep.stop) or sweep.is_over.is_set(),
    )


def make_evaluator(sweep: Sweep, metrics: dict[str, Callable], writer) -> Callable:
    """A function (step, state) -> tag -> value of every member, also written."""
    config = sweep.config
    model = evaluate.compile_model(sweep.model)
    given = EvaluationData(
        train=sweep.dataset.train,
        test=evaluated(sweep.dataset, config.eval),
        classifiers=None,
        batch_size=config.eval.batch_size,
        words=sweep.dataset.words,
        whole_test=sweep.dataset.test,
    )
    trained: dict[str, Any] = {}  # judges, once there are any

    def evaluate_all(step: int, state: train.TrainState) -> list[dict[str, float]]:
        if not trained:
            trained.update(get_judges(sweep, metrics))
        data = given._replace(**trained)
        # The same draws for every member: differences are theirs alone.
        key = jax.random.fold_in(jax.random.key(config.eval.seed), step)

        def evaluate_one(params: Any, announce: Callable) -> Evaluated:
            values = evaluate.evaluate_member(
                metrics, model, params, data, key, announce
            )
            samples = evaluate.draw_samples(model, params, data.test, key)
            shown = (samples, data.test, data.words)
            return Evaluated(
                values, pictures.draw_grids(*shown), pictures.write_captions(*shown)
            )

        name = f"evaluation at step {step}"
        found = evaluate_members(sweep, state, evaluate_one, len(metrics), name)
        if writer is not None:
            write_evaluation(writer, step, found)
        return [one.values for one in found]

    def evaluator(step: int, state: train.TrainState) -> list[dict[str, float]]:
        with sweep.stop.at_once():
            return evaluate_all(step, state)

    return evaluator


def evaluated(dataset: data.Dataset, config: Any) -> data.Split:
    """The test examples that are evaluated; `config` is the field `eval`."""
    return evaluate.random_examples(dataset.test, config.num_examples, config.seed)


class Evaluated(NamedTuple):
    """Results of the evaluation of a member.

    Attributes:
      values: tag -> value.
      grids: name -> uint8 [H, W, C], pictures of samples.
      captions: samples in words; "" if there are none.
    """

    values: dict[str, float]
    grids: dict[str, np.ndarray]
    captions: str


def write_evaluation(writer: Any, step: int, found: Sequence[Evaluated]) -> None:
    """Writes pictures, captions and values of all members."""
    for k, one in enumerate(found):
        writer.write_images(step, k, one.grids)
        if one.captions:
            writer.write_texts(step, k, {"captions": one.captions})
    writer.write_scalars(step, [one.values for one in found])


def evaluate_members(
    sweep: Sweep,
    state: train.TrainState,
    evaluate_one: Callable,
    num_metrics: int,
    name: str,
) -> list[Evaluated]:
    """Evaluates every member on one device that holds it, all devices at a time.

    Args:
      sweep: the run.
      state: of all members.
      evaluate_one: (params, announce: name of a metric -> None) -> Evaluated.
      num_metrics: how often it announces one.
      name: of the progress bar.

    Returns:
      The results of all members, also of those in other processes.

    Raises:
      Stopped: a signal arrived, here or there.
    """
    num, layout = len(sweep.members), sweep.execution.layout
    shares: dict[Any, list[int]] = {}  # device of this process -> members
    for k in range(num):
        device = meshes.member_device(k, num, layout)
        if device is None or device.process_index == jax.process_index():
            shares.setdefault(device, []).append(k)
    total = sum(len(share) for share in shares.values()) * num_metrics
    own: dict[int, Evaluated] | None = {}
    with terminal.steps(total, name) as bar:

        def announce(metric: str) -> None:
            if sweep.stop:
                raise Stopped(sweep.stop[0])
            bar.set_postfix_str(metric)
            bar.update()

        def evaluate_share(device: Any) -> None:
            with jax.default_device(device):
                for k in shares[device]:
                    params = meshes.member_on(state.params, k, device)
                    own[k] = evaluate_one(params, announce)

        try:
            if len(shares) == 1:
                evaluate_share(*shares)
            else:
                with ThreadPoolExecutor(len(shares)) as pool:
                    list(pool.map(evaluate_share, shares))
        except Stopped:
            own = None
    everyone = hosts.exchange((own, sweep.stop[:1]))
    if any(part is None for part, _ in everyone):
        raise Stopped(next(itertools.chain(*(stop for _, stop in everyone))))
    found = {k: one for part, _ in everyone for k, one in part.items()}
    return [found[k] for k in range(num)]


def get_judges(sweep: Sweep, metrics: Iterable[str]) -> dict[str, Any]:
    """The judges that metrics need, found beside the data or trained.

    Returns:
      Fields of EvaluationData.

    Raises:
      Stopped: a signal arrived while they were trained.
    """
    kinds = needs.needed_judges(metrics, sweep.dataset)

    @contextlib.contextmanager
    def watched(name: str, settings: Any) -> Iterator[train.Events]:
        with terminal.ProgressBar(
            0, settings.num_steps, settings.batch_size, name
        ) as bar:
            yield train.Events(
                progress=bar.update, is_stopping=lambda: bool(sweep.stop)
            )

    def find() -> dict[str, Any]:
        found = judges.get_judges(kinds, sweep.config, sweep.complete, watched)
        if found is None:
            raise Stopped(sweep.stop[0])
        return found

    return hosts.in_turn(find)


def summarise(
    sweep: Sweep, results: list[dict], finite: np.ndarray, seconds: float
) -> dict:
    """The content of summary.json."""
    return {
        "model": sweep.config.model.name,
        "dataset": sweep.dataset.name,
        "num_steps": sweep.config.train.num_steps,
        "wall_seconds": round(seconds, 1),
        "device": jax.devices()[0].device_kind,
        "cpu_cores": os.cpu_count(),
        "execution": sweep.execution._asdict(),
        "members": [
            {**member._asdict(), "finite": bool(is_finite), "metrics": values}
            for member, is_finite, values in zip(
                sweep.members, finite, results, strict=True
            )
        ],
    }


@contextlib.contextmanager
def caught_signals() -> Iterator[Signals]:
    """Collects SIGINT and SIGTERM in the list given; a second one ends at once."""
    received = Signals()

    def handle(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        # A signal may come while a line is printed, and two at a time cannot be.
        with contextlib.suppress(RuntimeError):
            terminal.say(f"{signal.Signals(number).name}: saving, then stopping")
        if received.is_at_once:
            raise Stopped(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main() -> int:
    """Reads the flags and runs."""
    given = flags.FLAGS
    config = given.config
    command.require_fields(config, base.get_config())
    name = Path(config_flags.get_config_filename(given["config"])).stem
    workdir = given.workdir or f"runs/{name}_{config.model.name}"
    hosts.connect(
        given.distributed, given.coordinator, given.num_processes, given.process_id
    )
    try:
        with hosts.one_voice():
            return train_and_evaluate(config, Path(workdir).expanduser().absolute())
    except jax.errors.JaxRuntimeError as error:
        hosts.end_after_a_loss(error)


if __name__ == "__main__":
    command.define_config("configs/polymnist.py")
    flags.DEFINE_string("workdir", "", "folder of the run; default: under runs/")
    hosts.define_flags()
    command.run(main)
