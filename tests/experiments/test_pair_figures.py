"""Images with captions in plans, figures and claims."""

import dataclasses
import json

import evidence as made_up
import numpy as np
import pytest
from PIL import Image
from shapes import captions as shape_captions

from experiments import figures
from experiments.drawing import paper_figures
from experiments.judging import paper, rules, verdicts
from experiments.plans import plan, shown_metrics, tables
from experiments.plans.names import model_label
from experiments.plans.plan import (
    MODELS,
    MULTIMODAL,
    PLAN,
    Spec,
    figures_of,
    load_scale,
    pair_columns,
    read,
    record,
    run_config,
    sweep,
    with_columns,
)
from mmvae_jax.errors import UsageError
from mmvae_jax.training import log
from mmvae_jax.training.sweep import Member

WITH_PAIRS = ("2", "4", "7", "8", "9", "10")
PICTURES = ("prior", "image_given_caption", "caption_given_image")
BY_NAME = {claim.name: claim for claim in paper.CLAIMS}
_, DEMO = load_scale("demo")


def picture_of(name):
    """Lines of a colour, and below each a white one."""
    pixels = np.full((102, 60, 3), 40 * PICTURES.index(name), np.uint8)
    pixels[2::3] = 255
    return pixels


def save_pictures(evidence, spec):
    settings = plan.settings(evidence.config, spec.dataset)
    members = evidence.runs[spec].summary["members"]
    known = [Member(*(member[f] for f in Member._fields)) for member in members]
    wanted = settings.beta_of_samples, settings.seed[0]
    shown = next(m for m in known if (m.beta, m.seed) == wanted)
    folder = evidence.runs[spec].workdir / "samples"
    folder.mkdir()
    for name in PICTURES:
        path = folder / f"{log.member_name(shown, known)}_{name}.png"
        Image.fromarray(picture_of(name)).save(path)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """Runs on PolyDigits and on both kinds of pairs, with the paper's results."""
    specs = sweep(("polymnist", "shapes", "cub"), MODELS)
    found = made_up.write(tmp_path_factory.mktemp("pairs") / "plan", specs=specs)
    for spec in specs:
        if spec.dataset != "polymnist":
            save_pictures(found, spec)
    return found


def without(evidence, *datasets):
    runs = {s: run for s, run in evidence.runs.items() if s.dataset not in datasets}
    return dataclasses.replace(evidence, runs=runs)


def axes_called(drawing, start):
    return [
        axis
        for axis in drawing.figure.axes
        if " ".join(axis.get_title().split()).startswith(start)
    ]


def plotted(axis, model):
    label = model_label(model)
    (line,) = [x for x in axis.get_lines() if x.get_label() == label]
    return dict(zip(*line.get_data(), strict=True))


def means(evidence, spec, tag):
    groups = {}
    for member in evidence.runs[spec].summary["members"]:
        groups.setdefault(member["beta"], []).append(member["metrics"][tag])
    return {beta: pytest.approx(np.mean(group)) for beta, group in groups.items()}


def test_chances_are_those_of_the_data():
    numbers = {
        "colour": len(shape_captions.COLOURS),
        "shape": len(shape_captions.SHAPES),
    }
    assert shown_metrics.CHANCES == {name: 1 / num for name, num in numbers.items()}
    for tag, (chance, _) in paper.GIVEN_CAPTIONS.items():
        mean = shown_metrics.ATTRIBUTES.chance
        own = [c for name, c in shown_metrics.CHANCES.items() if f"/{name}/" in tag]
        assert chance == pytest.approx(own[0] if own else mean)


@pytest.mark.parametrize(
    ("name", "tag"), [("2", "eval/swd/image"), ("7", "eval/log_likelihood")]
)
def test_pairs_are_columns_over_their_own_betas(evidence, name, tag):
    drawing = paper_figures.DRAWINGS[name](evidence)
    (axis,) = axes_called(drawing, "Shapes")
    spec = Spec("shapes", "mopoe")
    assert plotted(axis, "mopoe") == means(evidence, spec, tag)
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["0.1", "1", "9"]
    assert f"{tag.removeprefix('eval/')}" in drawing.caption
    assert {row["metric"] for row in drawing.rows if row["dataset"] == "Shapes"} == {
        tag
    }
    # At the smaller scales CUB is not asked for log-likelihoods.
    assert len(axes_called(drawing, "CUB")) == 1
    (other,) = axes_called(drawing, "PolyDigits")
    assert len(other.get_xticks()) == 6


def test_coherence_of_pairs_is_that_of_attributes_or_pictures(evidence):
    drawing = paper_figures.DRAWINGS["4"](evidence)
    kinds = {
        "Shapes": ("leave_one_out", (1 / 6 + 1 / 8) / 2),
        "Shapes: colour, image given caption": ("colour/image_given_caption", 1 / 8),
        "Shapes: shape, caption given image": ("shape/caption_given_image", 1 / 6),
    }
    for title, (tag, chance) in kinds.items():
        axis = axes_called(drawing, title)[0]
        tag = f"eval/attribute_coherence/{tag}"
        spec = Spec("shapes", "mvae")
        assert plotted(axis, "mvae") == means(evidence, spec, tag)
        levels = {x.get_label(): x.get_ydata()[0] for x in axis.get_lines()}
        assert levels["chance"] == pytest.approx(chance)
        assert levels["classifiers on real data"] == pytest.approx(0.98, rel=0.01)
    pages = [axis for axis in drawing.figure.axes if axis.get_images()]
    assert [axis.get_title().partition(": ")[2] for axis in pages] == [
        "image given caption, some examples"
    ] * 3
    shown = np.asarray(pages[0].get_images()[0].get_array())
    factor = shown.shape[1] // 60
    whole = picture_of("image_given_caption")
    # 31 of 102 lines, and of these what ends with a white one.
    np.testing.assert_array_equal(shown[::factor, ::factor], whole[:30])


def test_quality_of_pairs_is_that_of_the_image_alone(evidence):
    drawing = paper_figures.DRAWINGS["8"](evidence)
    for title in ("Shapes", "CUB, 300 steps"):
        found = [row for row in drawing.rows if row["dataset"] == title]
        assert {row["modality"] for row in found} == {"image"}
        assert {row["metric"] for row in found} == {"eval/swd/image"}


@pytest.mark.parametrize(
    ("name", "kinds", "models"),
    [
        ("9", ["prior"], MODELS),
        ("10", ["image_given_caption", "caption_given_image"], MULTIMODAL),
    ],
)
def test_pictures_with_captions_are_pages(evidence, name, kinds, models):
    drawing = paper_figures.DRAWINGS[name](evidence)
    for title in ("Shapes", "CUB"):
        pages = [
            axis
            for axis in drawing.figure.axes
            if f", {title}" in axis.get_title() and axis.get_images()
        ]
        wanted = [(kind, model) for kind in kinds for model in models]
        for axis, (kind, model) in zip(pages, wanted, strict=True):
            assert model_label(model) in axis.get_title()
            pixels = np.asarray(axis.get_images()[0].get_array())
            assert (pixels[0] == picture_of(kind)[0, 0]).all()
    assert "some of them" in drawing.caption


def test_a_missing_picture_is_said(evidence):
    runs = dict(evidence.runs)
    spec = Spec("shapes", "mvae")
    runs[spec] = runs[spec]._replace(workdir=runs[spec].workdir / "elsewhere")
    drawing = paper_figures.DRAWINGS["10"](dataclasses.replace(evidence, runs=runs))
    said = [
        axis.get_title().partition("MVAE, ")[2].partition(",")[0]
        for axis in drawing.figure.axes
        if [text.get_text() for text in axis.texts] == ["not measured"]
        and ", Shapes" in axis.get_title()
    ]
    assert said == ["Shapes"] * 2


@pytest.mark.parametrize("name", WITH_PAIRS)
def test_pairs_without_runs_are_left_out_and_said(evidence, name):
    drawing = paper_figures.DRAWINGS[name](without(evidence, "shapes", "cub"))
    assert not [a for a in drawing.figure.axes if "Shapes" in a.get_title()]
    assert "Left out, for want of runs: Shapes; CUB, 300 steps." in drawing.caption
    assert "pairs" not in drawing.caption
    part = paper_figures.DRAWINGS[name](without(evidence, "cub"))
    assert "Left out, for want of runs: CUB, 300 steps." in part.caption
    assert "pairs of images and captions" in part.caption


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_PAIRS)
@pytest.mark.parametrize("column", ("shapes", "cub"))
def test_columns_alone(evidence, name, column):
    chosen = dataclasses.replace(evidence, config=with_columns(DEMO, [column]))
    drawing = paper_figures.DRAWINGS[name](chosen)
    drawing.figure.canvas.draw()
    text = " ".join(axis.get_title() for axis in drawing.figure.axes)
    assert "PolyDigits" not in text + drawing.caption
    assert tables.title(evidence, column) in text + drawing.caption


def test_columns_are_checked_and_have_their_figures():
    assert figures_of(DEMO, ["shapes"]) == list(WITH_PAIRS)
    assert "12" in figures_of(DEMO, ["polymnist"])
    assert "12" not in figures_of(DEMO, ["translated", "shapes"])
    assert figures.names_of("all", DEMO, ["cub"]) == list(WITH_PAIRS)
    with pytest.raises(UsageError, match="unknown --figure '3'"):
        figures.names_of("3", DEMO, ["cub"])
    with pytest.raises(UsageError, match="unknown column 'mnist' in --columns"):
        with_columns(DEMO, ["mnist"])


def test_networks_of_captions_are_replaced_and_places_are_where_they_belong():
    places = {"cub_dir": "birds", "data_dir": "here", "digits_dir": "mnist"}
    assert (
        run_config(DEMO, Spec("polymnist", "mvae"), places).data.digits_dir == "mnist"
    )
    config = run_config(DEMO, Spec("shapes", "mvae"), places)
    assert config.data.digits_dir == ""
    assert config.modalities.caption.network == "mlp"
    assert config.modalities.caption.network_options.to_dict() == {"widths": (256,)}
    assert config.data.data_dir == "here" and "cub_dir" not in config.data
    config = run_config(DEMO, Spec("cub", "mvae"), places)
    assert config.data.cub_dir == "birds"
    # What holds for digits does not for pairs.
    assert config.model.latent_dim == 64


def test_cub_is_trained_where_it_is_named(evidence, tmp_path, capsys):
    specs = sweep(("shapes", "cub"), MODELS)
    named = {s: run_config(DEMO, s, {"cub_dir": "birds"}) for s in specs}
    assert list(figures.with_data(tmp_path, named)) == specs
    bare = {spec: run_config(DEMO, spec, {}) for spec in specs}
    assert list(figures.with_data(tmp_path, bare)) == specs[:4]
    assert "4 runs on CUB are left out: set --cub_dir" in capsys.readouterr().out
    assert list(figures.with_data(evidence.directory, bare)) == specs


def test_the_paper_scale_has_the_papers_cub():
    _, scale = load_scale("paper")
    config = run_config(scale, Spec("cub", "mopoe"), {})
    assert pair_columns(scale) == ("cub",)
    assert tuple(config.sweep.beta) == (3e-4, 3e-3, 0.3, 1.0, 3.0, 9.0, 32.0)
    assert (config.model.latent_dim, config.train.num_steps) == (64, 51_750)
    assert (config.train.batch_size, config.modality.network) == (256, "resnet")


def test_a_plan_of_before_there_were_pairs_is_read(evidence, tmp_path):
    directory = tmp_path / "plan"
    specs = sweep(["polymnist"], MODELS)
    made_up.write(directory, specs=specs)
    path = directory / PLAN
    plan = json.loads(path.read_text())
    del plan["config"]["pairs"]
    path.write_text(json.dumps(plan))
    found = read(directory)
    assert set(found.runs) == set(specs)
    paper_figures.DRAWINGS["2"](found)
    assert {v.claim.name for v in verdicts.evaluate(found)}.isdisjoint(
        {"none_is_both", "pairs_gap"}
    )
    record(directory, "demo", DEMO)
    assert "pairs" in json.loads(path.read_text())["config"]


# The claim that no model is both good and coherent.

SPECS = sweep(["shapes"], MODELS)


def verdict_of(directory, value, name="none_is_both", column="shapes", **options):
    evidence = made_up.write(directory, value, **{"specs": SPECS, **options})
    claim = BY_NAME[name]
    model = claim.models[-1]
    return verdicts.judge(rules.Line(evidence, claim, column, model, claim.tags[0]))


@pytest.mark.parametrize(
    ("good_at", "coherent_at", "holds"),
    [(0.1, 9.0, True), (0.1, 0.1, False), (9.0, 9.0, False), (None, 1.0, True)],
)
def test_good_at_one_beta_and_coherent_at_another_is_not_both(
    tmp_path, good_at, coherent_at, holds
):
    def value(spec, beta, tag):
        if tag == "eval/swd/image":
            is_good = spec.model == "unimodal" or beta == good_at
            return 100.0 if is_good else 200.0
        if tag.startswith("eval/attribute_coherence"):
            return 0.9 if beta == coherent_at else 0.2
        return 0.98

    verdict = verdict_of(tmp_path / "plan", value)
    if good_at is not None:  # MMVAE is bad at all betas: the yardstick
        value_of_others = value

        def value(spec, beta, tag):
            is_yardstick = spec.model == "mmvae" and tag == "eval/swd/image"
            return 200.0 if is_yardstick else value_of_others(spec, beta, tag)

        verdict = verdict_of(tmp_path / "other", value)
    assert verdict.holds is holds, verdict.numbers
    assert ("clearly short of neither" in verdict.numbers) == (not holds)


def test_without_a_gap_in_quality_only_coherence_counts(tmp_path):
    def value(spec, beta, tag):
        if tag.startswith("eval/attribute_coherence"):
            return 0.2
        return 100.0 if tag.startswith("eval/swd") else 0.98

    verdict = verdict_of(tmp_path / "plan", value)
    assert verdict.holds
    assert "short of quality" not in verdict.numbers


def test_between_the_two_is_undecided_and_does_not_hold(tmp_path):
    """Half of the way from chance to what real images have, to the point."""
    half = 1 / 8 + 0.5 * (0.98 - 1 / 8)

    def value(spec, beta, tag):
        if tag.startswith("eval/attribute_coherence"):
            return half
        return 100.0 if tag.startswith("eval/swd") else 0.98

    verdict = verdict_of(tmp_path / "plan", value)
    assert verdict.holds is False and abs(verdict.z) < 1e-6


def test_cub_is_not_judged_by_a_number(tmp_path, evidence):
    claim = BY_NAME["none_is_both_on_cub"]
    for found in (evidence, without(evidence, "cub")):
        line = rules.Line(found, claim, "cub", "", claim.tags[0])
        verdict = verdicts.judge(line)
        assert verdict.holds is None
        assert verdict.numbers.startswith("not judged by a number: no labels say")
        measured = "MVAE 0.600 ± 0.001 (beta 1)" in verdict.numbers
        assert measured == (found is evidence)
