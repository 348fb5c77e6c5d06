"""The command that makes the paper's figures, on a scale of seconds."""

import csv
import json
import shutil
from functools import partial

import jax
import pytest

from experiments import figures
from experiments.drawing import gallery
from experiments.plans import cost
from experiments.plans.plan import (
    KINDS,
    OFFICIAL,
    PLAN,
    REFERENCES,
    SCALES,
    Spec,
    all_specs,
    figure_specs,
    load_scale,
    record,
    run_config,
)
from experiments.running import command
from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.training.step import vae_task

pytest_plugins = ("run_fixtures",)

TINY = """
from configs.scales import demo


def get_config():
    scale = demo.get_config()
    scale.description = "a test"
    scale.beta = (0.1, 1.0)
    scale.seed = (0, 1)
    scale.num_modalities = (1, 2)
    scale.metrics = ("elbo", "swd")
    scale.metrics_by_modalities = ("swd",)
    scale.changes = dict(
        model=dict(latent_dim=4),
        modality=dict(network_options=dict(widths=(16,))),
        data=dict(num_modalities=2, image_size=8, pairings=1),
        train=dict(num_steps=STEPS, batch_size=16, log_every_steps=4),
        eval=dict(num_examples=100, batch_size=100),
    )
    return scale
"""


def write_scale(folder, steps=8, name="tiny"):
    path = folder / f"{name}.py"
    path.write_text(TINY.replace("STEPS", str(steps)))
    return str(path)


@pytest.fixture
def scale(tmp_path):
    """(steps, name) -> a file with a scale of two modalities and few steps."""
    return partial(write_scale, tmp_path)


@pytest.fixture(scope="module")
def run_figures(data_dir):
    """(flag -> value) -> the exit code of experiments.figures."""
    figures.define_flags()

    def call(**values):
        defaults = {"data_dir": str(data_dir), "dry_run": False, "train": True}
        for name, value in {**defaults, **values}.items():
            command.flags.FLAGS[name].value = (
                str(value) if name == "directory" else value
            )
        return figures.main()

    command.flags.FLAGS.mark_as_parsed()
    yield call
    for name in figures.FLAG_NAMES:
        delattr(command.flags.FLAGS, name)


@pytest.fixture(scope="module")
def made_once(run_figures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    directory = folder / "plan"
    code = run_figures(figure="13", scale=write_scale(folder), directory=directory)
    assert code == 0
    return directory


@pytest.fixture
def made(made_once, tmp_path):
    """A folder with the runs and the drawing of Figure 13."""
    return shutil.copytree(made_once, tmp_path / "plan")


def rows(directory, name="13"):
    with open(directory / "figures" / f"figure_{name}.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_figure_trains_what_it_needs_and_nothing_else(made):
    assert {p.parent.name for p in made.rglob("summary.json")} == {"mvae", "mvae_plus"}
    for suffix in ("png", "pdf", "csv"):
        assert (made / "figures" / f"figure_13.{suffix}").stat().st_size > 100


@pytest.mark.slow
def test_the_csv_holds_the_means_of_the_runs(made):
    summary = json.loads((made / "polymnist" / "mvae" / "summary.json").read_text())
    values = [
        member["metrics"]["eval/swd/m0"]
        for member in summary["members"]
        if member["beta"] == 0.1
    ]
    found = [
        float(row["mean"])
        for row in rows(made)
        if (row["model"], float(row["beta"]), row["metric"])
        == ("mvae", 0.1, "eval/swd/m0")
    ]
    assert found == [pytest.approx(sum(values) / 2)]


@pytest.mark.slow
def test_again_trains_nothing_and_draws_the_same(made, scale, run_figures, capsys):
    before = {p: p.read_bytes() for p in made.rglob("*") if p.is_file()}
    assert run_figures(figure="13", scale=scale(), directory=made) == 0
    assert "run 1 of" not in capsys.readouterr().out
    after = {p: p.read_bytes() for p in made.rglob("*") if p.is_file()}
    assert before.keys() == after.keys()
    assert [p.name for p in before if before[p] != after[p]] == []


@pytest.mark.slow
def test_a_missing_run_is_a_missing_point(made, scale, run_figures):
    (made / "polymnist" / "mvae" / "summary.json").unlink()
    options = {"figure": "13", "scale": scale(), "directory": made}
    assert run_figures(**options, train=False) == 0
    assert {row["model"] for row in rows(made)} == {"mvae_plus"}
    assert run_figures(**options) == 0  # its checkpoint is there: taken up
    assert {row["model"] for row in rows(made)} == {"mvae", "mvae_plus"}


@pytest.mark.slow
def test_dry_run_says_what_it_costs_and_writes_nothing(
    scale, run_figures, tmp_path, capsys
):
    directory = tmp_path / "nothing"
    options = {"figure": "13", "scale": scale(), "directory": directory}
    assert run_figures(**options, dry_run=True) == 0
    out = capsys.readouterr().out
    assert "polymnist/mvae_plus" in out
    assert "2 runs with 8 models to train" in out
    assert not directory.exists()


def test_what_does_not_fit_the_memory_is_said(
    scale, run_figures, tmp_path, capsys, monkeypatch
):
    def measure(config):
        if config.model.name == "mvae":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return 0.5

    monkeypatch.setattr(cost, "seconds_per_step", measure)
    options = {"figure": "13", "scale": scale(), "directory": tmp_path / "nothing"}
    assert run_figures(**options, dry_run=True) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "polymnist/mvae " in line)
    assert line.endswith("does not fit here")
    assert "on cpu, without runs that do not fit its memory; compilation" in out
    assert "about 0 s" not in out and "nan" not in out


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"figure": "5"}, "unknown --figure '5'"),
        ({"scale": "huge"}, "unknown --scale 'huge'"),
        ({"scale": "missing.py"}, "unknown --scale 'missing.py'"),
    ],
)
def test_what_does_not_exist_is_one_line(values, message, run_figures, scale, tmp_path):
    options = {"figure": "13", "scale": scale(), "directory": tmp_path / "plan"}
    with pytest.raises(UsageError, match=message):
        run_figures(**{**options, **values})
    assert not (tmp_path / "plan").exists()


@pytest.mark.slow
def test_a_folder_of_another_scale_is_refused(made, scale, run_figures):
    with pytest.raises(UsageError, match="holds runs of scale 'tiny' with other"):
        run_figures(figure="13", scale=scale(9), directory=made)
    with pytest.raises(UsageError, match="not of 'other'"):
        run_figures(figure="13", scale=scale(8, "other"), directory=made)


@pytest.mark.slow
def test_a_run_of_another_scale_is_refused(made, scale, run_figures):
    path = made / "polymnist" / "mvae" / "config.json"
    config = json.loads(path.read_text())
    config["train"]["num_steps"] = 9
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match="num_steps is 9 there and 8 here"):
        run_figures(figure="13", scale=scale(), directory=made)


def test_a_folder_of_something_else_is_refused(scale, run_figures, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds files, but no plan"):
        run_figures(figure="13", scale=scale(), directory=tmp_path / "other")


@pytest.mark.slow
def test_a_plan_that_lacks_a_field_of_later_is_taken_up(made, scale, run_figures):
    path = made / "plan.json"
    plan = json.loads(path.read_text())
    older = {**plan, "config": {**plan["config"]}}
    del older["config"]["models"]
    path.write_text(json.dumps(older))
    assert run_figures(figure="13", scale=scale(), directory=made, train=False) == 0
    assert json.loads(path.read_text()) == plan

    older["config"]["seed"] = [0]
    path.write_text(json.dumps(older))
    with pytest.raises(UsageError, match="holds runs of scale 'tiny' with other"):
        run_figures(figure="13", scale=scale(), directory=made, train=False)


def test_settings_of_a_model_change_while_it_has_no_run(tmp_path):
    """As those of `code_flow` did, in plans with runs of other models."""
    _, scale = load_scale("demo")
    former = scale.copy_and_resolve_references()
    former.models.code_flow.model.options = {"single_stage": True}
    record(tmp_path, "demo", former)
    (tmp_path / "polymnist" / "mopoe").mkdir(parents=True)
    record(tmp_path, "demo", scale)
    now = json.loads((tmp_path / PLAN).read_text())["config"]["models"]
    assert now["code_flow"] == json.loads(scale.models.code_flow.to_json())
    (tmp_path / "translated" / "code_flow").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds runs of scale 'demo' with other"):
        record(tmp_path, "demo", former)


def test_no_runs_at_all(scale, run_figures, tmp_path):
    options = {"figure": "13", "scale": scale(), "directory": tmp_path / "plan"}
    with pytest.raises(UsageError, match="no plan.json in"):
        run_figures(**options, train=False)
    assert not (tmp_path / "plan").exists()


@pytest.mark.slow
def test_a_plan_without_runs(made, scale, run_figures):
    for path in made.rglob("summary.json"):
        path.unlink()
    with pytest.raises(UsageError, match="no finished run in"):
        run_figures(figure="13", scale=scale(), directory=made, train=False)


@pytest.mark.slow
def test_a_plan_that_is_none(made, scale, run_figures):
    (made / "plan.json").write_text("[]")
    with pytest.raises(UsageError, match="is not a plan of this project"):
        run_figures(figure="13", scale=scale(), directory=made)


def test_wrong_changes_of_a_scale_are_found_before_training(
    scale, run_figures, tmp_path
):
    path = scale()
    text = open(path).read().replace("latent_dim=4", "latentdim=4")
    open(path, "w").write(text)
    with pytest.raises(
        UsageError, match="config.model.latentdim, which does not exist"
    ):
        run_figures(figure="13", scale=path, directory=tmp_path / "plan")


@pytest.mark.parametrize("name", SCALES)
def test_every_run_of_every_scale_has_a_config(name, tmp_path):
    _, scale = load_scale(name)
    specs = all_specs(scale, figure_specs(scale))
    configs = figures.checked_configs(scale, specs, {"data_dir": str(tmp_path)})
    assert len({spec.folder for spec in specs}) == len(specs)
    for spec, config in configs.items():
        assert config.model.name == spec.model
        # A short look at CUB is one seed's, and so are the hours of this scale.
        is_short = spec.dataset == "cub" and name != "paper"
        is_short |= name == "published" and spec.dataset in scale.columns
        assert len(config.sweep.seed) == (1 if is_short else 3)


def test_a_scale_with_a_field_that_its_data_do_not_read_trains_nothing(tmp_path):
    _, scale = load_scale("demo")
    scale.discrete.changes.data = {"quadrant": "shared"}
    specs = all_specs(scale, figure_specs(scale))
    with pytest.raises(
        UsageError, match="config.data.quadrant is not read by .*discrete"
    ):
        figures.checked_configs(scale, specs, {"data_dir": str(tmp_path)})


def test_only_some_models_are_trained_in_the_order_they_are_named():
    _, scale = load_scale("published")
    specs = all_specs(scale, ["2", "inputs"])
    kept = figures.of_models(specs, ["code_flow", " mopoe"])
    assert [spec.model for spec in kept if spec.dataset == "polymnist"] == [
        "code_flow",
        "mopoe",
    ]
    with pytest.raises(UsageError, match="unknown model 'mopo' in --models; choose"):
        figures.of_models(specs, ["mopo"])


@pytest.mark.parametrize("name", SCALES)
def test_every_planned_figure_is_drawn(name):
    _, scale = load_scale(name)
    assert figure_specs(scale).keys() == gallery.DRAWINGS.keys()


def test_the_family_is_every_model_but_the_official_and_custom_ones():
    kinds = [model for kind in KINDS.values() for model in kind]
    assert len(set(kinds)) == len(kinds)
    assert set(kinds) == set(models.MODELS) - {*OFFICIAL, "custom"}
    assert set(REFERENCES) < set(kinds)


@pytest.mark.parametrize("name", ("demo", "cpu", "published"))
def test_every_model_of_the_family_can_be_chosen_and_built(name):
    """So that each can be trained, and shown, by name."""
    _, scale = load_scale(name)
    specs = all_specs(scale, ["family"])
    for model in (model for kind in KINDS.values() for model in kind):
        spec, *_ = figures.of_models(specs, [model])
        config = run_config(scale, spec, {})
        size, num = config.data.image_size, config.data.num_modalities
        shapes = {f"m{i}": (size, size, 3) for i in range(num)}
        assert models.make_model(config, shapes).modalities == tuple(shapes)


@pytest.mark.parametrize("name", ("demo", "cpu"))
@pytest.mark.parametrize(
    "model", [x for x in models.MODELS if "private_dim" in models.MODELS[x].options]
)
def test_private_vectors_do_not_add_latent_dimensions(name, model):
    _, scale = load_scale(name)
    config, other = (
        run_config(scale, Spec("polymnist", name), {}) for name in (model, "mopoe")
    )
    num = config.data.num_modalities
    total = config.model.latent_dim + num * config.model.options.private_dim
    assert total == other.model.latent_dim


@pytest.mark.parametrize("model", ("latent_flow", "code_flow"))
@pytest.mark.parametrize("name", ("small", "demo", "cpu"))
def test_unimodal_latents_add_up_to_the_shared_ones(name, model):
    """And all else of the config that is not of the model is that of the others."""
    _, scale = load_scale(name)
    config, other = (
        run_config(scale, Spec("polymnist", name), {}) for name in (model, "mopoe")
    )
    num = config.data.num_modalities
    assert num * config.model.latent_dim == other.model.latent_dim
    for field in ("modality", "data", "sweep", "eval"):
        assert config[field].to_dict() == other[field].to_dict()
    assert config.train.num_steps == other.train.num_steps


# Scale -> steps of the VAEs, the code and the flows of `code_flow`.
STAGES = {
    "small": (1_300, 150, 1_050),
    "demo": (780, 90, 630),
    "cpu": (1_040, 120, 840),
    "published": (4_000, 800, 3_200),
    "paper": (58_500, 11_700, 46_800),
}


@pytest.mark.parametrize("name", SCALES)
def test_code_flow_is_trained_in_stages_that_all_have_steps(name):
    _, scale = load_scale(name)
    config = run_config(scale, Spec("polymnist", "code_flow"), {})
    model = models.make_model(config, {m: (28, 28, 3) for m in ("m0", "m1")})
    task = vae_task(model, num_steps=config.train.num_steps)
    assert [stage.name for stage in task.stages] == ["vae", "code", "flow"]
    assert tuple(stage.end - stage.start for stage in task.stages) == STAGES[name]


# Training examples and epochs of the paper (App. C.1), by the columns of its figures.
EXAMPLES = {"polymnist": 60_000, "translated": 60_000, "cub": 88_550}
EPOCHS = {"polymnist": 500, "translated": 1_000, "cub": 150}


def test_every_run_of_the_paper_scale_has_the_papers_epochs():
    _, scale = load_scale("paper")
    specs = all_specs(scale, figure_specs(scale))
    for spec in specs:
        if spec.dataset == "discrete":  # not of the paper
            continue
        train = run_config(scale, spec, {}).train
        steps_an_epoch = EXAMPLES[spec.dataset] // train.batch_size
        assert train.num_steps == EPOCHS[spec.dataset] * steps_an_epoch, spec.folder
        assert train.num_steps % train.checkpoint_every_steps == 0, spec.folder
    assert {spec.dataset for spec in specs} == {*EPOCHS, "discrete"}


# Scale -> epochs that its description names, and training examples, by column.
SAID = {
    "cpu": {"polymnist": (4, 60_000), "shapes": (10, 12_000)},
    "demo": {"shapes": (8, 12_000)},
}


@pytest.mark.parametrize("name", SAID)
def test_the_epochs_that_a_scale_names_are_those_of_its_runs(name):
    _, scale = load_scale(name)
    for column, (epochs, num_examples) in SAID[name].items():
        train = run_config(scale, Spec(column, "mopoe"), {}).train
        assert train.num_steps // (num_examples // train.batch_size) == epochs
        text = scale.pairs.description if column == "shapes" else scale.description
        assert f"{epochs} epochs" in text


def test_the_paper_scale_is_the_papers():
    _, scale = load_scale("paper")
    config = run_config(scale, Spec("translated", "mopoe"), {})
    assert config.modality.network == "resnet"
    assert config.model.latent_dim == 512
    assert config.train.num_steps == 234_000
    assert config.train.batch_size == 256
    assert tuple(config.sweep.beta) == (3e-4, 3e-3, 0.3, 1.0, 3.0, 9.0)
    assert tuple(config.sweep.learning_rate) == (5e-4,)
