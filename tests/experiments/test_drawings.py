"""The drawn figures: what they show are the summaries' numbers, and no others."""

import ast
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from experiments.drawing import figure_captions, panels, paper_figures
from experiments.judging import paper
from experiments.plans import plan, runs, tables
from experiments.plans.names import model_colour, model_label
from experiments.plans.plan import Spec
from experiments.plans.tables import show_beta
from mmvae_jax.models import MODELS
from mmvae_jax.training import log
from mmvae_jax.training.sweep import Member

COHERENCE = "eval/coherence/leave_one_out"
MATCHING = "eval/matching/leave_one_out"
OVER_BETA = {  # figure -> the tags of its rows of panels, the models of its lines
    "2": (["eval/frechet_classifier/m0", "eval/swd/m0"], plan.MODELS),
    "4": ([COHERENCE], plan.MULTIMODAL),
    "6": (["eval/linear_probe"], plan.MODELS),
    "7": (["eval/log_likelihood"], plan.MODELS),
}


# Quick to draw; the others are drawn by slow tests.
FAST = ("2", "3", "9", "matching")
EVERY = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in paper_figures.DRAWINGS
]


def metrics_of(rng, names, is_complete, has_fid):
    """Plausible numbers, all different."""
    kinds = ["frechet_classifier", "swd", *(["fid"] if has_fid else [])]
    found = {f"eval/reconstruction/{name}": -400.0 for name in names}
    for kind in kinds:
        values = {f"eval/{kind}/{name}": 100 + 50 * rng.random() for name in names}
        found |= {f"eval/{kind}": float(np.mean(list(values.values()))), **values}
    if is_complete:
        found[COHERENCE] = rng.random()
        found[MATCHING] = rng.random()
        for given in range(1, len(names)):
            found[f"eval/coherence/size_{given}"] = rng.random()
        found["eval/linear_probe"] = rng.random()
        found["eval/log_likelihood"] = -2000 - 100 * rng.random()
        found |= {f"eval/classifier_accuracy/{name}": 0.96 for name in names}
    return found


def colour_of(spec, name):
    """A colour for the picture of a run, so that it can be told which is shown."""
    seed = sum(map(ord, f"{spec.folder}{name}"))
    return np.random.default_rng(seed).integers(0, 256, 3, dtype=np.uint8)


def save_run(directory, scale, spec, rng, has_fid=False):
    """A finished run as `experiments.run` leaves it, of random numbers."""
    config = plan.run_config(scale, spec, {})
    folder = directory / spec.folder
    names = [f"m{i}" for i in range(spec.num_modalities or scale.num_modalities[-1])]
    is_complete = not spec.num_modalities and not spec.is_repeated
    known = [
        Member(beta, config.sweep.learning_rate[0], seed)
        for beta in config.sweep.beta
        for seed in config.sweep.seed
    ]
    members = [
        {
            **member._asdict(),
            "finite": True,
            "metrics": metrics_of(
                rng, names, is_complete or spec.model in plan.OFFICIAL, has_fid
            ),
        }
        for member in known
    ]
    summary = {
        "model": spec.model,
        "dataset": f"made-up-{spec.dataset}",
        "num_steps": 1500,
        "wall_seconds": 1.0,
        "device": "an abacus",
        "execution": {},
        "members": members,
    }
    (folder / "samples").mkdir(parents=True)
    log.write_json(folder / "summary.json", summary)
    log.write_json(folder / "config.json", json.loads(config.to_json_best_effort()))
    if is_complete:
        beta, seed = scale.datasets[spec.dataset].beta_of_samples, scale.seed[0]
        shown = next(m for m in known if m.beta == beta and m.seed == seed)
        shapes = {"prior": (len(names), 20), "m0_given_m1": (11, 10)}
        for name, (height, width) in shapes.items():
            pixels = np.tile(colour_of(spec, name), (4 * height, 4 * width, 1))
            path = folder / "samples" / f"{log.member_name(shown, known)}_{name}.png"
            Image.fromarray(pixels).save(path)


def save_plan(directory, *, has_fid=False, **changes):
    """All runs of a small plan but those of the theorem and on pairs."""
    _, scale = plan.load_scale("demo")
    scale.num_modalities = (2, 3)
    scale.changes.data.num_modalities = 3
    scale.update(changes)
    plan.record(directory, "demo", scale)
    rng = np.random.default_rng(0)
    pairs = plan.pair_columns(scale)
    for spec in plan.all_specs(scale, paper_figures.DRAWINGS):
        if spec.dataset not in pairs:
            save_run(directory, scale, spec, rng, has_fid)
    return directory


def with_changed_members(evidence, spec, change):
    """The evidence, `change` applied to a copy of every member of a run."""
    record = evidence.runs[spec]
    members = json.loads(json.dumps(record.summary["members"]))
    for member in members:
        change(member)
    changed = record._replace(summary={**record.summary, "members": members})
    return dataclasses.replace(evidence, runs={**evidence.runs, spec: changed})


def without(evidence, *specs):
    runs = {spec: run for spec, run in evidence.runs.items() if spec not in specs}
    return dataclasses.replace(evidence, runs=runs)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    return plan.read(save_plan(tmp_path_factory.mktemp("plan") / "runs"))


@pytest.fixture(autouse=True)
def agreement(monkeypatch):
    """The rank agreement, as a stand-in whose values are known."""

    def stand_in(x, y):
        assert len(x) == len(y)
        return 0.5, 0.25, 0.75

    monkeypatch.setattr(runs, "rank_agreement", stand_in)


def line_of(axis, model):
    lines = [x for x in axis.get_lines() if x.get_label() == model_label(model)]
    return lines[0] if lines else None


def band_of(axis, model):
    """beta -> (lower, upper) end of the band around a model's line."""
    wanted = to_hex(model_colour(model))
    (band,) = (x for x in axis.collections if to_hex(x.get_facecolor()[0]) == wanted)
    ends = {}
    for path in band.get_paths():
        for x, y in path.vertices:
            ends.setdefault(x, []).append(y)
    return {x: (min(y), max(y)) for x, y in ends.items()}


def values_of(evidence, spec, tag):
    """beta -> the values of the finite members."""
    found = {}
    for member in evidence.runs[spec].summary["members"]:
        found.setdefault(member["beta"], [])
        if member["finite"] and member["metrics"].get(tag) is not None:
            found[member["beta"]].append(member["metrics"][tag])
    return found


def panels_of(drawing):
    return [axis for axis in drawing.figure.axes if axis.axison]


def texts_of(figure):
    return [
        text
        for axis in figure.axes
        for text in (
            axis.get_title(),
            axis.get_ylabel(),
            axis.get_xlabel(),
            *(x.get_text() for x in axis.texts),
        )
    ]


def plotted(axis, model):
    """x -> y of the points of a line that are there."""
    line = line_of(axis, model)
    points = {} if line is None else zip(*line.get_data(), strict=True)
    return {x: y for x, y in points if np.isfinite(y)}


def rows_of(drawing, **wanted):
    return [
        row
        for row in drawing.rows
        if all(row[name] == value for name, value in wanted.items())
    ]


@pytest.mark.parametrize("name", OVER_BETA)
def test_lines_over_beta_are_means_and_bands_are_standard_deviations(evidence, name):
    tags, models = OVER_BETA[name]
    drawing = paper_figures.DRAWINGS[name](evidence)
    columns = evidence.config.columns
    axes = iter(panels_of(drawing))
    for tag in tags:
        for column in columns:
            axis = next(axes)
            for model in plan.MODELS:
                if model not in models:
                    assert line_of(axis, model) is None
                    continue
                values = values_of(evidence, Spec(column, model), tag)
                means = {b: np.mean(group) for b, group in values.items()}
                assert plotted(axis, model) == pytest.approx(means)
                band = band_of(axis, model)
                title = evidence.config.datasets[column].title
                rows = rows_of(drawing, dataset=title, model=model, metric=tag)
                assert [row["beta"] for row in rows] == sorted(values)
                for row in rows:
                    group = values[row["beta"]]
                    std = np.std(group, ddof=1)
                    low, high = means[row["beta"]] - std, means[row["beta"]] + std
                    assert band[row["beta"]] == pytest.approx((low, high))
                    assert row["mean"] == pytest.approx(means[row["beta"]])
                    assert row["std"] == pytest.approx(std)
                    assert (row["seeds"], row["diverged"]) == (3, 0)
                    assert row["num_modalities"] == 3
    assert next(axes, None) is None


def test_the_scale_of_beta_is_logarithmic_and_readable(evidence):
    axis = panels_of(paper_figures.DRAWINGS["7"](evidence))[0]
    assert axis.get_xscale() == "log"
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["3e-4", "3e-3", "0.3", "1", "3", "9"]


def test_a_beta_of_zero_has_its_place(evidence):
    spec = Spec("polymnist", "mvae")

    def to_zero(member):
        member["beta"] = 0.0 if member["beta"] == 3e-4 else member["beta"]

    changed = with_changed_members(evidence, spec, to_zero)
    drawing = paper_figures.DRAWINGS["7"](changed)
    figure_captions.finish(drawing.figure, drawing.caption)
    drawing.figure.canvas.draw()
    axis = panels_of(drawing)[0]
    assert 0.0 in plotted(axis, "mvae")
    assert axis.get_xlim()[0] < 0 < axis.get_xlim()[1]


def test_coherence_has_the_levels_of_chance_and_of_real_data(evidence):
    drawing = paper_figures.DRAWINGS["4"](evidence)
    for axis in panels_of(drawing):
        levels = {x.get_label(): x.get_ydata()[0] for x in axis.get_lines()}
        assert levels["chance"] == 0.1
        assert levels["classifiers on real data"] == pytest.approx(0.96)
    assert len(rows_of(drawing, model="real data")) == 2


@pytest.mark.parametrize(
    "name",
    [
        "3",
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("2", "8", "11", "12", "13")
        ),
    ],
)
def test_fid_is_shown_only_where_every_run_has_it(evidence, tmp_path, name):
    drawing = paper_figures.DRAWINGS[name](evidence)
    labels = " ".join(" ".join(texts_of(drawing.figure)).split())
    assert "Fréchet distance, classifier features (lower is better)" in labels
    assert "sliced Wasserstein distance (lower is better)" in labels
    assert not re.search("fid", labels + drawing.caption, re.IGNORECASE)

    complete = plan.read(save_plan(tmp_path / "runs", has_fid=True))
    drawing = paper_figures.DRAWINGS[name](complete)
    labels = " ".join(texts_of(drawing.figure))
    assert "FID (lower is better)" in labels and "metrics: fid" in drawing.caption
    assert not re.search("Fréchet|Wasserstein", labels)
    assert {row["metric"].split("/")[1] for row in drawing.rows} >= {"fid"}
    assert not [row for row in drawing.rows if "swd" in row["metric"]]

    specs = plan.figure_specs(complete.config)[name]
    spec = [spec for spec in specs if spec in complete.runs][-1]

    def lose_fid(member):
        kept = {t: v for t, v in member["metrics"].items() if "/fid" not in t}
        member["metrics"] = kept

    drawing = paper_figures.DRAWINGS[name](
        with_changed_members(complete, spec, lose_fid)
    )
    assert "FID" not in " ".join(texts_of(drawing.figure))


@pytest.mark.parametrize("is_repeated", (False, True))
def test_quality_over_the_number_of_modalities(evidence, is_repeated):
    drawing = paper_figures.DRAWINGS["11" if is_repeated else "3"](evidence)
    end = "" if is_repeated else "/m0"
    tags = [f"eval/frechet_classifier{end}", f"eval/swd{end}"]
    axes = iter(panels_of(drawing))
    for i, tag in enumerate(tags):
        for column, beta in (("polymnist", 1.0), ("translated", 0.3)):
            axis = next(axes)
            if i == 0:
                title = evidence.config.datasets[column].title
                assert axis.get_title() == f"{title} (β = {beta:g})"
            for model in plan.MULTIMODAL:
                expected = {}
                for num in (2, 3):
                    spec = plan.modalities_spec(
                        evidence.config, column, model, num, is_repeated
                    )
                    expected[num] = np.mean(values_of(evidence, spec, tag)[beta])
                assert plotted(axis, model) == pytest.approx(expected)
            spec = Spec(column, "unimodal", 0, is_repeated)
            level = np.mean(values_of(evidence, spec, tag)[beta])
            line = line_of(axis, "unimodal")
            np.testing.assert_allclose(line.get_ydata(), level)
            assert line.get_xdata()[0] < 2 < 3 < line.get_xdata()[-1]
    # A panel: one level of the unimodal VAEs, three models of two numbers.
    assert len(drawing.rows) == 4 * (1 + 3 * 2)
    assert {row["num_modalities"] for row in drawing.rows} == {1, 2, 3}


def test_a_missing_number_of_modalities_is_a_gap(evidence):
    spec = Spec("polymnist", "mmvae", 2)
    drawing = paper_figures.DRAWINGS["3"](without(evidence, spec))
    assert set(plotted(panels_of(drawing)[0], "mmvae")) == {3}
    assert set(plotted(panels_of(drawing)[0], "mopoe")) == {2, 3}
    assert "Not measured: polymnist/mmvae_2_modalities." in drawing.caption


def test_quality_of_every_modality_has_one_scale_a_row(evidence):
    drawing = paper_figures.DRAWINGS["8"](evidence)
    axes = np.array(panels_of(drawing)).reshape(4, 3)
    for i, column in enumerate(("polymnist", "translated")):
        for j, kind in enumerate(("frechet_classifier", "swd")):
            line = axes[2 * i + j]
            assert len({axis.get_ylim() for axis in line}) == 1
            for k, axis in enumerate(line):
                spec = Spec(column, "mopoe")
                values = values_of(evidence, spec, f"eval/{kind}/m{k}")
                means = {beta: np.mean(group) for beta, group in values.items()}
                assert plotted(axis, "mopoe") == pytest.approx(means)
    assert [axis.get_title() for axis in axes[0]] == ["$X_{1}$", "$X_{2}$", "$X_{3}$"]


def test_ablations_show_their_models(evidence):
    for name, models, coherent in (
        ("12", ("unimodal_official", "mmvae_official"), ("mmvae_official",)),
        ("13", ("mvae", "mvae_plus"), ("mvae", "mvae_plus")),
    ):
        drawing = paper_figures.DRAWINGS[name](evidence)
        axes = panels_of(drawing)
        assert len(axes) == 5
        for axis in axes:
            is_coherence = axis.get_ylabel() == "leave-one-out coherence"
            shown = coherent if is_coherence else models
            lines = {x.get_label() for x in axis.get_lines()}
            assert lines & {model.label for model in MODELS.values()} == {
                model_label(model) for model in shown
            }


def test_diverged_members_are_left_out(evidence):
    spec = Spec("polymnist", "mvae")

    def diverge(member):
        if member["beta"] == 9.0 or (member["beta"], member["seed"]) == (3.0, 1):
            member["finite"] = False
            member["metrics"] = dict.fromkeys(member["metrics"], 1e9)

    changed = with_changed_members(evidence, spec, diverge)
    drawing = paper_figures.DRAWINGS["7"](changed)
    axis = panels_of(drawing)[0]
    values = values_of(changed, spec, "eval/log_likelihood")
    points = plotted(axis, "mvae")
    assert set(points) == {3e-4, 3e-3, 0.3, 1.0, 3.0}
    assert points[3.0] == pytest.approx(np.mean(values[3.0])) and len(values[3.0]) == 2
    (row,) = rows_of(drawing, dataset="PolyDigits", model="mvae", beta=3.0)
    assert (row["seeds"], row["diverged"]) == (2, 1)
    hollow = [x for x in axis.get_lines() if x.get_markerfacecolor() == "white"]
    assert [list(x.get_xdata()) for x in hollow] == [[3.0]]
    assert "Diverged and left out: MVAE on PolyDigits at β = 9." in drawing.caption
    assert "Hollow points" in drawing.caption
    # Figure 3 is about one beta, at which nothing diverged.
    assert "iverged" not in paper_figures.DRAWINGS["3"](changed).caption


def test_a_beta_without_a_value_interrupts_the_line(evidence):
    spec = Spec("translated", "mopoe")

    def lose(member):
        if member["beta"] == 0.3:
            member["metrics"]["eval/log_likelihood"] = None

    changed = with_changed_members(evidence, spec, lose)
    drawing = paper_figures.DRAWINGS["7"](changed)
    x, y = line_of(panels_of(drawing)[1], "mopoe").get_data()
    assert list(np.isnan(y)) == [beta == 0.3 for beta in x] and len(x) == 6
    title = evidence.config.datasets.translated.title
    assert len(rows_of(drawing, dataset=title, model="mopoe")) == 5


def test_one_seed_has_no_band(evidence):
    one = evidence
    for spec in plan.sweep(evidence.config.columns, plan.MODELS):
        members = evidence.runs[spec].summary["members"]
        kept = [member for member in members if member["seed"] == 0]
        record = evidence.runs[spec]
        record = record._replace(summary={**record.summary, "members": kept})
        one = dataclasses.replace(one, runs={**one.runs, spec: record})
    drawing = paper_figures.DRAWINGS["6"](one)
    for low, high in band_of(panels_of(drawing)[0], "mvae").values():
        assert low == high
    assert np.isnan([row["std"] for row in drawing.rows]).all()
    assert "one seed" in drawing.caption and "deviation" not in drawing.caption


@pytest.mark.parametrize("name", EVERY)
def test_nothing_measured_is_said_and_no_error(evidence, name):
    drawing = paper_figures.DRAWINGS[name](dataclasses.replace(evidence, runs={}))
    assert drawing.rows == []
    assert "None of its runs is there." in drawing.caption
    figure_captions.finish(drawing.figure, drawing.caption)
    drawing.figure.canvas.draw()
    for axis in drawing.figure.axes:
        if axis.get_title() or axis.axison:
            assert [text.get_text() for text in axis.texts] == ["not measured"]


@pytest.mark.parametrize("name, num_blocks", (("family", 2), ("inputs", 1)))
def test_a_kind_of_models_without_runs_has_no_panel(evidence, name, num_blocks):
    """Faint references would be all that it shows."""
    kept = {
        spec: run
        for spec, run in evidence.runs.items()
        if spec.model in ("unimodal", "mopoe", "helvae")
    }
    gone = {spec: run for spec, run in kept.items() if spec.model != "helvae"}
    for own, num_kinds in ((kept, 2), (gone, 1)):
        drawing = paper_figures.DRAWINGS[name](dataclasses.replace(evidence, runs=own))
        num_columns = drawing.figure.axes[0].get_gridspec().ncols
        assert num_columns == num_blocks * num_kinds
        assert "not measured" not in texts_of(drawing.figure)


@pytest.mark.parametrize("name", EVERY)
def test_a_data_set_without_runs_is_an_empty_column(evidence, name):
    gone = [spec for spec in evidence.runs if spec.dataset == "translated"]
    drawing = paper_figures.DRAWINGS[name](without(evidence, *gone))
    drawing.figure.canvas.draw()
    assert {row["dataset"] for row in drawing.rows} <= {"PolyDigits"}
    is_shown = name not in ("12", "13")
    assert ("not measured" in texts_of(drawing.figure)) == is_shown


@pytest.mark.parametrize(
    "name, picture, models",
    (
        ("9", "prior", plan.MODELS),
        ("10", "m0_given_m1", plan.MULTIMODAL),
    ),
)
def test_pictures_are_those_of_the_runs(evidence, name, picture, models):
    drawing = paper_figures.DRAWINGS[name](evidence)
    specs = plan.sweep(evidence.config.columns, models)
    for axis, spec in zip(drawing.figure.axes, specs, strict=True):
        (image,) = axis.get_images()
        pixels = np.asarray(image.get_array())
        assert (pixels == colour_of(spec, picture)).all()
        title = axis.get_title()
        assert model_label(spec.model) in title and "β = 0.3" in title
        assert evidence.config.datasets[spec.dataset].title in title
        labels = [label.get_text() for label in axis.get_yticklabels()]
        expected = {"9": ["1", "2", "3"], "10": ["2", "1"]}[name]
        assert [re.sub(r"\D", "", label) for label in labels if label] == expected


def test_missing_and_diverged_pictures_are_said(evidence, tmp_path):
    directory = tmp_path / "runs"
    shutil.copytree(evidence.directory, directory)
    for path in (directory / "polymnist" / "mmvae" / "samples").glob("*_prior.png"):
        path.unlink()
    changed = with_changed_members(
        plan.read(directory),
        Spec("polymnist", "mvae"),
        lambda member: member.update(finite=member["beta"] != 0.3),
    )
    drawing = paper_figures.DRAWINGS["9"](changed)
    words = [[t.get_text() for t in axis.texts] for axis in drawing.figure.axes]
    assert words == [[], ["diverged"], ["not measured"], [], [], [], [], []]


def test_matching_has_a_point_for_every_trained_model(evidence):
    spec = Spec("polymnist", "mvae")
    changed = with_changed_members(
        evidence, spec, lambda member: member.update(finite=member["beta"] != 9.0)
    )
    drawing = paper_figures.DRAWINGS["matching"](changed)
    axis = panels_of(drawing)[0]
    members = changed.runs[spec].summary["members"]
    shown = [member["metrics"] for member in members if member["finite"]]
    x, y = line_of(axis, "mvae").get_data()
    np.testing.assert_allclose(x, [metrics[COHERENCE] for metrics in shown])
    np.testing.assert_allclose(y, [metrics[MATCHING] for metrics in shown])
    assert axis.get_title() == "PolyDigits\nρ = 0.50 [0.25, 0.75]"
    points = rows_of(drawing, dataset="PolyDigits", model="mvae", metric=MATCHING)
    assert [row["mean"] for row in points] == list(y)
    assert {row["seed"] for row in points} == {0, 1, 2}
    agreements = rows_of(drawing, metric="spearman")
    assert len(agreements) == 2 * (len(plan.MODELS) + 1)
    (all_models,) = rows_of(drawing, metric="spearman/low", model="all", seeds=69)
    assert all_models["mean"] == 0.25


FRONTS = [  # the quality of a row of fronts, the coherence of a block of columns
    (column, quality, coherence, kind)
    for column in ("polymnist", "translated")
    for quality in ("eval/frechet_classifier", "eval/swd")
    for coherence in (COHERENCE, "eval/coherence/size_1")
    for kind in plan.KINDS
]


def fronts_of(axis, model, is_faint):
    """The lines of a model in a front, each as (x, y) in order of beta."""
    wanted = to_hex(model_colour(model))
    found = [
        container.lines[0]
        for container in axis.containers
        if to_hex(container.lines[0].get_color()) == wanted
        and (container.lines[0].get_alpha() != 1.0) == is_faint
    ]
    return [list(zip(*line.get_data(), strict=True)) for line in found]


@pytest.mark.slow
def test_fronts_are_quality_against_coherence(evidence):
    drawing = paper_figures.DRAWINGS["family"](evidence)
    axes = panels_of(drawing)
    for axis, (column, *tags, kind) in zip(axes, FRONTS, strict=True):
        for models in plan.KINDS.values():
            for model in models:
                quality, coherence = (
                    values_of(evidence, Spec(column, model), tag) for tag in tags
                )
                means = [
                    (np.mean(coherence[beta]), np.mean(quality[beta]))
                    for beta in sorted(quality)
                ]
                is_own = models is plan.KINDS[kind]
                lines = fronts_of(axis, model, not is_own)
                if is_own or model in plan.REFERENCES:
                    (line,) = lines
                    np.testing.assert_allclose(line, means)
                else:
                    assert not lines
        low, high = axis.get_ylim()
        assert low > high  # better is up
    # Of each data set: two coherences and two qualities of all models at all betas.
    num_models = sum(len(models) for models in plan.KINDS.values())
    assert len(drawing.rows) == 2 * 4 * num_models * len(evidence.config.beta)
    (row,) = rows_of(
        drawing, dataset="PolyDigits", model="crmvae", metric="eval/swd", beta=0.3
    )
    found = values_of(evidence, Spec("polymnist", "crmvae"), "eval/swd")[0.3]
    assert row["mean"] == pytest.approx(np.mean(found))
    assert row["std"] == pytest.approx(np.std(found, ddof=1))


@pytest.mark.slow
def test_markers_of_fronts_grow_with_beta_and_are_hollow_where_seeds_diverged(evidence):
    spec = Spec("polymnist", "crmvae")

    def diverge(member):
        if member["beta"] == 9.0 or (member["beta"], member["seed"]) == (3.0, 1):
            member["finite"] = False

    changed = with_changed_members(evidence, spec, diverge)
    drawing = paper_figures.DRAWINGS["family"](changed)
    axis = panels_of(drawing)[1]  # coordination-based models
    wanted = to_hex(model_colour("crmvae"))
    (markers,) = (
        points
        for points in axis.collections
        if isinstance(points, PathCollection)
        and to_hex(points.get_edgecolor()[0]) == wanted
    )
    assert (np.diff(markers.get_sizes()) > 0).all()
    hollow = [to_hex(colour) == "#ffffff" for colour in markers.get_facecolor()]
    assert hollow == [False, False, False, False, True]
    assert "CRMVAE on PolyDigits at β = 9" in drawing.caption
    assert "Hollow points" in drawing.caption


def test_what_is_given_is_shown_at_the_beta_that_is_chosen_on_average(evidence):
    """Not at the best beta of each number, nor at that of the first or last."""
    spec = Spec("translated", "mvtcae")
    coherences = {0.3: (0.9, 0.1), 1.0: (0.6, 0.6), 3.0: (0.1, 0.95)}

    def change(member):
        for given, value in enumerate(coherences.get(member["beta"], (0.2, 0.2)), 1):
            member["metrics"][f"eval/coherence/size_{given}"] = value

    drawing = paper_figures.DRAWINGS["inputs"](
        with_changed_members(evidence, spec, change)
    )
    (first, second) = rows_of(drawing, dataset="Translated-PolyDigits", model="mvtcae")
    assert (first["beta"], first["given"], first["mean"]) == (1.0, 1, 0.6)
    assert (second["beta"], second["given"], second["mean"]) == (1.0, 2, 0.6)
    axis = drawing.figure.axes[len(plan.KINDS) + 1]
    assert plotted(axis, "mvtcae") == {1: 0.6, 2: 0.6}
    assert plotted(axis, "mopoe") and not plotted(axis, "mmvae")  # faint: references
    assert {row["model"] for row in drawing.rows} == {
        model for kind in plan.KINDS.values() for model in kind
    } - {"unimodal"}


def test_what_is_given_is_shown_for_each_seed_at_the_beta_of_the_others(evidence):
    spec = Spec("translated", "mvtcae")

    def change(member):
        # Seed 2 alone finds beta = 1 best, by so much that the mean does too.
        values = {0.3: 0.5, 1.0: 0.9 if member["seed"] == 2 else 0.4}
        for given in (1, 2):
            tag = f"eval/coherence/size_{given}"
            member["metrics"][tag] = values.get(member["beta"], 0.1)

    changed = with_changed_members(evidence, spec, change)
    rows = tables.given_rows(changed, "inputs", spec)
    assert [row["mean"] for row in rows] == pytest.approx([(0.4 * 2 + 0.5) / 3] * 2)
    assert {row["betas"] for row in rows} == {"1 1 0.3"}
    assert np.isnan([row["beta"] for row in rows]).all()
    # One seed has nothing to choose its beta by, and is not shown.
    record = changed.runs[spec]
    alone = [m for m in record.summary["members"] if m["seed"] == 2]
    one = record._replace(summary={**record.summary, "members": alone})
    of_one = dataclasses.replace(changed, runs={**changed.runs, spec: one})
    assert tables.given_rows(of_one, "inputs", spec) == []


def test_published_coherences_are_apart_and_no_rows(evidence):
    drawing = paper_figures.DRAWINGS["inputs"](evidence)
    *_, first, second, third, fourth = drawing.figure.axes
    shown = {}
    for axis in (first, second):
        for model in paper.PUBLISHED_COHERENCE:
            points = plotted(axis, model)
            if points:
                shown[model] = tuple(points.values())
                assert list(points) == [1, 2, 3, 4]
    assert shown == paper.PUBLISHED_COHERENCE
    assert "published" in first.get_ylabel()
    assert not third.axison and not fourth.axison
    assert {row["dataset"] for row in drawing.rows} == {
        "PolyDigits", "Translated-PolyDigits"
    }  # fmt: skip
    assert paper.PUBLISHED_SOURCE in drawing.caption


@pytest.mark.parametrize("name", EVERY)
def test_rows_of_a_figure_have_the_same_columns(evidence, name):
    rows = paper_figures.DRAWINGS[name](evidence).rows
    assert len({tuple(row) for row in rows}) <= 1
    assert {row["figure"] for row in rows} <= {name}
    assert bool(rows) == (name not in figure_captions.PICTURES)


@pytest.mark.parametrize("name", EVERY)
def test_captions_say_what_was_measured(evidence, name):
    text = paper_figures.DRAWINGS[name](evidence).caption
    for part in ("demo scale", "made-up-polymnist", "1,500 steps", "an abacus", "seed"):
        assert part in text
    assert ("made-up-translated" in text) == (name not in ("12", "13"))
    assert ("metrics: " in text) == (name not in figure_captions.PICTURES)
    assert "ot measured" not in text and text.endswith(".")


@pytest.mark.parametrize("name", EVERY)
def test_a_caption_is_below_the_panels_and_inside_the_figure(evidence, name):
    drawing = paper_figures.DRAWINGS[name](evidence)
    width, height = drawing.figure.get_size_inches()
    figure_captions.finish(
        drawing.figure, drawing.caption + " $5 is no mathematics, $6"
    )
    assert drawing.figure.get_size_inches()[0] == width
    assert drawing.figure.get_size_inches()[1] > height
    drawing.figure.canvas.draw()
    renderer = drawing.figure.canvas.get_renderer()
    (text,) = drawing.figure.texts
    box = text.get_window_extent(renderer)
    bounds = drawing.figure.bbox
    assert 0 <= box.x0 and box.x1 <= bounds.x1 and 0 <= box.y0
    lowest = min(axis.get_tightbbox(renderer).y0 for axis in drawing.figure.axes)
    assert box.y1 <= lowest
    for legend in drawing.figure.legends:
        frame = legend.get_window_extent(renderer)
        assert bounds.x0 <= frame.x0 and frame.x1 <= bounds.x1
        highest = max(axis.get_tightbbox(renderer).y1 for axis in drawing.figure.axes)
        assert frame.y0 >= highest - 1


def test_betas_are_written_as_in_the_paper():
    betas = (0.0, 3e-4, 3e-3, 0.03, 0.3, 1.0, 9.0, 1.5e-5)
    written = ["0", "3e-4", "3e-3", "0.03", "0.3", "1", "9", "1.5e-5"]
    assert [show_beta(beta) for beta in betas] == written


@pytest.mark.parametrize("module", (figure_captions, paper_figures, panels))
def test_there_is_no_global_state_of_figures(module):
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name and "pyplot" in name}


def test_what_is_nan_says_why_in_figures_and_tables(evidence):
    """In the panel that is empty, and in the rows of the CSV."""
    spec = next(spec for spec in evidence.runs if spec.model == "mvae")
    tag = COHERENCE

    def spoil(member):
        member["metrics"][tag] = None
        member["undefined"] = {tag: "$m1$ is never there"}

    changed = with_changed_members(evidence, spec, spoil)
    rows = tables.beta_rows(changed, "x", spec, tag)
    assert rows and {row["note"] for row in rows} == {"$m1$ is never there"}
    assert all(np.isnan(row["mean"]) for row in rows)
    untouched = tables.beta_rows(evidence, "x", spec, tag)
    assert not any("note" in row for row in untouched)
    axis = Figure().subplots()
    assert panels._say_why_empty(axis, rows, keeps_ticks=True)
    assert [text.get_text() for text in axis.texts] == ["nan; $m1$ is never there"]
    axis = Figure().subplots()
    drawn = panels._draw_line(axis, rows, "beta", "mvae")
    assert drawn == rows and not axis.lines


def test_a_mean_over_modalities_is_over_all_of_them(evidence):
    spec = next(s for s in evidence.runs if s.model == "mvae")
    tag = "eval/classifier_accuracy"

    def spoil(member):
        name = next(t for t in member["metrics"] if t.startswith(f"{tag}/"))
        member["metrics"][name] = None

    assert tables.reachable_rows(evidence, "x", [spec], tag)
    changed = with_changed_members(evidence, spec, spoil)
    assert tables.reachable_rows(changed, "x", [spec], tag) == []
