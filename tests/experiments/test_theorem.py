"""The real models, trained on a known distribution, against what the theory allows."""

import math
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
from discrete import options, pmf

from configs import discrete
from experiments.drawing import theorem
from experiments.plans.runs import RunRecord
from experiments.running import datasets
from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import theory
from mmvae_jax.training import loop, sweep
from mmvae_jax.training.execution import Execution, compile_steps, init_states
from mmvae_jax.training.log import RunWriter
from mmvae_jax.training.step import vae_task

STEPS = (40, 200, 800)
BETAS = (0.05, 1.0)
NUM_DRAWS = 1_000
LOG_EVERY = 100
# How many standard errors a mean of random draws may be on the wrong side.
ALLOWED = 5
MIXTURES = ("mmvae", "mopoe")


class Trained(NamedTuple):
    """A model's sweep over BETAS.

    Attributes:
      estimates: (step, beta) -> (L_S, reconstruction), each of NUM_DRAWS independent
        estimates without bias, over all tuples and subsets exactly; nats.
      log: the arguments of every call of `Events.log`.
    """

    estimates: dict
    log: list


def tiny_config(model="mopoe"):
    """Two modalities of one shared and one specific bit: Delta is log 2 for MMVAE."""
    config = discrete.get_config(model)
    config.model.latent_dim = 4
    config.modality.network_options.widths = (16,)
    if "subset_estimator" in config.model.options:
        config.model.options.subset_estimator = "exact"
    config.data.update(num_modalities=2, shared_bits=1, specific_bits=1, repeats=8)
    config.sweep.update(beta=BETAS, seed=(0,), learning_rate=(1e-2,))
    return config


def estimator(task, batch):
    """(params, hyper) -> NUM_DRAWS times L_S and reconstruction, as training logs."""

    def one(params, hyper, key):
        _, metrics = task.loss(params, hyper, key, batch)
        gain = [x for tag, x in metrics.items() if "log_likelihood" in tag]
        return metrics["train/elbo"], sum(gain)

    many = jax.jit(jax.vmap(one, in_axes=(None, None, 0)))
    keys = jax.random.split(jax.random.key(7), NUM_DRAWS)
    return lambda params, hyper: np.asarray(many(params, hyper, keys), np.float64)


def train_model(name):
    """Trains through the real loop, with estimates at STEPS."""
    config = tiny_config(name)
    fields = {field: config.data[field] for field in datasets.option_names("discrete")}
    made = options.Options(**fields)
    counts = pmf.joint_counts(**made.pmf_options)
    # Both have the exact proportions of the pmf.
    images, smallest = (
        {
            f"m{m}": pmf.images(pmf.examples(counts, repeats)[:, m], made.num_bits, 1)
            for m in range(counts.ndim)
        }
        for repeats in (made.repeats, 1)
    )
    model = models.make_model(config, {m: x.shape[1:] for m, x in images.items()})
    task, members = vae_task(model), sweep.grid(config.sweep)
    hyper, keys = sweep.stack_hyper(members), sweep.stack_keys(members)
    execution = Execution("map", 64)
    program = compile_steps(task, execution)
    state = init_states(task, hyper, keys, images)
    estimate, estimates, log = estimator(task, smallest), {}, []
    events = loop.Events(LOG_EVERY, lambda *called: log.append(called))
    for step in STEPS:
        state = loop.fit(
            program,
            state,
            hyper,
            keys,
            jax.device_put(images),
            num_steps=step,
            batch_size=32,
            data_seed=0,
            execution=execution,
            events=events,
        )
        for k, member in enumerate(members):
            estimates[step, member.beta] = estimate(
                sweep.member(state.params, k), sweep.member(hyper, k)
            )
    assert state.finite.all()
    return Trained(estimates, log)


@pytest.fixture(scope="module")
def trained():
    return {name: train_model(name) for name in theorem.MIXTURES}


@pytest.fixture(scope="module")
def bounds():
    table = theorem.discrete_pmf(tiny_config().data)
    return {name: theorem.ceilings(table, name) for name in theorem.MIXTURES}


def margin(values):
    """What a mean of independent draws may be off by."""
    return ALLOWED * values.std(ddof=1) / math.sqrt(len(values))


def is_under(values, ceiling):
    """Whether the mean of some draws is not significantly above a ceiling."""
    return values.mean() <= ceiling + margin(values)


def is_above(values, ceiling):
    """Whether the mean of some draws is significantly above a ceiling."""
    return values.mean() > ceiling + margin(values)


# ---- what holds


def test_the_ceilings_are_those_of_the_recipe(bounds):
    for bound in bounds.values():
        assert bound.log_p == pytest.approx(-3 * math.log(2))
        assert bound.eq_4 == pytest.approx(bound.log_p + bound.reconstruction)
    assert bounds["mvae"].reconstruction == 0
    assert bounds["mmvae"].reconstruction == pytest.approx(-math.log(2))
    assert bounds["mopoe"].reconstruction == pytest.approx(-2 / 3 * math.log(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", theorem.MIXTURES)
def test_trained_models_stay_under_their_ceilings(name, trained, bounds):
    """Reconstruction at most -Delta(X, S), L_S at most E[log p(x)], all along."""
    assert len(trained[name].estimates) == len(STEPS) * len(BETAS)
    for (step, beta), (bound, gain) in trained[name].estimates.items():
        where = f"step {step}, beta {beta}"
        assert is_under(gain, bounds[name].reconstruction), where
        assert is_under(bound, bounds[name].log_p), where
        # The noise could hide no more than this.
        if step == STEPS[-1]:
            assert max(margin(gain), margin(bound)) < 0.05, where


@pytest.mark.slow
@pytest.mark.parametrize("name", theorem.MIXTURES)
def test_the_objective_with_beta_stays_under_its_ceiling(name, trained, bounds):
    """-L_S(beta) >= Delta + min(1, beta) sum_A omega_A H(X_A)."""
    table = theorem.discrete_pmf(tiny_config().data)
    mixture = theorem.MIXTURES[name](table.ndim)
    known = sum(
        float(weight) * theory.entropy(theory.marginal(table, np.flatnonzero(mask)))
        for mask, weight in zip(mixture.masks, mixture.weights, strict=True)
    )
    # The chain rule: what the subsets show and what they do not is everything.
    assert known - bounds[name].reconstruction == pytest.approx(-bounds[name].log_p)
    for (_, beta), (bound, gain) in trained[name].estimates.items():
        objective = gain - beta * (gain - bound)
        ceiling = bounds[name].reconstruction - min(1, beta) * known
        assert is_under(objective, ceiling)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_only_mvae_passes_the_ceilings_of_the_mixtures(name, trained, bounds):
    """So the checks above can fail; and a mixture presses against its ceiling."""
    last = STEPS[-1], BETAS[0]
    _, mvae = trained["mvae"].estimates[last]
    assert is_above(mvae, bounds[name].reconstruction + 0.2)
    _, own = trained[name].estimates[last]
    assert is_above(own, bounds[name].reconstruction - 0.2)
    assert not is_under(mvae, bounds[name].reconstruction)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_trained_mixtures_pass_the_ceiling_of_eq_4(name, trained, bounds):
    """Theorem 1 as stated, L_S <= E[log p(x)] - Delta(X, S), is not what holds."""
    bound, _ = trained[name].estimates[STEPS[-1], 1.0]
    assert is_above(bound, bounds[name].eq_4)


# ---- the figure of the runs


def write_run(folder, model, log, *, betas=BETAS, seeds=(0,), finite=None, **changes):
    """The folder of a finished run with the given log, as `experiments.run` has it."""
    config = tiny_config(model)
    config.data.update(changes)
    config.sweep.update(beta=betas, seed=seeds)
    members = sweep.grid(config.sweep)
    folder.mkdir(parents=True)
    writer = RunWriter(folder, members, 0)
    for step, metrics, _ in log:
        scalars = [
            {tag: float(values[k]) for tag, values in metrics.items()}
            for k in range(len(members))
        ]
        writer.write_scalars(step, scalars)
    writer.write_scalars(step, [{"eval/elbo": -1.0}] * len(members))
    writer.close()
    finite = finite or [True] * len(members)
    rows = [
        {**member._asdict(), "finite": is_finite, "metrics": {}}
        for member, is_finite in zip(members, finite, strict=True)
    ]
    return RunRecord(folder, config.to_dict(), {"model": model, "members": rows})


def made_up_log(num_members, steps=(10, 20, 30)):
    """Values that tell step, member and term."""
    members = np.arange(num_members)
    return [
        (
            step,
            {
                "train/elbo": -step - members,
                "train/log_likelihood/m0": -step / 100 - members,
                "train/log_likelihood/m1": -step / 1000 + 0 * members,
                "train/kl": 1.0 + members,
            },
            members >= 0,
        )
        for step in steps
    ]


@pytest.mark.slow
def test_the_figure_of_trained_models(tmp_path, trained, bounds):
    records = {
        name: write_run(tmp_path / name, name, trained[name].log) for name in trained
    }
    figure, rows = theorem.draw_ceilings(records)
    assert [axis.get_title() for axis in figure.axes] == [
        "$\\mathcal{L}_S$, β = 1",
        "reconstruction term, β = 1",
        "reconstruction term, β = 0.05",
    ]
    steps = sorted({step for step, _, _ in trained["mvae"].log})
    assert steps[-1] == STEPS[-1] and len(steps) >= STEPS[-1] // LOG_EVERY
    assert len(rows) == len(trained) * len(BETAS) * len(steps)
    for row in rows:
        bound = bounds[row["model"]]
        assert row["expected_log_p"] == bound.log_p
        assert row["elbo_ceiling_eq_4"] == bound.eq_4
        assert row["reconstruction_ceiling"] == bound.reconstruction
        assert row["num_seeds"] == 1 and row["elbo_std"] is None
    # At the end, logged means over steps and batches are near the estimates.
    final = {(r["model"], r["beta"]): r for r in rows if r["step"] == STEPS[-1]}
    for name, one in trained.items():
        for beta in BETAS:
            bound, gain = one.estimates[STEPS[-1], beta]
            row = final[name, beta]
            assert row["elbo_mean"] == pytest.approx(bound.mean(), abs=0.5)
            assert row["reconstruction_mean"] == pytest.approx(gain.mean(), abs=0.2)
    # Every ceiling is within the panel it is drawn in.
    for axis in figure.axes:
        low, high = axis.get_ylim()
        flat = [x.get_ydata() for x in axis.lines if len(x.get_ydata()) == 2]
        assert flat and all(low < y[0] < high for y in flat)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "MMVAE: E[log p(x)] − Δ (Eq. 4)" in labels and "E[log p(x)]" in labels
    assert len(labels) == len(set(labels))
    figure.savefig(tmp_path / "figure.pdf")


def test_means_and_spreads_over_seeds(tmp_path):
    record = write_run(
        tmp_path / "run", "mopoe", made_up_log(6), betas=(0.1, 1.0), seeds=(0, 1, 2)
    )
    _, rows = theorem.draw_ceilings({"mopoe": record})
    assert [(row["beta"], row["step"]) for row in rows] == [
        (beta, step) for beta in (0.1, 1.0) for step in (10, 20, 30)
    ]
    members = {beta: [] for beta in (0.1, 1.0)}
    for k, member in enumerate(record.summary["members"]):
        members[member["beta"]].append(k)
    for row in rows:
        own = np.array(members[row["beta"]])
        assert row["num_seeds"] == 3
        assert row["elbo_mean"] == pytest.approx(-row["step"] - own.mean())
        assert row["elbo_std"] == pytest.approx(own.std(ddof=1))
        expected = -row["step"] * 0.011 - own.mean()
        assert row["reconstruction_mean"] == pytest.approx(expected)
        assert row["reconstruction_std"] == pytest.approx(own.std(ddof=1))


def test_diverged_members_are_left_out(tmp_path):
    arguments = {"betas": (1.0,), "seeds": (0, 1)}
    one = write_run(
        tmp_path / "a", "mvae", made_up_log(2), finite=[False, True], **arguments
    )
    figure, rows = theorem.draw_ceilings({"mvae": one})
    assert len(figure.axes) == 2
    assert [row["elbo_mean"] for row in rows] == [-11, -21, -31]
    assert {row["num_seeds"] for row in rows} == {1}
    none = write_run(
        tmp_path / "b", "mvae", made_up_log(2), finite=[False, False], **arguments
    )
    with pytest.raises(UsageError, match="all members diverged"):
        theorem.draw_ceilings({"mvae": none})


def test_runs_that_cannot_be_drawn_together(tmp_path):
    log = made_up_log(2)
    one = write_run(tmp_path / "one", "mvae", log)
    other = write_run(tmp_path / "other", "mopoe", log, one_in=3)
    images = write_run(tmp_path / "images", "mmvae", log, name="polymnist")
    for records, message in (
        ({}, "no run to draw"),
        ({"mvae": one, "mopoe": other}, "have different data; draw them separately"),
        ({"mmvae": images}, "is a run on 'polymnist', whose joint pmf is not known"),
        ({"unimodal": one}, "no ceiling is known for model 'unimodal'"),
    ):
        with pytest.raises(UsageError, match=message):
            theorem.draw_ceilings(records)


# ---- the discrepancy of PolyMNIST


def test_discrepancy_beside_quality():
    counts, crops = np.array([3, 5, 8]), [20, 30, 40, 50]
    columns = ["model", "num_modalities", "mean", "std"]
    measured = [
        ("unimodal", 4, 1.0, 0.1),
        ("mvae", 4, 3.0, math.nan),
        ("mvae", 2, 2.0, 0.2),
    ]
    quality = pd.DataFrame(measured, columns=columns)
    figure, rows = theorem.draw_discrepancy(quality, counts, crops, "distance")
    found = {(row["model"], row["num_modalities"]): row for row in rows}
    assert len(found) == len(rows) == 1 + 3 * 4
    specific = np.sum(counts / 16 * np.log(counts)) + np.log(crops)
    for num in range(1, 5):
        total = specific[:num].sum()
        shares = {
            "mvae": 0,
            "mmvae": 1 - 1 / num,
            "mopoe": (2 ** (num - 1) - 1) / (2**num - 1),
        }
        for name, share in shares.items():
            value = found[name, num]["discrepancy"]
            assert value == pytest.approx(share * total, abs=1e-5)
            mixture = theorem.MIXTURES[name](num)
            assert value == pytest.approx(
                theory.polymnist_discrepancy(mixture, counts, crops[:num]), abs=1e-9
            )
    assert found["unimodal", 4]["discrepancy"] is None
    assert found["mvae", 2]["quality_mean"] == 2 and found["mvae", 2][
        "quality_std"
    ] == pytest.approx(0.2)
    assert found["mvae", 4]["quality_std"] is None
    assert found["mopoe", 4]["quality_mean"] is None
    left, right = figure.axes
    assert len(left.lines) == 3 and right.get_ylabel() == "distance"
    assert len(right.containers) == 2
    # A figure without measurements is the closed form alone.
    figure, rows = theorem.draw_discrepancy(quality[:0], counts, crops)
    assert len(rows) == 12 and not figure.axes[1].containers
