"""Runs that were started before a model's options were its own go on, and are read.

tests/golden/old_run is such a run of twenty steps, of which half were made: mopoe with
two settings that it reads, and one, mvtcae_alpha, that it does not.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base
from experiments.drawing import page
from experiments.plans import runs
from experiments.plans.plan import PLAN, family, load_scale, official, read, record
from experiments.running import workdirs
from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import old_configs, trained

pytest_plugins = ("run_fixtures",)

OLD_RUN = Path(__file__).parents[1] / "golden" / "old_run"
OLD = json.loads((OLD_RUN / "config.json").read_text())
# Where the settings stood that have another name now.
FORMER = {
    "jmvae_kl": {"alpha": "jmvae_alpha"},
    "mvtcae": {"alpha": "mvtcae_alpha"},
    "mmvm": {"alpha": "mmvm_alpha"},
    "crmvae": {"weights": "crmvae"},
    "telbo": {"decoder_gradients": "telbo"},
    "mmjsd": {"decode_prior": "mmjsd_decode_prior"},
}


THEN = OLD["model"] | OLD["objective"]
# Values of the fields and options that older runs lack: what these runs were made with.
LACKED = {
    "data": {"validation": 0, "quadrant": "", "label_modalities": []},
    "modality": {"library_size": 0.0},
    "train": {
        **{"beta_warmup_steps": 0, "learning_rate_schedule": "constant"},
        **{"learning_rate_warmup_steps": 0, "learning_rate_final": 0.0},
    },
    "eval": {"sampler": "prior", "sampler_components": [10, 25, 50]},
}
FLOWS = {"flow_draws": 1, "flow_network": "mlp"}
LACKED_OPTIONS = {
    "mopoe": {},
    "mmvm": {"alpha_steps": 0},
    "custom": {"pooling": "product"},
    "telbo": {"joint_share": 0.0},
    "mmvae_plus": {"self_gradient": True, "prior_components": 0},
    "contrastive": {"code_network": "same", "code_prior": "mixture"},
    "code_flow": {"single_stage": False, **FLOWS},
    "latent_flow": FLOWS,
}


def old_form(config):
    """A config of today as it was written then, with everybody's settings."""
    model = config["model"]
    names = FORMER.get(model["name"], {})
    given = {names.get(x, x): value for x, value in model["options"].items()}
    common = {x: model[x] for x in ("name", "latent_dim")}
    return config | {
        part: OLD[part] | {x: y for x, y in given.items() if x in OLD[part]} | own
        for part, own in (("model", common), ("objective", {}))
    }


def changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    return f"{value}!" if isinstance(value, str) else [value, 1]


def config_of(name, **options):
    config = base.parse_arg(base.get_config(), name)
    config.model.options.update(options)
    return workdirs.resolved(config)


@pytest.mark.parametrize("name", LACKED_OPTIONS)
def test_fields_that_came_later_are_as_they_were(name):
    config = config_of(name)
    former = json.loads(json.dumps(config))
    for part, fields in LACKED.items():
        for field in fields:
            del former[part][field]
    for option in LACKED_OPTIONS[name]:
        del former["model"]["options"][option]
    found = old_configs.upgraded(former)
    assert found == config != former
    for part, values in LACKED.items():
        assert found[part] | values == found[part]
    options = found["model"]["options"]
    assert options | LACKED_OPTIONS[name] == options


@pytest.mark.parametrize("name", models.MODELS)
def test_whatever_a_config_lacks_has_its_default_and_the_rest_is_kept(name):
    config = config_of(name)
    for is_lacking_first in (True, False):
        former, wanted = {}, {}
        for part, fields in config.items():
            fields = fields["options"] if part == "model" else fields
            lacked = list(fields)[int(not is_lacking_first) :: 2]
            own = {x: changed(value) for x, value in fields.items() if x not in lacked}
            former[part], wanted[part] = own, fields | own
        for found in (former, wanted):
            found["model"] = config["model"] | {"options": found["model"]}
        assert old_configs.upgraded(former) == wanted


@pytest.mark.parametrize(("steps", "num"), [(0, 20), (7, 20), (333, 1_000), (1, 3)])
def test_the_steps_of_the_first_stage_of_telbo_are_those_of_then(steps, num, tmp_path):
    former = config_of("telbo")
    former["train"]["num_steps"] = num
    del former["model"]["options"]["joint_share"]
    former["model"]["options"]["joint_steps"] = steps
    config = trained.config_of(former, tmp_path)
    config.model.latent_dim, config.modality.network = 2, "mlp"
    model = models.make_model(config, {"m0": (4,), "m1": (4,)})
    assert [stage.end(num) for stage in model.stages] == ([steps, num] if steps else [])


@pytest.mark.parametrize("name", ["jnf", "mopoe", "telbo"])
def test_an_unknown_option_is_still_an_error(name, tmp_path):
    former = config_of(name)
    former["model"]["options"]["joint_steps"] = 5
    assert "joint_steps" in old_configs.upgraded(former)["model"]["options"]
    with pytest.raises(UsageError, match="options.joint_steps is no option of the mod"):
        trained.config_of(former, tmp_path)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_keeps_what_it_read_and_nothing_else(name):
    wanted = config_of(name)
    former_names = FORMER.get(name, {})
    wanted["model"]["options"] = {
        x: changed(value) if former_names.get(x, x) in THEN else value
        for x, value in wanted["model"]["options"].items()
    }
    former = old_form(wanted)
    assert old_configs.upgraded(former) == wanted
    assert old_configs.upgraded(wanted) == wanted


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "x",
        {},
        {"model": 3},
        {"model": {"name": []}},
        {"model": {"name": "x"}},
    ],
)
def test_what_is_no_config_is_left_alone(content):
    assert old_configs.upgraded(content) == content
    assert old_configs.upgraded_scale(content) == content


@pytest.fixture
def config(smoke_config):
    """The config of the stored run, as one asks for it today."""
    return smoke_config(
        changes={
            "model.latent_dim": 2,
            "model.options.subset_estimator": "random",
            "model.options.prior_expert": "released",
            "modality.network_options.widths": (3,),
            "sweep.beta": (1.0,),
            "train.num_steps": 20,
            "train.checkpoint_every_steps": 10,
            "train.eval_every_steps": 0,
            "eval.metrics": ("elbo",),
        }
    )


@pytest.mark.slow
def test_a_run_goes_on(
    config, data_dir, run_here, last_state, assert_same_end, tmp_path
):
    whole = tmp_path / "whole"
    assert run_here(config, whole)[0] == 0
    described = OLD | {"data": OLD["data"] | {"data_dir": str(data_dir)}}
    # Half of the same run, with the config.json of that time.
    half = tmp_path / "half"
    shutil.copytree(whole, half)
    shutil.rmtree(half / "checkpoints" / "20")
    # The whole run that was stored at half.
    stored = tmp_path / "stored"
    shutil.copytree(OLD_RUN, stored)
    for folder in (half, stored):
        (folder / "summary.json").unlink()
        (folder / "config.json").write_text(json.dumps(described))
        code, output = run_here(config, folder)
        assert code == 0 and f"resuming {folder} at step 10" in output
    assert_same_end(half, whole)
    # Nobody wrote down how long the steps of the stored half took.
    summary = workdirs.read_summary(stored)
    assert summary["training_seconds"] is summary["timed_steps"] is None
    assert "older version" in summary["undefined"]["training_seconds"]
    (step, found), (_, expected) = last_state(stored), last_state(whole)
    assert step == 20

    def compare(one, other):
        # Other processors round otherwise.
        if np.issubdtype(one.dtype, np.floating):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)

    jax.tree.map(compare, found, expected)


def test_a_run_is_reported():
    (run,) = runs.find_runs(OLD_RUN)
    assert run.config["model"] == {
        "name": "mopoe",
        "latent_dim": 2,
        "options": {"prior_expert": "released", "subset_estimator": "random"},
    }
    assert "objective" not in run.config
    assert "MoPoE-VAE" in page.render(OLD_RUN)


def test_a_plan_is_read_and_goes_on(tmp_path):
    import evidence

    _, scale = load_scale("demo")
    scale.metrics = ("elbo",)
    specs = [
        spec
        for spec in official(scale) + family(scale)
        if spec.dataset == scale.columns[0]
        # Plans had no changes for other models then.
        and spec.model not in set(scale.models) - {"mmvae_plus", "dmvae"}
    ]
    made = evidence.write(tmp_path, specs=specs, changes={"metrics": ("elbo",)})
    for spec in specs:
        path = tmp_path / spec.folder / "config.json"
        path.write_text(json.dumps(old_form(json.loads(path.read_text()))))
    path = tmp_path / PLAN
    plan = json.loads(path.read_text())
    plan["config"]["official"]["changes"] = {"objective": {"num_samples": 5}}
    plan["config"]["models"] = {
        "mmvae_plus": {
            "model": {"latent_dim": 10, "private_dim": 10},
            "objective": {"num_samples": 1, "estimator": "iwae"},
        },
        "dmvae": {"model": {"latent_dim": 10, "private_dim": 10}},
    }
    path.write_text(json.dumps(plan))
    found = read(tmp_path)
    assert found.runs == made.runs and set(found.runs) == set(specs)
    record(tmp_path, "demo", made.config)
    # A model that came later is in the plan from then on.
    assert "latent_flow" in json.loads(path.read_text())["config"]["models"]
    assert read(tmp_path).runs == made.runs
