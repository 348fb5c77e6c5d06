"""A finished run goes on: the bits of a run planned so long, and nothing lost."""

import json
import shutil

import evidence
import pytest

from experiments.drawing import page
from experiments.plans import plan, runs, tables
from experiments.running import session, workdirs
from mmvae_jax.errors import UsageError

pytest_plugins = ("run_fixtures",)

LONGER = {"train.num_steps": 40}


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def planned(array_config, run_here, tmp_path_factory):
    """A run that was planned to be longer."""
    workdir = tmp_path_factory.mktemp("planned") / "run"
    assert run_here(array_config(LONGER), workdir)[0] == 0
    return workdir


@pytest.fixture
def workdir(array_run, tmp_path):
    return shutil.copytree(array_run, tmp_path / "run")


def read(path):
    return json.loads(path.read_text())


def test_more_steps_end_in_the_bits_of_a_run_planned_so_long(
    workdir, array_run, planned, array_config, run_here, assert_same_end
):
    code, said = run_here(array_config(LONGER), workdir)
    assert code == 0
    assert f"{workdir} was trained for 20 steps; training continues to 40" in said
    assert_same_end(workdir, planned)
    former, summary = read(array_run / "summary.json"), read(workdir / "summary.json")
    assert read(workdir / "summary_20.json") == former
    assert read(workdir / "config.json") == read(planned / "config.json")
    # The times of both parts, each without its first step.
    assert (former["timed_steps"], summary["timed_steps"]) == (19, 38)
    own = summary["training_seconds"] - former["training_seconds"]
    assert own == pytest.approx(19 * summary["step_seconds"], rel=1e-6)
    # Once more it is finished, and fewer steps are refused.
    assert "is finished" in run_here(array_config(LONGER), workdir)[1]
    with pytest.raises(UsageError, match="its run is one of 40 steps, give as many"):
        run_here(array_config(), workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "steps"),
    [
        ("after config.json", 40),
        pytest.param("before config.json", 40, marks=pytest.mark.slow),
        pytest.param("before config.json", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_where_it_is_taken_up(
    place, steps, workdir, planned, array_config, run_here, monkeypatch, assert_same_end
):
    """The summary has its other name then, and the config is the old or the new one."""
    write = workdirs.log.write_json

    def write_and_die(path, value):
        if place == "after config.json":
            write(path, value)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(workdirs.log, "write_json", write_and_die)
        with pytest.raises(Killed):
            run_here(array_config(LONGER), workdir)
    former = read(workdir / "summary_20.json")
    assert not (workdir / "summary.json").exists()
    if steps == 20:  # the shorter run again, before the longer one
        assert run_here(array_config(), workdir)[0] == 0
        assert read(workdir / "summary.json")["members"] == former["members"]
    assert run_here(array_config(LONGER), workdir)[0] == 0
    assert_same_end(workdir, planned)
    assert read(workdir / "summary_20.json") == former
    assert (workdir / "summary_20_1.json").exists() == (steps == 20)


@pytest.mark.slow
def test_stopped_on_the_way(
    workdir, planned, array_config, run_here, monkeypatch, assert_same_end
):
    fit = session.loop.fit

    def fit_and_stop(*arguments, events, **options):
        stopped = iter([False, True])
        halted = events._replace(is_stopping=lambda: next(stopped, True))
        fit(*arguments, events=halted, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(session.loop, "fit", fit_and_stop)
        with pytest.raises(Killed):
            run_here(array_config(LONGER), workdir)
    assert run_here(array_config(LONGER), workdir)[0] == 0
    assert_same_end(workdir, planned)


def test_a_finished_run_asked_for_with_other_metrics_says_how_it_gets_them(
    workdir, array_config, run_here
):
    code, said = run_here(array_config({"eval.metrics": ("elbo", "swd")}), workdir)
    assert code == 0
    assert f"python -m experiments.evaluate --workdir={workdir}" in said
    assert "experiments.evaluate" not in run_here(array_config(), workdir)[1]


def test_other_data_under_the_same_name_are_refused(workdir, array_config, run_here):
    path = workdir / "description.json"
    found = read(path)
    path.write_text(json.dumps(found | {"fingerprint": "another"}))
    with pytest.raises(UsageError, match="have changed since it was trained"):
        run_here(array_config(LONGER), workdir)
    assert (workdir / "summary.json").exists()


def test_further_members_are_refused_with_the_command_for_a_folder_beside_it(
    workdir, array_config, run_here
):
    more = array_config({"sweep.beta": (3.0,)})
    with pytest.raises(UsageError, match=f"--workdir={workdir}_more with") as caught:
        run_here(more, workdir)
    assert "config.sweep.beta" in str(caught.value)


@pytest.mark.slow
def test_further_members_are_trained_beside_it_and_read_with_it(
    workdir, array_config, run_here
):
    more = array_config({"sweep.beta": (3.0,)})
    beside = workdir.with_name("run_more")
    assert run_here(more, beside)[0] == 0
    (run,) = runs.find_runs(workdir.parent)
    assert [member["beta"] for member in run.summary["members"]] == [0.5, 1.0, 3.0]
    parts = [read(folder / "summary.json") for folder in (workdir, beside)]
    for name in ("training_seconds", "timed_steps"):
        assert run.summary[name] == sum(part[name] for part in parts)
    numbers = {line["member"]: line["beta"] for line in runs.read_log(run)}
    assert numbers == {0: 0.5, 1: 1.0, 2: 3.0}
    for (folder, prefix), where in zip(
        runs.samples_of(run), (workdir, workdir, beside), strict=True
    ):
        assert folder == where / "samples" and list(folder.glob(f"{prefix}_*.png"))
    text = page.render(workdir.parent)
    assert text.count('id="runs"') == 1 and "run_more" not in text
    assert "β = 3" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda config, summary: config["model"].update(latent_dim=5),
        lambda config, summary: summary.update(num_steps=30),
        lambda config, summary: summary["members"][0].update(beta=1.0),
    ],
)
def test_runs_that_are_no_part_of_a_sweep_stay_alone(change, array_run, tmp_path):
    for name, beta in (("run", 0.5), ("run_more", 3.0)):
        config, summary = (read(array_run / f"{x}.json") for x in ("config", "summary"))
        summary["members"] = summary["members"][:1]
        summary["members"][0]["beta"] = beta
        if name == "run_more":
            assert len(runs.find_runs(tmp_path)) == 1
            change(config, summary)
            if summary["members"][0]["beta"] == 1.0:
                summary["members"][0]["beta"] = 0.5  # there already
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    assert len(runs.find_runs(tmp_path)) == 2


def test_figures_and_claims_read_further_members_with_their_run(tmp_path):
    """Evidence of a plan, which is all that they read, with more seeds of one run."""
    _, config = plan.load_scale("demo")
    spec = plan.all_specs(config, plan.figure_specs(config))[0]
    found = evidence.write(tmp_path / "plan", specs=[spec])
    (run,) = found.runs.values()
    more = run.workdir.with_name(f"{run.workdir.name}_more")
    shutil.copytree(run.workdir, more)
    with pytest.raises(UsageError, match="_more is no part of the sweep of"):
        plan.read(tmp_path / "plan")  # the same members twice
    texts = ("config.json", "summary.json")
    config, summary = (read(more / name) for name in texts)
    config["sweep"]["seed"] = [17]
    summary["members"] = [
        member | {"seed": 17} for member in summary["members"] if member["seed"] == 0
    ]
    for name, content in zip(texts, (config, summary), strict=True):
        (more / name).write_text(json.dumps(content))
    evidence._write_log(more, (2900.0, 2600.0))
    joined = plan.read(tmp_path / "plan")
    seeds = tables.by_seed(joined, spec, "eval/elbo").columns.get_level_values("seed")
    before = tables.by_seed(found, spec, "eval/elbo").columns.get_level_values("seed")
    assert set(seeds) == {*before, 17}
