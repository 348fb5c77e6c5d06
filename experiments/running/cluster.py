"""The runs of a plan as tasks of a Ray cluster: its queue, its retries, its dashboard.

    python -m experiments.figures --scale=paper --cluster=ray
    python -m experiments.figures --scale=paper --cluster=ray --address=HOST:6379

Without an address a cluster of this machine alone is started, and ended with the
command. All machines of a cluster see the checkout and its environment, the data and
the folder of the plan under the same paths: they are in a shared folder, and results
are collected by being written there. The extra `cluster` has Ray, which nothing
imports unless it is asked for.
"""

import contextlib
import importlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

from experiments.running import (
    build,
    command,
    datasets,
    evaluator,
    session,
    signals,
    terminal,
)
from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import checks
from mmvae_jax.training.sweep import grid

ROOT = Path(__file__).resolve().parents[2]
# How often a run is taken up again whose worker died; each time at its checkpoint.
_MAX_RETRIES = 10
_CPUS_PER_RUN = 1
# Nothing but configs and exit codes goes through Ray's own store.
_STORE_BYTES = 100 * 2**20
# A process that has compiled and evaluated, without data and parameters.
_PROCESS_BYTES = 2 * 2**30
# Parameters and Adam's two moments, float32; of the state in training, the one that
# is being saved, and what a step makes of it.
_BYTES_PER_PARAMETER = 3 * 4 * 3
# Data as they are read, and as they are trained on.
_COPIES_OF_DATA = 2
WAIT_SECONDS = 1.0


def train(directory: Path, configs: Mapping[str, Any], address: str = "") -> int:
    """Trains runs as tasks of a cluster and waits for them.

    First the data, classifiers and matchers of all runs are made, each by one task.
    A task that fails says so in one line, and the others go on. A signal stops the
    tasks, which save.

    Args:
      directory: where the runs' folders are; all machines see it.
      configs: folder of a run below `directory` -> its config.
      address: of a cluster to be joined, as `ray.init` takes it; "" starts one here.

    Returns:
      0, or 1 if a run failed, or 128 + n after signal n.

    Raises:
      UsageError: Ray is not installed, there is no cluster at that address, or data
        cannot be prepared.
    """
    if not configs:
        return 0
    with _connected(address) as ray, signals.caught_signals() as stop:
        start = time.perf_counter()
        needed = _prepare_all(ray, configs, stop)
        if stop:
            return 128 + stop[0]
        tasks = _start_all(ray, directory, configs, needed)
        done, failed = 0, len(configs) - len(tasks)
        for ref, name in _finished(ray, tasks, stop):
            try:
                code = ray.get(ref)
            except ray.exceptions.RayError as error:
                failed += 1
                if not stop:
                    terminal.say(_failure(name, error))
                continue
            if code > 1:  # it was interrupted there, by no signal that came here
                failed += 1
            else:  # 1: all members diverged, which is a result
                done += 1
                minutes = (time.perf_counter() - start) / 60
                terminal.say(
                    f"run {done} of {len(configs)} after {minutes:.1f} min: {name}"
                )
        if stop:
            terminal.say(
                f"{len(configs) - done} runs are not finished; the same command "
                "continues them"
            )
            return 128 + stop[0]
        if failed:
            terminal.say(
                f"{failed} of {len(configs)} runs failed; the same command tries them "
                "again, --notrain draws the finished runs"
            )
        return int(failed > 0)


def _prepare_all(
    ray: Any, configs: Mapping[str, Any], stop: signals.Signals
) -> dict[str, int]:
    """Makes the data, classifiers and matchers of all runs, a task a group of them.

    Returns:
      Folder of a run -> the memory that it needs, in bytes; without those whose task
      failed.
    """
    # Every task has a process of its own, which gives back what JAX holds.
    make = ray.remote(max_calls=1)(_prepare_runs)
    machine, folder = _machine(ray), os.getcwd()
    tasks = {}
    for group in groups(configs):
        name = f"preparing {next(iter(group))} and what is like it"
        ref = make.options(**machine, name=name).remote(folder, group)
        tasks[ref] = name
    terminal.say(f"preparing data and classifiers: {len(tasks)} tasks")
    needed: dict[str, int] = {}
    for ref, name in _finished(ray, tasks, stop):
        try:
            needed |= ray.get(ref)
        except UsageError:
            raise
        except ray.exceptions.RayError as error:
            if not stop:
                terminal.say(_failure(name, error))
    return needed


def _start_all(
    ray: Any, directory: Path, configs: Mapping[str, Any], needed: Mapping[str, int]
) -> dict[Any, str]:
    """Starts a task a run; `needed` is the memory of each, in bytes.

    Returns:
      Reference of a task -> folder of its run.
    """
    machine, folder = _machine(ray), os.getcwd()
    largest = max(node["Resources"].get("memory", 0.0) for node in _alive(ray))
    one_run = ray.remote(max_calls=1)(_train_run)
    tasks = {}
    for name, size in needed.items():
        # A run that no machine has room for gets one for itself.
        needs = {**machine, "memory": int(min(size, largest)), "name": name}
        task = one_run.options(**needs)
        tasks[task.remote(folder, configs[name], directory / name)] = name
    terminal.say(f"{len(tasks)} runs as tasks, {_described(machine)} each")
    return tasks


def groups(configs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs in groups that share data, classifiers and matchers."""
    found: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        data = config.data.to_dict() | {"use_modalities": 0}
        shared = [data, config.classifier.to_dict(), config.matcher.to_dict()]
        found.setdefault(json.dumps(shared, sort_keys=True), {})[name] = config
    return list(found.values())


@command.devices_found()
def _prepare_runs(folder: str, configs: Mapping[str, Any]) -> dict[str, int]:
    """Makes what the runs of a group share, in a task; what is there is left.

    Args:
      folder: that relative paths of the configs begin at.
      configs: name -> config of one of `groups`.

    Returns:
      name -> bytes of memory that the run needs, as estimated.

    Raises:
      UsageError: as `experiments.run.build`.
    """
    os.chdir(folder)
    sizes, made = {}, set()
    complete = datasets.load(next(iter(configs.values())).data)
    with signals.caught_signals() as stop:
        for name, config in configs.items():
            dataset = datasets.keep_modalities(complete, config.data)
            model = models.make_model(config, dataset.shapes())
            members = grid(config.sweep)
            num = parameter_overview.count_parameters(
                jax.eval_shape(model.init, jax.random.key(0))
            )
            bytes_of_data = sum(
                leaf.nbytes
                for split in (complete.train, complete.test)
                for leaf in split.leaves().values()
            )
            sizes[name] = (
                _PROCESS_BYTES
                + _COPIES_OF_DATA * bytes_of_data
                + _BYTES_PER_PARAMETER * num * len(members)
            )
            # Runs that ask for the same networks find them.
            asked = (tuple(config.eval.metrics), len(model.modalities) == 1)
            if asked in made:
                continue
            made.add(asked)
            checks.check(config)
            sweep = build.build(config)
            try:
                evaluator.get_judges(sweep, config.eval.metrics, stop)
            except command.Stopped as stopped:
                # No Exception, which is what Ray can hand over.
                raise RuntimeError(f"stopped by signal {stopped}") from None
    return sizes


@command.devices_found()
def _train_run(folder: str, config: Any, workdir: Path) -> int:
    """One run in a task: from its last checkpoint, if it has one.

    Args:
      folder: that relative paths of the config begin at.
      config: as of configs/base.py.
      workdir: folder of the run, absolute.

    Returns:
      The exit code of `experiments.run.train_and_evaluate`.

    Raises:
      UsageError: as `experiments.run.train_and_evaluate`.
    """
    os.chdir(folder)
    code = session.train_and_evaluate(config, workdir)
    if code == 128 + signal.SIGTERM:
        # The machine is being taken away, not the run: a death is retried elsewhere.
        os._exit(code)
    return code


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, as part of a cluster while the context lasts.

    Raises:
      UsageError: Ray is not installed, cannot be started here, or there is no cluster
        at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(
            "--cluster=ray needs Ray, which is in the extra `cluster`: "
            "make setup EXTRAS=cluster, or pip install '.[cluster]'"
        ) from error
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths)}
    if jax.config.jax_compilation_cache_dir:
        least = jax.config.jax_persistent_cache_min_compile_time_secs
        variables |= {
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(least),
        }
    own = {} if address else {"object_store_memory": _STORE_BYTES}
    try:
        context = ray.init(
            address=address or "local",
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level="warning",
            **own,
        )
    except Exception as error:  # Ray raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = "Ray cannot be started on this machine"
        if address:
            what = f"no Ray cluster at --address={address} lets this command in"
            if not os.environ.get("RAY_AUTH_MODE"):
                reason += "; if it has a token, set RAY_AUTH_MODE=token"
        raise UsageError(
            f"{what} ({reason}); without --cluster the runs are made here, one after "
            "another"
        ) from error
    try:
        total = ray.cluster_resources()
        url = context.dashboard_url
        terminal.say(
            f"Ray: nodes {len(_alive(ray))}, CPUs {total.get('CPU', 0):g}, "
            f"GPUs {total.get('GPU', 0):g}; dashboard: "
            + (f"http://{url}" if url else "none")
        )
        yield ray
    finally:
        ray.shutdown()


def _alive(ray: Any) -> list[dict]:
    """The machines of the cluster."""
    return [node for node in ray.nodes() if node["Alive"]]


def _machine(ray: Any) -> dict[str, Any]:
    """Resources that every task asks for, besides memory."""
    needs = {"num_cpus": _CPUS_PER_RUN, "max_retries": _MAX_RETRIES}
    if ray.cluster_resources().get("GPU", 0) >= 1:
        needs["num_gpus"] = 1
    return needs


def _described(machine: Mapping[str, Any]) -> str:
    """Resources that a task asks for, in words."""
    return "1 GPU" if "num_gpus" in machine else f"{_CPUS_PER_RUN} CPU"


def _finished(
    ray: Any, tasks: Mapping[Any, str], stop: list[int]
) -> Iterator[tuple[Any, str]]:
    """The tasks as they end, whichever way; a signal cancels what is left.

    A task that is cancelled is interrupted as from the keyboard, and saves.
    """
    left, is_cancelled = dict(tasks), False
    while left:
        ready, _ = ray.wait(list(left), num_returns=1, timeout=WAIT_SECONDS)
        for ref in ready:
            yield ref, left.pop(ref)
        if stop and not is_cancelled:
            is_cancelled = True
            for ref in left:
                ray.cancel(ref)


def _failure(name: str, error: Exception) -> str:
    """One line on a task that failed."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if isinstance(cause, UsageError):
        return f"failed: {name}: {text}"
    return f"failed: {name}: {type(cause).__name__}: {text}"
