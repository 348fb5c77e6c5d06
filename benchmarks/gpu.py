"""Measures on a GPU, in one call of at most ten minutes, what matters most there.

python -m benchmarks.gpu --out DIR [--stages smoke,step,...] [--limit 570] [--tiny]
    [--models mopoe,mvtcae,...] [--digits_dir DIR] [--backgrounds_dir DIR]

Every stage is a process with a limit of its own, and at most what is left of --limit:
SIGTERM ends it, and SIGKILL some seconds later. DIR/gpu.json is written after each, so
that a call that is cut short leaves what was measured; DIR/logs has the output of each.
In order of value:

smoke       every metric; a run stopped and resumed, its last state compared to that of
            an unbroken one; some steps of other models and networks, and of data in
            host memory
step        a training step against MultiVae, if it can be imported
sweep       eight members in one program against eight single runs
published   300 epochs of PolyMNIST at beta = 2.5, with the published coherences; as
            many steps as `step` says that there is time for. A run that is cut is
            evaluated at its last checkpoint
rate, profile, evaluation, precision, step_others, growth
            the benchmarks of these names, while time is left

--tiny does all of it with a few steps, for a CPU. --digits_dir and --backgrounds_dir
are those of configs/polymnist.py.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tabulate import tabulate

from experiments.judging.paper import PUBLISHED_COHERENCE
from experiments.running import command, signals, workdirs
from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import trained
from mmvae_jax.training import checkpoints, log

ROOT = Path(__file__).resolve().parents[1]
# Seconds from SIGTERM to SIGKILL, in which a run saves its state.
GRACE = 15.0
# Seconds without which no stage begins.
LEAST = 15.0
# Seconds of a published run beside its steps, until one has been measured: start, data,
# compilation, classifiers and evaluation. And of the evaluation after a cut.
OVERHEAD, EVALUATION = 75.0, 60.0
EPOCH = 234  # steps
SLOWER = 5  # limits of --tiny: a CPU compiles for longer
MODELS = ("mopoe", "mvtcae", "mmvae", "mvae_plus")


class Plan(NamedTuple):
    """A call of this command.

    Attributes:
      folder: of all files.
      options: of the command line.
      deadline: by `time.monotonic`.
      report: content of gpu.json.
    """

    folder: Path
    options: argparse.Namespace
    deadline: float
    report: dict[str, Any]


class Stage(NamedTuple):
    """Commands that run at once.

    Attributes:
      group: what --stages names.
      name: for messages.
      limit: seconds.
      commands: (plan, seconds that it will have) -> name -> arguments of Python; or why
        there are none, "" if that need not be told.
      reserve: seconds that are left for the next stage.
      until: a file at whose appearance the commands get SIGTERM.
      environment: variables to change.
    """

    group: str
    name: str
    limit: float
    commands: Callable[[Plan, float], Mapping[str, list[str]] | str]
    reserve: float = 0.0
    until: Path | None = None
    environment: Mapping[str, str] = {}


def run(plan: Plan, stage: Stage) -> None:
    """Runs the commands of a stage in the time that is left, and notes their end."""
    limit = stage.limit * (SLOWER if plan.options.tiny else 1)
    limit = min(limit, plan.deadline - time.monotonic() - GRACE - stage.reserve)
    commands = stage.commands(plan, limit)
    if not commands:
        return
    if limit < LEAST:
        commands = "no time left"
    if isinstance(commands, str):
        plan.report["stages"].append({"name": stage.name, "left out": commands})
    else:
        plan.report["running"] = list(commands)
        write(plan)
        ends = _ends(plan, stage, commands, limit)
        for name, arguments in commands.items():
            plan.report["stages"].append(
                {
                    "name": name,
                    "command": _shown(plan, shlex.join(["python", *arguments])),
                }
                | {"limit": round(limit, 1)}
                | ends[name]
                | _found(plan, name, ends[name])
            )
        plan.report["running"] = []
    _forget_checkpoints(plan)
    write(plan)


def _ends(
    plan: Plan, stage: Stage, commands: Mapping[str, list[str]], limit: float
) -> dict[str, dict[str, Any]]:
    """Name -> exit code, seconds and what became of it, of commands run at once."""
    start, asked, is_cut = time.monotonic(), None, False
    ends: dict[str, dict[str, Any]] = {}
    with _started(plan, stage, commands) as processes:
        while len(ends) < len(processes):
            now = time.monotonic() - start
            left = {name: x for name, x in processes.items() if name not in ends}
            for name, process in left.items():
                code = process.poll()
                if code is not None:
                    wanted = 128 + signal.SIGTERM if stage.until else 0
                    is_wanted = code == wanted and not (stage.until and is_cut)
                    outcome = "finished" if is_wanted else "failed"
                    ends[name] = {
                        "outcome": "cut" if is_cut and code else outcome,
                        "exit_code": code,
                        "seconds": round(now, 1),
                    }
            is_due = now >= limit
            if asked is None and (is_due or (stage.until and stage.until.exists())):
                asked, is_cut = now, is_due
                _send(left.values(), signal.SIGTERM)
            if asked is not None and now >= asked + GRACE:
                is_cut = True
                _send(left.values(), signal.SIGKILL)
            time.sleep(0.02)
    return ends


@contextlib.contextmanager
def _started(
    plan: Plan, stage: Stage, commands: Mapping[str, list[str]]
) -> Iterator[dict[str, subprocess.Popen]]:
    """Processes of the commands; none is left afterwards."""
    processes: dict[str, subprocess.Popen] = {}
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **stage.environment}
    try:
        for name, arguments in commands.items():
            with open(_log(plan, name), "wb") as output:
                processes[name] = subprocess.Popen(
                    [sys.executable, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=environment,
                    process_group=0,  # with what it starts itself
                )
        yield processes
    finally:
        if any(process.poll() is None for process in processes.values()):
            _send(processes.values(), signal.SIGTERM)
            end = time.monotonic() + GRACE
            with contextlib.suppress(subprocess.TimeoutExpired):
                for process in processes.values():
                    process.wait(max(0, end - time.monotonic()))
        _send(processes.values(), signal.SIGKILL)
        for process in processes.values():
            process.wait()


def _send(processes: Any, number: int) -> None:
    """Sends a signal to processes and what they have started."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _log(plan: Plan, name: str) -> Path:
    """The output of a command."""
    return plan.folder / "logs" / f"{name}.log"


def _found(plan: Plan, name: str, ended: Mapping[str, Any]) -> dict[str, Any]:
    """The result file of a command, and the end of its log if it failed."""
    found: dict[str, Any] = {}
    for path in (f"{name}.json", f"runs/{name}/summary.json"):
        if (plan.folder / path).exists():
            found["result"] = path
    if found.get("result") == f"{name}.json":
        content = trained.read_json(plan.folder / f"{name}.json")
        told = ("command", "date", "machine", "versions")  # as of the whole report
        found["found"] = {x: y for x, y in content.items() if x not in told}
    if ended["outcome"] != "finished":
        text = _log(plan, name).read_text(errors="replace").replace("\r", "\n")
        lines = [line for line in text.splitlines() if line.strip()]
        found["end of the log"] = [_shown(plan, line) for line in lines[-12:]]
    return found


def _shown(plan: Plan, text: str) -> str:
    """A text without the paths of this machine."""
    text = text.replace(str(plan.folder), "DIR").replace(f"{ROOT}/", "")
    for name in ("digits_dir", "backgrounds_dir"):
        if folder := getattr(plan.options, name):
            text = text.replace(folder, name.upper())
    return text


def write(plan: Plan) -> None:
    """Writes what is known so far."""
    used = plan.options.limit - (plan.deadline - time.monotonic())
    plan.report["seconds"] = round(used, 1)
    plan.report["published"] = {
        model: found
        for model in plan.options.models
        if (found := _published(plan, model))
    }
    log.write_json(plan.folder / "gpu.json", plan.report)


def _run_folder(plan: Plan, name: str) -> Path:
    """Working directory of a run."""
    return plan.folder / "runs" / name


def _published(plan: Plan, model: str) -> dict[str, Any]:
    """Coherences given 1 to 4 modalities of a published run; {} without evaluation."""
    workdir = _run_folder(plan, f"published_{model}")
    if summary := workdirs.read_summary(workdir):
        step, values = summary["num_steps"], summary["members"][0]["metrics"]
        seconds = {x: summary[x] for x in ("step_seconds", "wall_seconds")}
    else:
        lines = log.read_metrics(workdir / "metrics.jsonl")
        lines = [line for line in lines if "eval/coherence/size_1" in line]
        if not lines:
            return {}
        step, values, seconds = lines[-1]["step"], lines[-1], {}
    sizes = [values.get(f"eval/coherence/size_{k}") for k in range(1, 5)]
    return {
        "num_steps": step,
        "epochs": round(step / EPOCH, 1),
        **seconds,
        "coherence given 1 to 4": sizes,
        "published, 300 epochs": PUBLISHED_COHERENCE[model],
    }


def _forget_checkpoints(plan: Plan) -> None:
    """Removes the checkpoints, 170 MB each, of published runs that are evaluated."""
    for model in plan.options.models:
        workdir = _run_folder(plan, f"published_{model}")
        if (workdir / "summary.json").exists():
            shutil.rmtree(workdir / "checkpoints", ignore_errors=True)


# The stages.


def step_seconds(plan: Plan, model: str) -> float | None:
    """Seconds of a step as the stage `step` measured it; None if it has not.

    Of a model that it does not measure, those of the slowest; if they are too few, the
    run is cut and evaluated.
    """
    path = plan.folder / "step.json"
    rows = trained.read_json(path)["rows"] if path.exists() else []
    found = {row["model"]: row["seconds"] for row in rows}
    return found.get(model, max(found.values(), default=None))


def overhead(plan: Plan) -> float:
    """Seconds of a published run beside its steps: of the latest one, or OVERHEAD."""
    found = [OVERHEAD]
    for record in plan.report["stages"]:
        name = record["name"]
        if name.startswith("published") and record.get("outcome") == "finished":
            summary = workdirs.read_summary(_run_folder(plan, name)) or {}
            if seconds := summary.get("step_seconds"):
                found.append(record["seconds"] - seconds * summary["num_steps"])
    return found[-1]


def num_steps(most: int, seconds: float | None, limit: float, overhead: float) -> int:
    """Steps of a run that are done within a limit.

    Args:
      most: steps of the published run.
      seconds: of a step; None: not known.
      limit: seconds of the run.
      overhead: seconds of the run beside its steps.
    """
    if seconds is None:
        return most
    return max(0, min(most, int((limit - overhead) / seconds)))


def train_published(plan: Plan, model: str, limit: float) -> Any:
    """Commands of a published run."""
    tiny = plan.options.tiny
    most = 20 if tiny else 300 * EPOCH
    num = num_steps(most, step_seconds(plan, model), limit, overhead(plan))
    if num == 0:
        return "no time left for its steps"
    name = f"published_{model}"
    data = {x: getattr(plan.options, x) for x in ("digits_dir", "backgrounds_dir")}
    small = ["--config.eval.num_examples=200", "--config.classifier.num_steps=50"]
    return {
        name: [
            *("-m", "experiments.run", f"--config=configs/polymnist.py:{model}"),
            f"--workdir={_run_folder(plan, name)}",
            f"--config.data.data_dir={plan.folder / 'data'}",
            *(f"--config.data.{x}={folder}" for x, folder in data.items() if folder),
            "--config.sweep.beta=(2.5,)",
            f"--config.train.num_steps={num}",
            f"--config.train.checkpoint_every_steps={num}",
            '--config.eval.metrics=("elbo","coherence","swd")',
            *(small if tiny else []),
        ]
    }


def evaluate_published(plan: Plan, model: str) -> Any:
    """Commands of the evaluation of a published run that was cut."""
    workdir = _run_folder(plan, f"published_{model}")
    is_saved = any((workdir / "checkpoints").glob("[0-9]*"))
    if (workdir / "summary.json").exists() or not is_saved:
        return ""
    flags = [f"--workdir={workdir}", '--config.eval.metrics=("coherence",)']
    return {
        f"published_{model}_evaluation": ["-m", "experiments.evaluate", *flags],
    }


def same_end(first: Path, second: Path) -> bool:
    """Whether two runs have saved the same bits in their last checkpoints."""
    ends = []
    for workdir in (first, second):
        config = trained.config_of(trained.read_json(workdir / trained.CONFIG), workdir)
        shown = trained.read_description(workdir / trained.DESCRIPTION)
        model = models.make_model(config, shown.shapes())
        like = trained.like_state(config, shown, model)
        step, state = checkpoints.read(workdir / "checkpoints", like) or (0, ())
        ends.append((step, [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]))
    print(f"steps {ends[0][0]} and {ends[1][0]}, {len(ends[0][1])} arrays")
    return ends[0] == ends[1]


def smoke_stages(folder: Path, tiny: bool) -> list[Stage]:
    """Whether all of it runs there, and a resumed run ends as an unbroken one."""

    def smoke(name: str, arg: str, *flags: str) -> list[str]:
        return [
            *("-m", "experiments.run", f"--config=configs/smoke.py:{arg}"),
            f"--workdir={folder / 'runs' / f'smoke_{name}'}",
            # Of their own, because several prepare them at once.
            f"--config.data.data_dir={folder / 'data' / f'smoke_{name}'}",
            *flags,
        ]

    # Many saves, so that a signal after the first one comes before the end.
    saved = 100 if tiny else 500
    long = (
        f"--config.train.num_steps={saved * 20}",
        f"--config.train.checkpoint_every_steps={saved}",
        f"--config.train.log_every_steps={saved}",
        "--config.train.eval_every_steps=0",
    )
    elbo = '--config.eval.metrics=("elbo",)'
    short = (
        *("--config.sweep.beta=(1.,)", "--config.train.num_steps=20"),
        *("--config.train.eval_every_steps=0", elbo),
    )
    broken = smoke("broken", "mopoe", *long, elbo)
    whole, other = (folder / "runs" / f"smoke_{x}" for x in ("whole", "broken"))
    compare = (
        "import sys; from pathlib import Path; from benchmarks import gpu; "
        "sys.exit(not gpu.same_end(*map(Path, sys.argv[1:])))"
    )
    compare_ends = ["-c", compare, str(whole), str(other)]
    at_once = {
        "smoke_whole": smoke("whole", "mopoe", *long, "--config.eval.metrics=all"),
        "smoke_jnf": smoke("jnf", "jnf", *short),
        "smoke_code_flow": smoke("code_flow", "code_flow", *short),
        "smoke_resnet": smoke("resnet", "mopoe,network=resnet", *short),
        "smoke_host": smoke("host", "mopoe", *short, "--config.train.data_on=host"),
    }
    # Several processes share the memory of the device.
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return [
        Stage("smoke", "smoke", 110, lambda plan, limit: at_once, environment=shared),
        Stage(
            "smoke",
            "smoke_stopped",
            40,
            lambda plan, limit: {"smoke_stopped": broken},
            until=other / "checkpoints" / str(saved),
        ),
        Stage(
            "smoke", "smoke_resumed", 40, lambda plan, limit: {"smoke_resumed": broken}
        ),
        Stage(
            "smoke",
            "smoke_same_end",
            30,
            lambda plan, limit: {"smoke_same_end": compare_ends},
            environment={"JAX_PLATFORMS": "cpu"},
        ),
    ]


def stages(folder: Path, chosen: tuple[str, ...], tiny: bool) -> list[Stage]:
    """All stages, in order of value.

    Args:
      folder: of all files.
      chosen: models of the published runs.
      tiny: whether they only show that they run.
    """

    def timed(name: str, limit: float, flags: str, tiny_flags: str, file: str = ""):
        given = [f"--out={folder / (file or name)}.json"]
        given += shlex.split(tiny_flags if tiny else flags)
        arguments = ["-m", f"benchmarks.{name}", *given]
        own = file or name
        return Stage(own, own, limit, lambda plan, limit: {own: arguments})

    few, plot = (
        "--steps 1 --turns 1",
        f"--plot={shlex.quote(str(folder / 'growth.png'))}",
    )
    eight = "--setting polymnist --members 8 --steps 200 --turns 3 --mappings auto"
    found = [
        *smoke_stages(folder, tiny),
        timed(
            "step",
            130,
            "--models mopoe mvtcae --turns 3 --steps 200",
            f"--models mopoe mvtcae {few}",
        ),
        timed("sweep", 90, eight, f"--members 2 {few} --mappings auto"),
    ]
    for model in chosen:
        found.append(
            Stage(
                "published",
                f"published_{model}",
                190,
                lambda plan, limit, model=model: train_published(plan, model, limit),
                reserve=EVALUATION,
            )
        )
        found.append(
            Stage(
                "published",
                f"published_{model}_evaluation",
                EVALUATION,
                lambda plan, limit, model=model: evaluate_published(plan, model),
            )
        )
    resnet = "--model mopoe,network=resnet"
    return [
        *found,
        timed("rate", 90, f"{resnet} --steps 50", f"--config smoke {resnet} {few}"),
        timed("profile", 60, "--form matmul --steps 100", "--steps 1"),
        timed(
            "evaluation", 90, "--examples 10000 --turns 1", "--examples 100 --turns 1"
        ),
        timed("precision", 90, "--steps 2000", "--steps 10 --seeds 2"),
        timed(
            "step",
            150,
            "--models mvae jmvae_kl crmvae --turns 3 --steps 200",
            f"--models mvae {few}",
            "step_others",
        ),
        timed(
            "growth", 180, f"--setting polymnist --steps 100 {plot}", f"{few} {plot}"
        ),
    ]


def name_device(plan: Plan) -> None:
    """Notes the device and the versions, which a process asks for.

    Raises:
      UsageError: JAX finds no GPU, and --tiny is not given.
    """
    path = plan.folder / "device.json"
    ask = (
        "import jax, sys; from pathlib import Path; from benchmarks import reports; "
        'reports.write(Path(sys.argv[1]), "gpu", [], backend=jax.default_backend())'
    )
    asked = ["-c", ask, str(path)]
    run(plan, Stage("", "device", 60, lambda plan, limit: {"device": asked}))
    found = trained.read_json(path) if path.exists() else {"backend": "none"}
    for name in ("date", "machine", "versions", "backend"):
        plan.report[name] = found.get(name)
    write(plan)
    if found["backend"] != "gpu" and not plan.options.tiny:
        raise UsageError(
            f"JAX finds no GPU here ({_log(plan, 'device')}); --tiny tries everything "
            "on a CPU"
        )


def measure(plan: Plan, table: list[Stage]) -> None:
    """Runs the chosen stages."""
    for stage in table:
        if stage.group in plan.options.stages:
            before = len(plan.report["stages"])
            run(plan, stage)
            for record in plan.report["stages"][before:]:
                outcome = record.get("outcome") or f"left out: {record['left out']}"
                seconds = f", {record['seconds']} s" if "seconds" in record else ""
                print(f"{record['name']}: {outcome}{seconds}", flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a command line."""
    groups = tuple(dict.fromkeys(x.group for x in stages(Path(), MODELS, True)))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
        def read(text: str) -> tuple[str, ...]:
            given = tuple(text.split(","))
            if unknown := [name for name in given if name not in known]:
                raise argparse.ArgumentTypeError(
                    f"unknown {unknown[0]!r}; choose of {', '.join(known)}"
                )
            return given

        return read

    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--stages", type=names(groups), default=groups)
    parser.add_argument("--models", type=names(MODELS), default=MODELS)
    parser.add_argument("--limit", type=float, default=570, help="seconds in all")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on a CPU")
    for name in ("digits_dir", "backgrounds_dir"):
        parser.add_argument(f"--{name}", default="", help="as config.data has it")
    return parser.parse_args(arguments)


def main() -> int:
    """Measures; 0 if all of it ran, 1 if a stage failed, 128 + n after signal n."""
    start = time.monotonic()
    options = parse()
    jax.config.update("jax_platforms", "cpu")  # the GPU belongs to the stages
    folder = options.out.expanduser().absolute()
    command.require_new("--out", folder)
    for name in ("digits_dir", "backgrounds_dir"):
        if given := getattr(options, name):
            setattr(options, name, str(Path(given).expanduser().absolute()))
            if not Path(given).expanduser().is_dir():
                raise UsageError(f"--{name} {given} is not a folder")
    (folder / "logs").mkdir(parents=True)
    tiny = " --tiny" if options.tiny else ""
    report = {
        "command": f"python -m benchmarks.gpu --stages {','.join(options.stages)} "
        f"--limit {options.limit:g}{tiny} --models {','.join(options.models)}",
        "limit": options.limit,
        "stages": [],
    }
    plan = Plan(folder, options, start + options.limit, report)
    with signals.caught_signals() as stop:
        try:
            with stop.at_once():
                name_device(plan)
                measure(plan, stages(folder, options.models, options.tiny))
        except command.Stopped as stopped:
            write(plan)
            print(f"what was measured is in {folder / 'gpu.json'}")
            return 128 + stopped.args[0]
    rows = [
        {"model": model, "epochs": x["epochs"]}
        | {f"given {k}": y for k, y in enumerate(x["coherence given 1 to 4"], 1)}
        for model, x in report["published"].items()
    ]
    if rows:
        print(tabulate(rows, headers="keys", floatfmt=".3f"))
    print(f"all results are in {folder / 'gpu.json'}")
    return int(any(x.get("outcome") == "failed" for x in report["stages"]))


if __name__ == "__main__":
    command.call(main)
