import pytest

from mmvae_jax.interface.progress import ProgressBar


def test_seconds_of_a_step_are_those_after_the_first_call():
    with ProgressBar(100, 400, 8, is_shown=False) as bar:
        assert bar.step_seconds is None
        bar.update(110, 7.0)  # compiles
        assert bar.step_seconds is None
        bar.update(120, 0.5)
        bar.update(150, 0.1)
        assert bar.step_seconds == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)
