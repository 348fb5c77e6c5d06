"""Runs on digits in quarters: every metric has a value, or a reason."""

import json

import pytest
from small_tasks import WITH_ALL_METRICS

from configs import polydigits, quadrant
from experiments.drawing.page import render

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.slow


def smallest(made, data_dir, **changes):
    """A config as small as it can be, with all metrics that the data allow."""
    settings = WITH_ALL_METRICS | {
        "data.data_dir": str(data_dir),
        "data.num_modalities": 2,
        "data.pairings": 1,
        "matcher.num_steps": 200,
    }
    made.update_from_flattened_dict(settings | changes)
    return made


def test_every_metric_of_labels_as_modalities(data_dir, run_here, tmp_path):
    made = smallest(quadrant.get_config("mopoe"), data_dir)
    code, stdout = run_here(made, tmp_path / "run")
    assert code == 0
    (member,) = json.loads((tmp_path / "run" / "summary.json").read_text())["members"]
    values = member["metrics"]
    for case in ("quadrant_given_digit", "digit_given_quadrant"):
        for score in ("agreement", "chance", "total_variation"):
            assert 0 <= values[f"eval/one_to_many/{score}/{case}"] <= 1
    unknown = {tag for tag, value in values.items() if value is None}
    assert unknown <= member["undefined"].keys()
    # Labels are read off tokens without a mistake, and only off those that show them.
    assert values["eval/attribute_accuracy/quadrant/quadrant"] == 1
    assert "eval/attribute_accuracy/digit/quadrant" not in values
    assert "eval/coherence/leave_one_out/quadrant" not in values
    assert not any("captions/" in tag for tag in values)
    assert "captions cannot be computed" in stdout and "one-to-many" in stdout
    text = render(tmp_path / "run").replace("\xa0", " ")
    assert "one-to-many agreement" in text and "agreement by condition" in text
    assert "quadrant_given_digit" in text


def test_private_quarters_leave_nothing_open(data_dir, run_here, tmp_path):
    made = polydigits.get_config("mmvae_plus")
    made = smallest(made, data_dir, **{"data.quadrant": "private"})
    code, stdout = run_here(made, tmp_path / "run")
    assert code == 0
    (member,) = json.loads((tmp_path / "run" / "summary.json").read_text())["members"]
    tags = member["metrics"]
    assert "one_to_many cannot be computed: metric 'one_to_many' needs" in stdout
    assert "(quadrant_m0: shown by m0; quadrant_m1: shown by m1)" in stdout
    assert "eval/probe/private/m0/attribute_quadrant_m0/linear" in tags
    assert {"eval/probe/shared/own/mlp", "eval/probe/private/own/mlp"} <= tags.keys()
    assert "eval/attribute_coherence/reconstruction/m0" in tags
    assert "eval/attribute_coherence/leave_one_out" not in tags
