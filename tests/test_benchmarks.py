"""What the benchmarks count and write; their times are no test."""

import contextlib
import json
import types

import jax
import numpy as np
import pytest

from benchmarks import embedding, peer, precision, reports, step, sweep
from configs import smoke
from mmvae_jax import models
from mmvae_jax.errors import UsageError
from mmvae_jax.training.sweep import grid


def operations():
    config = smoke.get_config()
    return sweep.build(config, grid(config.sweep)[:1], "auto").operations()


def test_operations_are_counted_where_only_clients_of_cpus_count(monkeypatch):
    counted = operations()
    config = smoke.get_config()
    # Products of two encoders and decoders, forwards, and backwards twice; the first
    # layers need no derivative in the pixels.
    width, pixels = 16, 8 * 8 * 3
    products = 2 * 2 * config.train.batch_size * width * pixels * (2 + 3)
    assert 1 < counted / products < 2
    # As with the plugin for CUDA, whose lowered programs have no count.
    count = jax.stages.Lowered.cost_analysis

    def on_cpus_alone(lowered):
        return count(lowered) if jax.config.jax_default_device else None

    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", on_cpus_alone)
    assert operations() == counted


def test_no_cpu_to_count_for_is_said_in_one_line(monkeypatch):
    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", none)
    with pytest.raises(UsageError, match="add ',cpu'"):
        operations()


def test_a_machine_without_git_writes_its_results(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    reports._commit.cache_clear()
    reports.write(tmp_path / "out.json", "step", [{"seconds": 1.0}])
    reports._commit.cache_clear()
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["rows"] == [{"seconds": 1.0}]
    assert found["versions"]["commit"] == "unknown"


def test_a_peer_that_cannot_be_imported_is_left_out(monkeypatch, tmp_path):
    for name in ("torch", "multivae"):
        (tmp_path / f"{name}.py").write_text("import something_that_is_missing\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    peer.why_not.cache_clear()
    reason = peer.why_not()
    peer.why_not.cache_clear()
    assert reason.startswith("cannot be imported: ModuleNotFoundError")


class Cut(Exception):
    """The command ends here."""


def once(result):
    """A function that is cut short in its second call."""
    results = iter([result])

    def measure(*arguments, **options):
        for found in results:
            return found
        raise Cut

    return measure


def cut_step(monkeypatch, flags):
    monkeypatch.setattr(step, "measure", once({"model": "mvae"}))
    step.main()


def cut_embedding(monkeypatch, flags):
    monkeypatch.setattr(embedding, "measure", once({"model": "mvae"}))
    monkeypatch.setattr(
        "sys.argv", [*flags, "--examples=1", "--models", "mvae", "mvae"]
    )
    embedding.main()


def cut_precision(monkeypatch, flags):
    monkeypatch.setattr(precision, "train_in", once((1.0, np.zeros(3))))
    monkeypatch.setattr(precision.datasets, "prepare", lambda data: None)
    dataset = types.SimpleNamespace(name="none")
    monkeypatch.setattr(precision.prepared, "load", lambda folder: dataset)
    precision.main()


def cut_sweep(monkeypatch, flags):
    def build(config, members, mapping):
        def way(num):
            return 1.0

        way.program = types.SimpleNamespace(_cache_size=lambda: 1)
        way.megabytes = cut if mapping == "map" else lambda: 1.0
        return way

    def cut():
        raise Cut

    monkeypatch.setattr(sweep, "build", build)
    monkeypatch.setattr("sys.argv", [*flags, "--mappings", "vmap", "map"])
    sweep.main()


@pytest.mark.parametrize("cut", [cut_step, cut_embedding, cut_precision, cut_sweep])
def test_every_row_is_written_when_it_is_measured(cut, monkeypatch, tmp_path):
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["benchmark", f"--out={out}"])
    monkeypatch.setattr(reports, "own_programs", contextlib.nullcontext)
    with pytest.raises(Cut):
        cut(monkeypatch, ["benchmark", f"--out={out}"])
    assert len(json.loads(out.read_text())["rows"]) == 1


def test_parameters_are_on_the_device_once():
    images = {f"m{i}": np.zeros((256, 28, 28, 3), np.uint8) for i in range(2)}
    for leaf in jax.tree.leaves(step.Ours("mvae", images).params):
        assert isinstance(leaf, jax.Array)


@pytest.mark.parametrize("arg", ["code_flow", "jnf", "mopoe,network=resnet"])
def test_the_smoke_config_takes_other_networks(arg):
    shapes = {f"m{i}": (8, 8, 3) for i in range(2)}
    model = models.make_model(smoke.get_config(arg), shapes)
    jax.eval_shape(model.init, jax.random.key(0))
