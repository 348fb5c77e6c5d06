"""Additions as the documents describe them, and nothing else, in a copy of the tree.

A model, a network, a metric and a data set are added to one copy; each is trained or
computed, is in the tables and the report, and the tests of models, networks, metrics
and figures pass.
"""

import json
import re

import numpy as np
import pytest
from contributions import (
    blocks_of,
    copy_tree,
    files_of,
    insert,
    python,
    write_files,
)

pytestmark = pytest.mark.slow
DOCS_ROW = "| `up_to_pairs` | L_S of all subsets of one and two | this project |\n"
BARS = files_of("datasets/README.md")
METRIC = files_of("docs/adding.md", "## A metric")
NETWORK = {
    name: text
    for name, text in files_of("docs/adding.md", "## A network").items()
    if "/networks/" in name
}
NETWORK_ROW = "| `linear` | everything | linear functions | none |\n"
README_ROW = (
    "| `up_to_pairs` | up to pairs | – | The joint posterior is the mixture of single "
    "experts and of pairs. | `mmvae_jax` |\n"
)


def add_model(tree):
    """A function, its row in the table, and its row in the documents."""
    function, row = blocks_of("docs/adding.md", "## A model")[:2]
    subsets = tree / "mmvae_jax" / "mathematics" / "subsets.py"
    subsets.write_text(f"{subsets.read_text()}\n\n{function}")
    table = tree / "mmvae_jax" / "models" / "__init__.py"
    insert(table, row, before='    "custom": Model(')
    insert(tree / "docs" / "models.md", DOCS_ROW, before="| `custom` |")
    insert(tree / "README.md", README_ROW, before="| `custom` |")


def add_metric(tree):
    """A file, its import and its row in the table."""
    write_files(tree, METRIC)
    _, row = blocks_of("docs/adding.md", "## A metric")[:2]
    table = tree / "mmvae_jax" / "evaluation" / "metrics" / "__init__.py"
    insert(table, "    diversity,\n", before="    elbo,\n")
    insert(table, row.partition("\n")[2], before='    "elbo": Metric(')


def add_network(tree):
    """A file, its import, its row in the table, and its row in the documents."""
    write_files(tree, NETWORK)
    _, row = blocks_of("docs/adding.md", "## A network")[:2]
    table = tree / "mmvae_jax" / "networks" / "__init__.py"
    insert(table, "linear, ", before="text, vectors")
    insert(table, row.partition("\n")[2], before='    "text_conv": Network(')
    insert(tree / "docs" / "models.md", NETWORK_ROW, before="| `text_conv` | tokens")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The copy of the tree with all four additions."""
    tree = copy_tree(tmp_path_factory.mktemp("contributor"))
    add_model(tree)
    add_network(tree)
    add_metric(tree)
    write_files(tree, BARS)
    return tree


@pytest.fixture(scope="module")
def call(tree):
    """(arguments of python) -> what it prints in the copy; it must succeed."""

    def run(*arguments):
        done = python(tree, *arguments)
        assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="module")
def trained(tree, call):
    """What the run of the model with the metric prints."""
    return call(
        "-m",
        "experiments.run",
        "--config=configs/smoke.py:up_to_pairs",
        "--workdir=runs/mine",
        "--config.data.num_modalities=3",
        "--config.train.num_steps=4",
        "--config.train.eval_every_steps=0",
        "--config.eval.metrics=('elbo','diversity')",
        "--config.classifier.num_steps=4",
        "--config.model.options.subset_estimator=exact",
    )


@pytest.fixture(scope="module")
def report(tree, call, trained):
    """The page of results of that run."""
    call("-m", "experiments.report", "--directory=runs")
    return (tree / "runs" / "report.html").read_text(encoding="utf-8")


def test_a_new_model_and_a_new_metric_are_in_the_table(trained):
    assert "up_to_pairs on polymnist" in trained
    header = [x for x in trained.splitlines() if x.lstrip().startswith("beta")][-1]
    assert {"ELBO", "diversity"} <= set(header.split())


def test_they_are_in_the_report(report):
    assert "up to pairs" in report
    headings = re.findall(r"<th\b[^>]*>\s*([^<]*?)\s*</th>", report)
    assert "diversity\N{NO-BREAK SPACE}↑" in headings


def test_a_new_model_is_in_the_figure_of_the_family(call):
    program = (
        "from experiments.plans import names, plan; "
        "spec = plan.Spec('polymnist', 'up_to_pairs'); "
        "assert spec in plan.family(plan.load_scale('demo')[1]); "
        "colours = [names.model_colour(x) for x in sum(plan.KINDS.values(), ())]; "
        "assert len(set(colours)) == len(colours)"
    )
    call("-c", program)


def test_a_new_metric_is_refused_on_data_without_labels(tree):
    images = np.zeros((20, 8, 8), np.uint8)
    np.savez(tree / "unlabelled.npz", m0=images, m1=images)
    found = python(
        tree,
        "-m",
        "experiments.run",
        "--config=configs/arrays.py",
        "--config.data.path=unlabelled.npz",
        "--workdir=runs/refused",
        "--config.eval.metrics=('diversity',)",
        "--config.train.batch_size=4",
    )
    assert found.returncode == 2
    wanted = "error: metric 'diversity' needs labels, and the data have none: leave it"
    assert wanted in found.stderr and "Traceback" not in found.stderr
    assert not (tree / "runs" / "refused" / "checkpoints").exists()


def test_a_new_network(call):
    program = (
        "import mmvae_jax, numpy as np; "
        "data = {'a': np.eye(20, 4), 'b': np.zeros((20, 8, 8), np.uint8)}; "
        "own = dict(config={'modality.network': 'linear'}, latent_dim=3); "
        "trained = mmvae_jax.fit(data, num_steps=2, batch_size=4, **own); "
        "size = lambda x: sum(y.size for y in __import__('jax').tree.leaves(x)); "
        # Two heads and a decoder, each with biases.
        "n = sum(2 * (f + 1) * 3 + 4 * f for f in (4, 64)); "
        "assert size(trained.params) == n, (size(trained.params), n)"
    )
    call("-c", program)


def test_a_new_data_set(tree, call):
    prepared = call("-m", "experiments.prepare", "--config=configs/bars.py")
    assert prepared.strip().startswith(str(tree / "data" / "bars"))
    call(
        "-m",
        "experiments.run",
        "--config=configs/bars.py:mopoe",
        "--config.train.num_steps=5",
        "--config.train.log_every_steps=1",
        "--workdir=bars/mine",
    )
    summary = json.loads((tree / "bars" / "mine" / "summary.json").read_text())
    (member,) = summary["members"]
    assert member["finite"]
    wrong = python(
        tree,
        "-m",
        "experiments.run",
        "--config=configs/bars.py",
        "--config.data.side=1",
        "--workdir=bars/wrong",
    )
    assert wrong.returncode == 2
    (line,) = wrong.stderr.splitlines()[-1:]
    assert line == "error: config.data.side=1 must be in 2..64"


def test_they_are_as_typed_and_as_clean_as_the_others(call):
    new = sorted(BARS | METRIC | NETWORK)
    files = sorted(METRIC | NETWORK)
    typed = ("datasets/bars", *files, "mmvae_jax/mathematics/subsets.py")
    call("-m", "mypy", "--follow-imports=silent", *typed)
    call("-m", "ruff", "check", *new, "mmvae_jax")
    call("-m", "ruff", "format", "--check", *new, "mmvae_jax")


@pytest.mark.parametrize(
    ("chosen", "paths"),
    [
        ("up_to_pairs", ("models/test_models.py", "models/test_missing.py")),
        ("up_to_pairs", ("training/test_execution.py", "training/test_divergence.py")),
        ("every_model_has or in_the_tables or table_does or lost", ("models",)),
        ("family or prior or custom", ("mathematics/test_subsets.py",)),
        ("row_of_the_table or columns or judges", ("evaluation/test_needs.py",)),
        ("metrics", ("evaluation/test_evaluate.py",)),
        ("table", ("networks/test_networks.py",)),
        (
            "family or planned or listed or fronts or nothing_measured or best_beta",
            tuple(f"experiments/test_{x}.py" for x in ("figures", "drawings", "names")),
        ),
        ("", ("test_architecture.py",)),
        ("table or every_row", ("test_readme.py", "experiments/test_cite.py")),
    ],
)
def test_the_tests_of_models_metrics_and_figures_pass(chosen, paths, call):
    own = (f"tests/{path}" for path in paths)
    common = ("-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", chosen)
    # Those of the new model are all slow ones where models are not listed as fast.
    speed = () if chosen == "up_to_pairs" else ("-m", "not slow")
    call(*common, *speed, *own)
