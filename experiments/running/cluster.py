"""The runs of a plan as tasks of a Ray cluster.

    python -m experiments.figures --scale=paper --cluster=ray
    python -m experiments.figures --scale=paper --cluster=ray --address=HOST:6379

Without an address, the command starts a cluster of this machine and ends it at exit.
All machines of a cluster must see the checkout with its environment, the data and the
folder of the plan under the same paths, in a shared folder; tasks write their results
there. Ray is in the extra `cluster` and is imported only if used.
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
from mmvae_jax.errors import UsageError, first_line
from mmvae_jax.interface import checks
from mmvae_jax.training.sweep import grid

ROOT = Path(__file__).resolve().parents[2]
# How often a run is resumed from its checkpoint after its worker died.
_MAX_RETRIES = 10
_CPUS_PER_RUN = 1
# Ray's object store holds only configs and exit codes.
_STORE_BYTES = 100 * 2**20
# Memory of a process after compilation and evaluation, without data and parameters.
_PROCESS_BYTES = 2 * 2**30
# Parameters and Adam's two moments, float32, three times: the current state, the state
# being saved, and the result of a step.
_BYTES_PER_PARAMETER = 3 * 4 * 3
# Data as read, and as used in training.
_COPIES_OF_DATA = 2
WAIT_SECONDS = 1.0


def train(directory: Path, configs: Mapping[str, Any], address: str = "") -> int:
    """Trains runs as tasks of a cluster and waits for them.

    First, tasks make the data, classifiers and matchers of all runs, each only once. A
    failed task prints one line, and the others continue. A signal stops the tasks,
    which save their state.

    Args:
      directory: parent of the runs' folders, visible on all machines.
      configs: folder of a run below `directory` -> its config.
      address: address of a cluster for `ray.init`; "" starts one here.

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
            if code > 1:  # interrupted on its machine, not by a signal here
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
    """Makes the data, classifiers and matchers of all runs, one task per group.

    Returns:
      Folder of a run -> memory that it needs, in bytes; without runs whose task failed.
    """
    # A separate process per task frees JAX's memory at the end.
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
    """Starts one task per run; `needed` is the memory of each in bytes.

    Returns:
      Reference of a task -> folder of its run.
    """
    machine, folder = _machine(ray), os.getcwd()
    largest = max(node["Resources"].get("memory", 0.0) for node in _alive(ray))
    one_run = ray.remote(max_calls=1)(_train_run)
    tasks = {}
    for name, size in needed.items():
        # A run that is too large for every machine gets a whole machine.
        needs = {**machine, "memory": int(min(size, largest)), "name": name}
        task = one_run.options(**needs)
        tasks[task.remote(folder, configs[name], directory / name)] = name
    terminal.say(f"{len(tasks)} runs as tasks, {_described(machine)} each")
    return tasks


def groups(configs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups the runs that share data, classifiers and matchers."""
    found: dict[str, dict[str, Any]] = {}
    for name, config in configs.items():
        data = config.data.to_dict() | {"use_modalities": 0}
        shared = [data, config.classifier.to_dict(), config.matcher.to_dict()]
        found.setdefault(json.dumps(shared, sort_keys=True), {})[name] = config
    return list(found.values())


@command.devices_found()
def _prepare_runs(folder: str, configs: Mapping[str, Any]) -> dict[str, int]:
    """Makes the missing data, classifiers and matchers of a group, in a task.

    Args:
      folder: folder for relative paths of the configs.
      configs: name -> config, one of `groups`.

    Returns:
      name -> estimated memory of the run in bytes.

    Raises:
      UsageError: from `build.build`.
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
            # Runs with the same needs reuse the networks.
            asked = (tuple(config.eval.metrics), len(model.modalities) == 1)
            if asked in made:
                continue
            made.add(asked)
            checks.check(config)
            sweep = build.build(config)
            try:
                evaluator.get_judges(sweep, config.eval.metrics, stop)
            except command.Stopped as stopped:
                # Ray can transfer only Exceptions, and Stopped is not one.
                raise RuntimeError(f"stopped by signal {stopped}") from None
    return sizes


@command.devices_found()
def _train_run(folder: str, config: Any, workdir: Path) -> int:
    """Trains one run in a task, from its last checkpoint if there is one.

    Args:
      folder: folder for relative paths of the config.
      config: as in configs/base.py.
      workdir: folder of the run, absolute.

    Returns:
      The exit code of `session.train_and_evaluate`.

    Raises:
      UsageError: from `session.train_and_evaluate`.
    """
    os.chdir(folder)
    code = session.train_and_evaluate(config, workdir)
    if code == 128 + signal.SIGTERM:
        # The machine is being removed: Ray retries a dead task elsewhere.
        os._exit(code)
    return code


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster within the context.

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
    except Exception as error:  # Ray raises many types
        reason = first_line(error)
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
    """Resources of every task, without memory."""
    needs = {"num_cpus": _CPUS_PER_RUN, "max_retries": _MAX_RETRIES}
    if ray.cluster_resources().get("GPU", 0) >= 1:
        needs["num_gpus"] = 1
    return needs


def _described(machine: Mapping[str, Any]) -> str:
    """Resources of a task as text."""
    return "1 GPU" if "num_gpus" in machine else f"{_CPUS_PER_RUN} CPU"


def _finished(
    ray: Any, tasks: Mapping[Any, str], stop: list[int]
) -> Iterator[tuple[Any, str]]:
    """Yields tasks as they end or fail; a signal cancels the others.

    A cancelled task gets a KeyboardInterrupt and saves.
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
    """One line on a failed task."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if isinstance(cause, UsageError):
        return f"failed: {name}: {text}"
    return f"failed: {name}: {type(cause).__name__}: {text}"
