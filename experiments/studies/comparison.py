"""Comparisons of models on the same data: the tables of docs/better.md.

    python -m experiments.studies.comparison --study=in_place --out=results/in_place.csv

Trains and evaluates missing runs, and writes one line per run: means and standard
deviations over seeds. A study is a function in this file that lists its runs:

layered     a contrastive code against coordination on translated digits, with and
            without a layered decoder; equal steps, and equal parameters within 4 %
in_place    all models with convolutional networks and the number of steps of
            `code_flow`
translated  the same on translated digits
times       seconds of a training step of each model of `in_place`: short runs, to be
            made on an idle machine

In `in_place` and `translated`, MoPoE-VAE selects the networks of all models but those
with a shared vector beside private ones, which select their own, and each model selects
its beta. The criterion is the leave-one-out coherence on held-out training digits
(config.data.validation) after a quarter of the steps; for unimodal VAEs, which generate
nothing given other modalities, it is the SWD of prior samples. `--runs` selects some
runs, for several processes. `--known=results/in_place.csv` takes the lines of an
earlier table as they are: it trains the other models only, with the networks of that
table.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from configs import polydigits
from experiments.plans import plan
from experiments.running import command, session, workdirs
from experiments.studies import tables
from mmvae_jax.errors import UsageError

_METRICS = ("elbo", "coherence", "frechet", "swd", "log_likelihood")
COLUMNS = (
    "coherence/leave_one_out",
    "coherence/size_1",
    "coherence/joint",
    "swd",
    "frechet_classifier",
    "elbo",
    "log_likelihood",
)
# Two encoders per modality: fewer hidden units, for an equal number of parameters.
_CONTRASTIVE = {
    "model.latent_dim": 16,
    "model.options.private_dim": 8,
    "modality.network_options.widths": (96,),
    "sweep.beta": (1.0,),
}
_LAYERED = {"modality.network": "layered"}
# Run -> changes to the config of its model, which is the first word of the name.
_CHANGES = {
    "contrastive_layered": _CONTRASTIVE | _LAYERED,
    "contrastive_layered_no_consistency": _CONTRASTIVE
    | _LAYERED
    | {"model.options.consistency": 0.0},
    "crmvae_layered": _LAYERED,
    "mmvm_layered": _LAYERED,
    "mopoe_layered": _LAYERED,
    "mvae_layered": _LAYERED,
    "contrastive": _CONTRASTIVE,
    "contrastive_no_consistency": _CONTRASTIVE | {"model.options.consistency": 0.0},
    "crmvae": {},
    "mmvm": {},
}

_NUM_STEPS = 5_000
# The first one selects the networks of all.
_BASELINES = (
    "mopoe",
    "mvtcae",
    "crmvae",
    "mmvae",
    "contrastive",
    "mvae",
    "mmvae_plus",
    "mmvm",
    "latent_flow",
    *("telbo", "jmvae_kl", "mvae_plus", "dmvae", "mmjsd", "jnf", "unimodal"),
)
_NETWORKS: dict[str, dict[str, Any]] = {
    "spatial": {},
    "conv": {"channels": (32, 64)},  # equal channels, and a dense layer to the latents
}
_JUDGING = (
    *("elbo", "coherence", "matching", "second_judge", "frechet", "swd"),
    *("conditional_swd", "conditional_frechet", "precision_recall", "cost"),
)
_BETAS = (0.1, 0.5, 2.5)
_SEEDS = (0, 1, 2)
# A tag, and which of its values is the best.
_CRITERION = ("eval/coherence/leave_one_out", max)
_CRITERIA = {"unimodal": ("eval/swd", min)}
# Each modality is decoded from 96 latent dimensions in total.
_PRIVATE = {
    "mmvae_plus": (48, {"private_dim": 48, "num_samples": 1, "estimator": "iwae"}),
    "contrastive": (16, {"private_dim": 80, "code_network": "auto"}),
    "dmvae": (48, {"private_dim": 48}),
    "unimodal": (5 * 96, {}),
}
# A spatial network has only some of the shared dimensions at each place.
_OWN_NETWORKS = ("mmvae_plus", "contrastive", "dmvae")

Runs = Iterator[tuple[str, ConfigDict]]
Summaries = Mapping[str, Mapping[str, Any]]
Rows = Mapping[str, Mapping[str, Any]]  # run -> its line of a table
_NONE: Mapping[str, Any] = {}


class Study(NamedTuple):
    """The runs of a table.

    Attributes:
      runs: (config.data.data_dir, summaries of the finished runs, lines of an earlier
        table) -> name and config of each run whose settings are known; earlier runs
        select those of later ones.
      columns: tags of the table.
      is_judged: name -> whether the run has a line in the table.
      totals: entries of the summary, of all members together, in the table.
    """

    runs: Callable[[str, Summaries, Rows], Runs]
    columns: tuple[str, ...] = COLUMNS
    is_judged: Callable[[str], bool] = lambda name: True
    totals: tuple[str, ...] = ()


def layered(data_dir: str, summaries: Summaries = _NONE, known: Rows = _NONE) -> Runs:
    """The runs of the study of the layered decoder."""
    del summaries, known  # nothing is selected
    _, scale = plan.load_scale("demo")
    scale.beta, scale.metrics = (0.3,), _METRICS
    for name, changes in _CHANGES.items():
        spec = plan.Spec("translated", name.partition("_")[0])
        config = plan.run_config(scale, spec, {"data_dir": data_dir})
        config.update_from_flattened_dict(changes)
        yield name, config


def equal(
    is_translated: bool, data_dir: str, summaries: Summaries, known: Rows = _NONE
) -> Runs:
    """The runs with equal networks and steps: first those that select settings."""

    def config_of(model: str, network: str) -> ConfigDict:
        return _equal_config(model, network, is_translated, data_dir)

    config = config_of("code_flow", "spatial")
    config.sweep.seed = _SEEDS
    yield "code_flow", config
    networks: Sequence[str] = tuple(_NETWORKS)
    for model in _BASELINES:
        if model in known:
            network, beta = known[model]["network"], float(known[model]["beta"])
        else:
            own = tuple(_NETWORKS) if model in _OWN_NETWORKS else networks
            names = {f"choose_{model}_{network}": network for network in own}
            for name, network in names.items():
                config = config_of(model, network)
                config.sweep.update(beta=_BETAS, seed=(0,))
                config.train.num_steps //= 4
                config.data.validation = 20
                config.eval.metrics = ("coherence", "swd")
                yield name, config
            tried = names.keys() <= summaries.keys()
            if not tried and model == _BASELINES[0]:
                return  # the networks of the others are not known
            if not tried:
                continue
            tag, best = _CRITERIA.get(model, _CRITERION)
            found = [
                (member["metrics"][tag], network, member["beta"])
                for name, network in names.items()
                for member in summaries[name]["members"]
                if member["finite"] and member["metrics"].get(tag) is not None
            ]
            if not found:
                raise UsageError(
                    f"no member of {', '.join(names)} has a {tag}: networks and "
                    "beta cannot be chosen; remove these runs to train them again"
                )
            _, network, beta = best(found)
        if model == _BASELINES[0]:
            networks = (network,)
        config = config_of(model, network)
        config.sweep.update(beta=(beta,), seed=_SEEDS)
        if model != "latent_flow":
            # In addition to the prior; models with flows already have such a density.
            config.eval.sampler = "gmm"
        yield model, config


def times(data_dir: str, summaries: Summaries = _NONE, known: Rows = _NONE) -> Runs:
    """Short runs of all models, with spatial networks."""
    del summaries, known  # nothing is selected: beta does not change the time
    for model in ("code_flow", *_BASELINES):
        config = _equal_config(model, "spatial", False, data_dir)
        config.sweep.seed = _SEEDS
        # Calls so short that each stage has several: the first is not timed.
        config.train.update(num_steps=320, log_every_steps=8)
        config.eval.metrics = ()
        yield model, config


def _equal_config(
    model: str, network: str, is_translated: bool, data_dir: str
) -> ConfigDict:
    """A model on five modalities, with one of _NETWORKS."""
    config = polydigits.get_config(model)
    config.data.update(data_dir=data_dir, num_modalities=5)
    config.data.translate_scale = 0.75 if is_translated else 1.0
    config.model.latent_dim, options = _PRIVATE.get(model, (96, {}))
    config.model.options.update(options)
    config.modality.network = network
    config.modality.network_options = ConfigDict(_NETWORKS[network])
    config.train.num_steps = _NUM_STEPS
    config.train.checkpoint_every_steps = 1_000
    config.eval.num_examples = 1_000
    config.eval.metrics = _JUDGING
    return config


def _is_no_choice(name: str) -> bool:
    """Whether a run is not one that selects settings."""
    return not name.startswith("choose_")


_EQUAL_COLUMNS = (
    *(f"coherence/size_{k}" for k in (1, 2, 3, 4)),
    "coherence/leave_one_out",
    "coherence/joint",
    "matching/leave_one_out",
    "matching/joint",
    "second_judge/coherence/leave_one_out",
    "swd",
    "frechet_classifier",
    *(
        f"{metric}/{given}"
        for metric in ("conditional_swd", "conditional_frechet")
        for given in ("reconstruction", "size_1", "leave_one_out")
    ),
    *(f"gmm/{tag}" for tag in ("coherence/joint", "swd", "frechet_classifier")),
    "precision_recall/prior/coverage",
    "precision_recall/leave_one_out/coverage",
    "elbo",
    *(f"cost/{name}" for name in ("parameters", "sample", "conditional")),
)
STUDIES = {
    "layered": Study(layered),
    "in_place": Study(lambda *args: equal(False, *args), _EQUAL_COLUMNS, _is_no_choice),
    "translated": Study(
        lambda *args: equal(True, *args), _EQUAL_COLUMNS, _is_no_choice
    ),
    "times": Study(times, (), totals=("step_seconds", "num_parameters")),
}


def line(
    name: str,
    config: ConfigDict,
    summary: Mapping[str, Any],
    columns: Sequence[str] = COLUMNS,
    totals: Sequence[str] = (),
) -> dict[str, Any]:
    """A line of the table, over seeds with finite parameters, and of the summary."""
    return {
        "run": name,
        "network": config.modality.network,
        "beta": config.sweep.beta[0],
        "num_steps": config.train.num_steps,
        **tables.row(summary, columns),
        **{total: summary[total] for total in totals},
    }


def _summaries(directory: Path) -> Summaries:
    """Name -> summary of the finished runs in a folder."""
    found = {
        path.parent.name: workdirs.read_summary(path.parent)
        for path in sorted(directory.glob("*/summary.json"))
    }
    return {name: own for name, own in found.items() if own is not None}


def main() -> int:
    """Trains and evaluates runs, and writes the table of the finished ones."""
    if FLAGS.study not in STUDIES:
        raise UsageError(
            f"unknown --study {FLAGS.study!r}; choose from {', '.join(STUDIES)}"
        )
    study = STUDIES[FLAGS.study]
    directory = Path(FLAGS.directory or f"runs/{FLAGS.study}")
    chosen = [name for name in FLAGS.runs.split(",") if name]
    known = tables.read(Path(FLAGS.known), study.columns) if FLAGS.known else {}
    made: dict[str, ConfigDict] = {}
    # Some configs are known only after the runs that select them have finished.
    while left := {
        name: config
        for name, config in study.runs(FLAGS.data_dir, _summaries(directory), known)
        if name not in made and name not in known
    }:
        wanted = [name for name in left if not chosen or name in chosen]
        if not wanted:
            break
        name = wanted[0]
        if code := session.train_and_evaluate(left[name], directory / name):
            return code
        made[name] = left[name]
    if unknown := set(chosen) - set(made):
        raise UsageError(
            f"unknown --runs {min(unknown)!r}, or one that --known has, or that needs "
            "other runs first; "
            f"choose from {', '.join({**left, **made})}"
        )
    if FLAGS.out:
        summaries = _summaries(directory)
        runs = dict(study.runs(FLAGS.data_dir, summaries, known))
        rows = [
            known.get(name)
            or line(name, config, summaries[name], study.columns, study.totals)
            for name, config in runs.items()
            if name in known or (name in summaries and study.is_judged(name))
        ]
        tables.write(Path(FLAGS.out), rows)
    return 0


FLAGS = flags.FLAGS

if __name__ == "__main__":
    flags.DEFINE_string("study", "in_place", "one of " + ", ".join(STUDIES))
    flags.DEFINE_string("directory", "", "folder of the runs; empty: runs/STUDY")
    flags.DEFINE_string("data_dir", "data", "where prepared data sets are kept")
    flags.DEFINE_string("runs", "", "runs to make, with commas; empty: all")
    flags.DEFINE_string("known", "", "CSV file of runs not to make again; empty: none")
    flags.DEFINE_string("out", "", "CSV file of all finished runs; empty: none")
    command.run(main)
