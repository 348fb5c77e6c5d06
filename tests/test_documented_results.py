"""The tables of the documents have the numbers of the result files that they name."""

import csv
import re
from pathlib import Path

import pytest

from mmvae_jax.models import MODELS

ROOT = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"[−-]?\d+(?:\.\d+)?")
BY_SIZE = tuple(f"coherence/size_{k}" for k in (1, 2, 3, 4))
# Title of a column -> tag in results/in_place.csv.
IN_PLACE = {
    "given one": "coherence/size_1",
    "given all others": "coherence/leave_one_out",
    "... second classifier": "second_judge/coherence/leave_one_out",
    "... matching": "matching/leave_one_out",
    "joint, prior": "coherence/joint",
    "joint, mixture": "gmm/coherence/joint",
    "SWD, prior": "swd",
    "SWD, mixture": "gmm/swd",
    "SWD, given all others": "conditional_swd/leave_one_out",
    "SWD, reconstruction": "conditional_swd/reconstruction",
    "Fréchet, prior": "frechet_classifier",
    "Fréchet, mixture": "gmm/frechet_classifier",
    "Fréchet, given all others": "conditional_frechet/leave_one_out",
    "coverage, prior": "precision_recall/prior/coverage",
    "coverage, given all others": "precision_recall/leave_one_out/coverage",
    "ms a sample": "cost/sample",
}
LAYERED = {
    "leave-one-out coherence": "coherence/leave_one_out",
    "from one modality": "coherence/size_1",
    "joint": "coherence/joint",
    "swd": "swd",
    "Fréchet (classifier)": "frechet_classifier",
    "ELBO": "elbo",
    "log-likelihood": "log_likelihood",
}
GUIDANCE = {
    "leave-one-out": "coherence/leave_one_out",
    "from one": "coherence/size_1",
    "joint": "coherence/joint",
    "SWD": "swd",
    "Fréchet, prior": "frechet_classifier",
    "Fréchet, given all others": "conditional_frechet/leave_one_out",
}
STEPS_OF_TEN_EPOCHS = 2_340
RUNS = {"MoPoE-VAE": "mopoe", "MVTCAE": "mvtcae", "`code_flow`": "code_flow"}


def tables(page):
    """The tables of a page of docs: lists of rows, title of the column -> cell."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        first, _, *others = [
            [cell.strip().replace("**", "") for cell in line.strip("|\n").split("|")]
            for line in block.splitlines()
        ]
        yield [dict(zip(first, row, strict=True)) for row in others]


def results(name):
    with (ROOT / "results" / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def assert_shown(cell, values, scale=1.0):
    """The numbers of a cell are the values, rounded to the places that it shows."""
    shown = [x.replace("−", "-") for x in NUMBER.findall(cell)]
    assert len(shown) == len(values), (cell, values)
    for text, value in zip(shown, values, strict=True):
        places = len(text.partition(".")[2])
        # Result files have four places.
        error = abs(float(text) - scale * float(value))
        assert error <= 0.5 * 10**-places + 1e-4 * scale, (cell, values)


def assert_spreads(row, columns, found):
    """The cells of a row are means and deviations of `found`; without a value, "–"."""
    for title, tag in columns.items():
        if title in row:
            own = [found[f"{tag} {which}"] for which in ("mean", "std")]
            own = [x for x in own if x != "nan"]
            assert (row[title] == "–") == (not own), (title, row[title])
            assert_shown(row[title], own)


@pytest.mark.parametrize("title", ["given one", "SWD, prior", "Fréchet, prior"])
def test_models_in_place(title):
    (table,) = (t for t in tables("better.md") if title in t[0] and "" in t[0])
    runs = {row["run"]: row for row in results("in_place.csv")}
    for row in table:
        name, beta = re.fullmatch(r"`(\w+)`, β = (\S+)", row[""]).groups()
        own = runs.pop(name)
        assert float(beta) == float(own["beta"]) and len(row) > 4
        assert row.keys() <= IN_PLACE.keys() | {""}
        assert_spreads(row, IN_PLACE, own)
    assert not runs  # every run is in the table


def test_models_with_a_layered_decoder():
    title = "model, decoder of layers for all"
    (table,) = (t for t in tables("better.md") if title in t[0])
    runs = results("better.csv")
    assert len(table) == len(runs)
    for row, own in zip(table, runs, strict=True):
        name = re.match(r"`(\w+)`|\.\.\. without consistency", row[title])[1]
        assert own["run"].startswith(name or "contrastive_layered_no_consistency")
        assert float(row["β"]) == float(own["beta"])
        assert_spreads(row, LAYERED, own)


def test_guidance_on_held_out_digits():
    (table,) = (t for t in tables("better.md") if "guidance" in t[0])
    for row, own in zip(table, results("guidance_held_out.csv"), strict=True):
        assert float(row["guidance"]) == float(own["guidance"])
        assert_spreads(row, GUIDANCE, own)


def test_the_published_size():
    (table,) = (t for t in tables("figures.md") if "epochs" in t[0])
    runs = {(row["run"], int(row["step"])): row for row in results("published.csv")}
    name = ""
    for row in table:
        name = row[""] or name
        if name not in RUNS:
            continue  # published numbers
        tens, left = divmod(int(row["epochs"]), 10)
        own = runs.pop((RUNS[name], 8_000 if left else tens * STEPS_OF_TEN_EPOCHS))
        given = [title for title in row if "/ 4" in title or title == "coherence"][0]
        assert_shown(row[given], [own[tag] for tag in BY_SIZE], 100)
        assert_shown(row["joint"], [own["coherence/joint"]], 100)
        assert_shown(row["SWD, prior"], [own["swd"]])
        shown = row["SWD, given all others"]
        assert_shown(shown, [own["conditional_swd/leave_one_out"]])
        assert_shown(row["Fréchet, prior"], [own["frechet_classifier"]])
    assert not runs


def family(scale):
    """Rows of the family's figures in place: (model, metric) -> beta -> row."""
    found = {}
    for figure in ("figure_family.csv", "figure_inputs.csv"):
        for row in results(f"{scale}/{figure}"):
            if "Translated" not in row["dataset"]:
                place = row["model"], row["metric"].removeprefix("eval/")
                found.setdefault(place, {})[float(row["beta"])] = row
    return found


@pytest.mark.parametrize(
    ("scale", "title"),
    [("figures_demo", "PolyDigits"), ("figures_cpu", "PolyMNIST, cpu scale")],
)
def test_the_family(scale, title):
    (table,) = (t for t in tables("figures.md") if title in t[0])
    found, labels = family(scale), {spec.label: name for name, spec in MODELS.items()}
    names = {model for model, _ in found}
    for row in table:
        model = labels[row[title]]
        names.remove(model)

        def assert_swd(cell, beta, model=model):
            own = found[model, "swd"][float(beta)]
            assert_shown(cell, [own["mean"], own["std"]])

        best, beta = re.fullmatch(r"(.*) \((.*)\)", row["best SWD (β)"]).groups()
        assert_swd(best, beta)
        means = {b: float(x["mean"]) for b, x in found[model, "swd"].items()}
        assert means[float(beta)] == min(means.values())
        if row["at β"] == "–":
            assert model == "unimodal"
            continue
        assert_swd(row["SWD there"], row["at β"])
        (given,) = (row[name] for name in row if name.startswith("coherence"))
        own = [
            found[model, tag][float(row["at β"])]
            for tag in BY_SIZE[: given.count("/") + 1]
        ]
        assert_shown(given, [x["mean"] for x in own], 100)
    assert names <= {"unimodal"}  # every other model is in the table
