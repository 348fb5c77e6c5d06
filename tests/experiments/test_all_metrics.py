"""Runs with all metrics: each gives values or reasons, or says why it is left out."""

import json
import re

import pytest
from small_tasks import WITH_ALL_METRICS

from configs import discrete
from mmvae_jax.evaluation.metrics import METRICS

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.slow

# Of both data sets: there are no attributes and no captions.
LEFT_OUT = {"attributes", "one_to_many", "captions", "fid", "conditional_fid"}


def has_tag(name, tags):
    """Whether there is a tag of one of the columns of a metric."""
    forms = [
        re.escape(f"eval/{column.tag}").replace(r"\*", ".+")
        for column in METRICS[name].columns
    ]
    return any(re.fullmatch(form, tag) for form in forms for tag in tags)


@pytest.mark.parametrize("name", ["discrete", "arrays"])
def test_every_metric_has_values_or_a_reason(
    name, array_config, data_dir, run_here, tmp_path
):
    config = discrete.get_config("mopoe") if name == "discrete" else array_config()
    config.update_from_flattened_dict(
        WITH_ALL_METRICS | {"data.data_dir": str(data_dir)}
    )
    if name == "discrete":
        config.data.repeats = 1
    # Weights that do not exist: nothing is to be fetched from the web.
    config.eval.inception_weights = str(tmp_path / "none.pth")
    code, stdout = run_here(config, tmp_path / "run")
    assert code == 0 and " failed (" not in stdout
    left_out = set(re.findall(r"^(\w+) cannot be computed: .+", stdout, re.MULTILINE))
    assert left_out == LEFT_OUT
    asked = json.loads((tmp_path / "run" / "config.json").read_text())
    assert set(asked["eval"]["metrics"]) == METRICS.keys() - LEFT_OUT
    (member,) = json.loads((tmp_path / "run" / "summary.json").read_text())["members"]
    values, reasons = member["metrics"], member.get("undefined", {})
    for metric in asked["eval"]["metrics"]:
        assert has_tag(metric, values), metric
    unknown = {tag for tag, value in values.items() if value is None}
    assert unknown == reasons.keys() and all(reasons.values())
    # Images are smaller than the windows of SSIM, and few steps may train no matcher.
    others = {tag for tag in unknown if not tag.startswith("eval/matching/")}
    assert others and all(tag.startswith("eval/image_errors/ssim/") for tag in others)
