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
from mmvae_jax.interface import old_configs

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


# Those of `contrastive` came later; `code_flow` and `latent_flow` always had them.
OF_FLOW = ("flow_width", "flow_depth", "ode_steps", "ode_method", "ema")
LATER_OPTIONS = (
    *("alpha_steps", "joint_steps", "code_network", "single_stage", "flow_draws"),
    *("flow_network", "code_prior", *OF_FLOW),
    *("self_gradient", "prior_components"),
    *("pooling", "correlation", "pooled_over"),
)
LATER_MODELS = (
    *("cmvae", "wb_vae", "mwb_vae", "code_vae", "helvae", "mohelvae"),
    *("code_flow", "jnf", "jnf_shared", "latent_flow", "nexus"),
)
LATER_FIELDS = {
    "data": ("validation", "quadrant", "label_modalities"),
    "modality": ("library_size",),
    "train": (
        "beta_warmup_steps",
        "learning_rate_schedule",
        "learning_rate_warmup_steps",
        "learning_rate_final",
    ),
    "eval": ("sampler", "sampler_components", "sampler_steps"),
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


@pytest.mark.parametrize(
    "name",
    [
        *("mopoe", "mmvm", "telbo", "custom", "contrastive"),
        *("code_flow", "latent_flow"),
    ],
)
def test_fields_that_came_later_are_as_they_were(name):
    wanted = workdirs.resolved(base.parse_arg(base.get_config(), name))
    former = workdirs.resolved(base.parse_arg(base.get_config(), name))
    for part, fields in LATER_FIELDS.items():
        for field in fields:
            del former[part][field]
    options = former["model"]["options"]
    # `code_flow` had that from its first day on.
    kept = ("code_network",) if name == "code_flow" else ()
    kept += OF_FLOW if name in ("code_flow", "latent_flow") else ()
    former["model"]["options"] = {
        x: value for x, value in options.items() if x not in LATER_OPTIONS or x in kept
    }
    assert old_configs.upgraded(former) == wanted != former


@pytest.mark.parametrize("name", [x for x in models.MODELS if x not in LATER_MODELS])
def test_a_model_keeps_what_it_read_and_nothing_else(name):
    config = base.parse_arg(base.get_config(), name)
    wanted = workdirs.resolved(config)
    wanted["model"]["options"] = {
        x: value if x in LATER_OPTIONS else changed(value)
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
        # Plans had no contrastive code then.
        and spec.model not in (*LATER_MODELS, "contrastive")
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
