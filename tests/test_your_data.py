"""docs/your_data.md: its code and its commands are run, and come to what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/your_data.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(folder, *command):
    """What a command prints in a folder that holds configs/ of the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode()


def test_the_page_comes_to_what_it_says(tmp_path):
    assert sum(bool(line.strip()) for own in CODE for line in own.splitlines()) <= 55
    printed = run(tmp_path, sys.executable, "-c", "\n".join(CODE))
    tried, chosen = re.search(r"({.*}) (\S+)\n", printed).groups()
    densities = {float(x): float(y) for x, y in re.findall(r"([\d.]+): '(\S+)'", tried)}
    assert densities[float(chosen)] == max(densities.values()), printed
    assert min(densities) < float(chosen) < max(densities), "the grid is wide enough"
    assert f"likelihood_scale={chosen} " in PAGE, "of the commands"
    ours, means, regressions = map(float, re.findall(r"RMSE (\S+)", printed))
    assert ours < 0.9 * regressions < 0.9 * means, printed
    assert float(re.search(r"accuracy (\S+)", printed)[1]) > 0.85, printed
    spread, total = re.findall(r"\['(\S+)', '(\S+)'\]", printed)
    assert float(spread[1]) < 0.8 < 0.85 < float(total[1]), printed
    assert (tmp_path / "your_data.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    commands = re.search(r"```\n(python -m experiments.*?)```", PAGE, re.DOTALL)[1]
    run(tmp_path, "bash", "-ec", commands.replace("python", sys.executable))
    test, filled = (
        dict(np.load(tmp_path / f"{own}.npz")) for own in ("test", "filled")
    )
    assert filled["embed/mean"].shape == (len(test["labels"]), 8)
    for i, m in enumerate(("mean", "error", "worst")):
        is_there = test["observed"][:, i]
        given = test[m][is_there].astype(np.float32)
        np.testing.assert_array_equal(filled[f"impute/mean/{m}"][is_there], given)
        assert (filled[f"impute/spread/{m}"][~is_there] > 0).all()
