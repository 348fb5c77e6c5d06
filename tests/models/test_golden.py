"""Training gives the numbers that it gave before it was made faster."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
import make_training_golden as golden  # noqa: E402 (a script beside its file)

EXPECTED = json.loads(golden.PATH.read_text())


def test_no_model_is_lost():
    assert set(EXPECTED) <= set(golden.NAMES)


FAST = ("mopoe",)


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in EXPECTED
    ],
)
def test_losses_and_terms_of_twenty_steps(name):
    found = golden.train_one(name)
    assert set(found) == set(EXPECTED[name])
    for tag, values in EXPECTED[name].items():
        # Sums are taken in another order by other compilers and machines.
        np.testing.assert_allclose(found[tag], values, rtol=1e-4, atol=1e-4)
