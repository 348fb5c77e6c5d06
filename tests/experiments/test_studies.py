"""Studies: the runs of models side by side, the lines of tables, guidance."""

import json

import jax
import numpy as np
import pandas as pd
import pytest

from experiments.drawing import comparison
from experiments.running import workdirs
from experiments.studies import progress, tables
from experiments.studies.comparison import COLUMNS, STUDIES, layered, line
from experiments.studies.guidance import guided_config, strengths_of
from mmvae_jax import models
from mmvae_jax.errors import UsageError


@pytest.mark.slow
def test_runs_of_the_comparison_have_equal_data_steps_and_parameters():
    made = dict(layered("somewhere"))
    shapes = {f"m{i}": (16, 16, 3) for i in range(5)}
    sizes, settings = {}, set()
    for name, config in made.items():
        model = models.make_model(config, shapes)
        leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
        sizes[name] = sum(leaf.size for leaf in leaves)
        settings.add((str(config.data), str(config.train), str(config.sweep.seed)))
        is_layered = config.modality.network == "layered"
        assert is_layered == name.partition("_")[2].startswith("layered")
    assert len(settings) == 1
    of_layers = [size for name, size in sizes.items() if "layered" in name]
    assert max(of_layers) < 1.004 * min(of_layers)
    assert max(sizes.values()) < 1.14 * min(sizes.values())


def test_rows_are_of_members_that_did_not_diverge():
    config = dict(layered("data"))["crmvae"]
    members = [
        {"finite": finite, "metrics": {f"eval/{tag}": value for tag in COLUMNS}}
        for finite, value in ((True, 1.0), (False, np.nan), (True, 3.0))
    ]
    members[0]["metrics"]["eval/elbo"] = None  # of an undefined value
    found = line("crmvae", config, {"members": members})
    assert found["num_seeds"] == 2 and found["beta"] == 0.3
    assert found["swd mean"] == 2.0
    assert found["swd std"] == pytest.approx(np.sqrt(2), 1e-3)
    assert np.isnan(found["elbo mean"])


def test_runs_at_equal_networks_are_chosen_by_digits_that_are_not_judged():
    summaries = {}

    def runs():
        return dict(STUDIES["in_place"].runs("data", summaries))

    while left := runs().keys() - summaries.keys():
        (name,) = left if len(left) == 1 else [min(left)]
        config = runs()[name]
        is_choosing = name.startswith("choose_")
        assert bool(config.data.validation) == is_choosing
        members = [
            {"beta": beta, "finite": beta < 1, "metrics": {}}
            for beta in config.sweep.beta
        ]
        for member in members:
            # Of a member that has diverged it says nothing.
            is_spatial = "mmvae_plus" in name
            score = member["beta"] + (("conv" in name) != is_spatial)
            # Unimodal VAEs are chosen by the least SWD.
            member["metrics"]["eval/coherence/leave_one_out"] = score
            member["metrics"]["eval/swd"] = 9 - score
        summaries[name] = {"members": members}
    made = runs()
    assert [n for n in made if n.startswith("choose_mopoe")] == [
        "choose_mopoe_spatial",
        "choose_mopoe_conv",
    ]
    judged = {n: c for n, c in made.items() if STUDIES["in_place"].is_judged(n)}
    assert len(judged) == 17
    for name, config in judged.items():
        if name != "code_flow":
            # A model with shared and private vectors selects its own networks.
            network = "spatial" if name == "mmvae_plus" else "conv"
            assert config.modality.network == network
            assert config.sweep.beta == (0.5,)
        assert len(config.sweep.seed) == 3 and not config.data.validation
        has_flows = name in ("code_flow", "latent_flow")
        assert (config.eval.sampler == "prior") == has_flows
        assert config.train.num_steps == judged["code_flow"].train.num_steps


def test_step_times_are_of_the_models_of_the_comparison():
    study = STUDIES["times"]
    made = dict(study.runs("data", {}, {}))
    summary = {"members": [], "step_seconds": 0.25, "num_parameters": 7}
    found = line("mopoe", made["mopoe"], summary, study.columns, study.totals)
    assert (found["step_seconds"], found["num_parameters"]) == (0.25, 7)
    judged = [n for n in made if not n.startswith("choose_")]
    assert {"code_flow", "unimodal", "mopoe"} <= set(judged) and len(judged) == 17
    config = made["code_flow"]
    shares = config.model.options.stage_shares
    # Every stage has a call beside the first one, which compiles.
    steps = [share * config.train.num_steps for share in shares]
    assert all(num > config.train.log_every_steps for num in steps)


def test_models_of_an_earlier_table_are_not_trained_again(tmp_path):
    study, summary = STUDIES["in_place"], {"members": [{"finite": True, "metrics": {}}]}
    known_config = dict(study.runs("data", {}, {}))["choose_mopoe_conv"]
    path = tmp_path / "known.csv"
    tables.write(path, [line("mopoe", known_config, summary, study.columns)])
    known = tables.read(path, study.columns)
    made = dict(study.runs("data", {}, known))
    # The networks of the table are those of the others, whose runs need no other.
    assert {"mopoe", "choose_crmvae_conv", "choose_jnf_conv"} <= made.keys()
    assert not {"choose_mopoe_conv", "choose_crmvae_spatial"} & made.keys()
    assert made["mopoe"].sweep.beta == (0.1,)
    members = [
        {"beta": beta, "finite": True, "metrics": {"eval/coherence/leave_one_out": 1}}
        for beta in (0.5,)
    ]
    summaries = {"choose_jnf_conv": {"members": members}}
    assert dict(study.runs("data", summaries, known))["jnf"].sweep.beta == (0.5,)
    members[0]["finite"] = False
    with pytest.raises(UsageError, match="no member of choose_jnf_conv has a"):
        dict(study.runs("data", summaries, known))
    for text in ("run,swd mean\nmopoe,1\n", "", "run\nmopoe\n"):
        path.write_text(text)
        with pytest.raises(UsageError, match="is not a table of this study"):
            tables.read(path, study.columns)
    with pytest.raises(UsageError, match="cannot be read"):
        tables.read(tmp_path / "none.csv", study.columns)


def test_a_run_is_evaluated_at_another_strength_of_guidance(tmp_path, tiny_config):
    def recorded(name):
        folder = tmp_path / name
        folder.mkdir()
        config = workdirs.resolved(tiny_config(name))
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    found = guided_config(recorded("code_flow"), 3.5, 7)
    assert found.model.options.guidance == 3.5 and found.eval.num_examples == 7
    with pytest.raises(UsageError, match="mopoe, which has no .* code_flow or latent"):
        guided_config(recorded("mopoe"), 3.5, 0)
    with pytest.raises(UsageError, match="holds no run"):
        guided_config(tmp_path, 3.5, 0)
    assert strengths_of("1,2.5") == [1.0, 2.5]
    with pytest.raises(UsageError, match="give numbers with commas"):
        strengths_of("1,much")


def test_a_figure_has_a_point_for_each_model_and_strength(tmp_path):
    columns = {
        f"{tag} {kind}": [0.5, 0.25]
        for tag in (*STUDIES["in_place"].columns, "guidance")
        for kind in ("mean", "std")
    }
    table = pd.DataFrame({"run": ["code_flow", "mopoe"], "guidance": [1, 2], **columns})
    table.to_csv(tmp_path / "table.csv")
    made = comparison.draw(*(tmp_path / x for x in ("table.csv", "a.png", "table.csv")))
    alone = comparison.draw(tmp_path / "table.csv", tmp_path / "b.png")
    assert made.read_bytes() != alone.read_bytes()


def test_evaluations_while_training_have_a_line_each(tmp_path):
    member = {"member": 0, "beta": 1.0, "learning_rate": 0.1, "seed": 0}
    lines = [
        {"step": 5, **member, "train/loss": 2.0},
        {"step": 5, **member, "eval/swd": 7.0},
        {"step": 9, **member, "eval/swd": 6.00004},
        # ... and another command's, of the same step.
        {"step": 9, **member, "eval/coherence/joint": 0.5},
    ]
    with pytest.raises(UsageError, match="no run in it has been evaluated"):
        progress.rows(tmp_path)
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "metrics.jsonl").write_text(text)
    found = progress.rows(tmp_path)
    assert [(row["run"], row["step"]) for row in found] == [
        *(("a", 5), ("a", 9)),
        *(("b", 5), ("b", 9)),
    ]
    assert found[0]["swd"] == 7.0 and found[0]["coherence/joint"] == ""
    assert found[1]["swd"] == 6.0 and found[1]["coherence/joint"] == 0.5
    names = ["run", "step", "beta", "learning_rate", "seed"]
    assert list(found[0]) == [*names, *progress.COLUMNS]
