"""The list of checks of a config, and the names that its lines say."""

import inspect
import pickle
import re

import pytest

from configs import base, smoke
from mmvae_jax.errors import ArgumentError, UsageError, fields_of
from mmvae_jax.interface import checks


def test_every_check_is_of_a_field_of_the_base_config():
    config = base.get_config()
    for one in (*checks.CHECKS, *checks.CHECKS_WITH_DATA):
        section, field = one.field.split(".")
        assert field in config[section], one.field


def test_rules_take_the_value_and_with_data_the_run_too():
    for rows, num in ((checks.CHECKS, 1), (checks.CHECKS_WITH_DATA, 2)):
        assert {len(inspect.signature(one.rule).parameters) for one in rows} == {num}


def test_the_configs_pass():
    assert set(checks.check(base.get_config())) == set(base.get_config().eval.metrics)
    assert set(checks.check(smoke.get_config())) == set(smoke.get_config().eval.metrics)


def test_a_data_set_may_lack_fields():
    config = base.get_config()
    del config.data.seed
    checks.check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": ()}, "config.sweep.beta is empty; give at least one value"),
        ({"seed": ()}, "config.sweep.seed is empty; give at least one value"),
        (
            {"beta": (1.0, 3.0, 1.0)},
            "config.sweep.beta repeats a value: (1.0, 3.0, 1.0)",
        ),
        ({"seed": (0, 0)}, "config.sweep.seed repeats a value: (0, 0)"),
        ({"beta": (True,)}, "config.sweep.beta holds True, not a number"),
        ({"beta": (-1.0,)}, "config.sweep.beta must be >= 0 and finite, got -1.0"),
        (
            {"beta": (float("inf"),)},
            "config.sweep.beta must be >= 0 and finite, got inf",
        ),
        (
            {"beta": (1.0, float("nan"))},
            "config.sweep.beta must be >= 0 and finite, got nan",
        ),
        (
            {"learning_rate": (0.0,)},
            "config.sweep.learning_rate must be > 0 and finite, got 0.0",
        ),
        *(
            (
                {"seed": (0, seed)},
                "config.sweep.seed must be an integer >= 0 and below 2**32, "
                f"got {seed}",
            )
            for seed in (-1, 0.5, 2**32)
        ),
    ],
)
def test_errors_of_grids(changes, message):
    config = base.get_config()
    config.sweep = config.sweep.to_dict() | changes
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        checks.check(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "classifier.network",
            "svm",
            "unknown config.classifier.network 'svm'; ",
        ),
        ("matcher.network", "svm", "unknown config.matcher.network 'svm'; .*conv"),
        ("matcher.batch_size", 1, "config.matcher.batch_size must be >= 2, got 1"),
        *(
            (
                f"{section}.learning_rate",
                value,
                f"config.{section}.learning_rate must be > 0 and finite, got {value}",
            )
            for section in ("classifier", "matcher")
            for value in (0.0, -0.1, float("inf"), float("nan"))
        ),
        ("eval.proposal", "prior", "unknown config.eval.proposal 'prior'; .*mixture"),
        (
            "eval.sampler",
            "kde",
            "unknown config.eval.sampler 'kde'; .*prior, gmm, flow",
        ),
        (
            "eval.sampler_components",
            (),
            "config.eval.sampler_components is empty; give",
        ),
        (
            "eval.sampler_components",
            (5, 0),
            "config.eval.sampler_components must be of whole numbers >= 1, got 0",
        ),
        ("eval.sampler_steps", 0, "config.eval.sampler_steps must be >= 1, got 0"),
        (
            "eval.metrics",
            ("elbo", "psnr"),
            "unknown metric 'psnr' in config.eval.metrics; choose from .*elbo",
        ),
        ("train.mapping", "pmap", "unknown config.train.mapping 'pmap'; choose one of"),
        (
            "train.precision",
            "half",
            "unknown config.train.precision 'half'; choose one of default, .*",
        ),
        (
            "data.missing_test",
            1.0,
            r"config.data.missing_test must be in \[0, 1\)",
        ),
        (
            "model.name",
            "vae",
            "unknown model 'vae' in config.model.name; choose",
        ),
    ],
)
def test_errors_of_fields(field, value, message):
    config = base.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UsageError, match=f"^{message}"):
        checks.check(config)


def fail(size):
    raise ArgumentError("{size}={!r} and {other}: not {}", "a {b}", size)


def test_arguments_are_called_by_the_fields_they_come_from():
    with pytest.raises(ValueError, match=r"^size='a \{b\}' and other: not \{x\}$") as e:
        fail("{x}")
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    message = r"^config.s.size='a \{b\}' and config.s.other: not 3$"
    with pytest.raises(UsageError, match=message), fields_of("config.s"):
        fail(3)


def test_a_line_is_one_line_whatever_names_hold():
    name = "a\nb\r\udc80\x1b[0m é"
    shown = "a\\nb\\r\\udc80\\x1b[0m é"
    assert str(UsageError(f"{name} is missing")) == f"{shown} is missing"
    assert str(ArgumentError("{size} of {}", name)) == f"size of {shown}"
