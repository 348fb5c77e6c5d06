"""The paper's claims: each can hold, fail and be not measured; the command."""

import dataclasses
import json
import math
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from evidence import as_in_the_paper, write

from experiments.judging import paper, rules, statistics
from experiments.judging.verdicts import (
    evaluate,
    found_claims,
    judge,
    markdown,
    table,
    tags_of,
)
from experiments.plans import plan
from experiments.running.command import flags

NAMES = [claim.name for claim in paper.CLAIMS]
NEVER_JUDGED = "nothing is annotated"
BY_NAME = {claim.name: claim for claim in paper.CLAIMS}
CASES = [
    pytest.param(claim, column, model, id=f"{claim.name}-{column}-{model or 'all'}")
    for claim in paper.CLAIMS
    if claim.rule != NEVER_JUDGED  # test_pair_figures.py
    for column in claim.columns
    for model in claim.models
]
# Of each rule its first case, for the tests of what every rule does with other data.
FIRST = {case.values[0].rule: case.id for case in reversed(CASES)}.values()
A_CASE_OF_EACH_RULE = [
    case
    if case.id in FIRST
    else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow)
    for case in CASES
]
_, DEMO = plan.load_scale("demo")


def specs_of(claim, column, model):
    return paper.specs_of(claim, DEMO, column, model)


def verdicts_on(evidence, claim, column, model):
    found = [
        judge(rules.Line(evidence, claim, column, model, tag))
        for tag in tags_of(evidence, claim, column, model)
    ]
    assert found
    return found


def flat(spec, beta, tag):
    """All models alike, whatever the data and beta."""
    return 100.0 if "classifier_accuracy" not in tag else 0.9


def reversed_(spec, beta, tag):
    """The paper the other way round."""
    value = as_in_the_paper(spec, beta, tag)
    name = tag.removeprefix("eval/")
    if name.startswith("attribute_coherence"):
        return 0.9
    if name.startswith(("fid", "swd", "frechet_classifier")):
        if spec.dataset in ("shapes", "cub"):
            return 1e4 / value
        answers = ("mvae_plus", *paper.COORDINATION, "crmvae", "code_flow")
        if spec.model in ("mvae", *answers):
            return 3 * value if spec.model == "mvae" else 9 * value
        return 1e4 / value
    if name == "coherence/size_1":
        return 1 - value
    if name.startswith(("coherence", "linear_probe")):
        if spec.model == "mvae" or spec.dataset == "translated":
            return 1 - value
        return value / 9
    # Left as it is, log-likelihoods contradict the qualities.
    return 2 * value if spec.model == "mvae_plus" else value


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All runs of the demo's plan, with the paper's results."""
    return write(tmp_path_factory.mktemp("everything") / "plan")


# The verdicts.


def test_names_are_unique_and_every_rule_is_used():
    assert len(set(NAMES)) == len(NAMES)
    assert {c.rule for c in paper.CLAIMS} == set(paper.RULES) == set(rules.JUDGES)


@pytest.mark.parametrize("scale", plan.SCALES)
def test_every_needed_run_is_one_of_a_figure(scale):
    _, config = plan.load_scale(scale)
    planned = set(plan.all_specs(config, plan.figure_specs(config)))
    for claim in paper.CLAIMS:
        for column in set(claim.columns) & set(plan.all_columns(config)):
            for model in claim.models:
                assert set(paper.specs_of(claim, config, column, model)) <= planned


@pytest.mark.parametrize(("claim", "column", "model"), CASES)
def test_holds_on_the_papers_results(everything, claim, column, model):
    for verdict in verdicts_on(everything, claim, column, model):
        assert verdict.holds is True, verdict.numbers
        if claim.rule != "trains":
            assert verdict.z >= paper.THRESHOLD
            assert verdict.z == pytest.approx(
                verdict.difference / verdict.standard_error
            )


@pytest.mark.parametrize("value", [flat, reversed_])
@pytest.mark.parametrize(("claim", "column", "model"), A_CASE_OF_EACH_RULE)
def test_fails_on_other_results(tmp_path, claim, column, model, value):
    specs = specs_of(claim, column, model)
    if claim.rule == "trains":
        losses = (2600.0, 2600.0 if value is flat else 2900.0)
        evidence = write(tmp_path / "plan", specs=specs, losses=losses)
    else:
        evidence = write(tmp_path / "plan", value, specs=specs)
    for verdict in verdicts_on(evidence, claim, column, model):
        assert verdict.holds is False, verdict.numbers


@pytest.mark.parametrize(("claim", "column", "model"), A_CASE_OF_EACH_RULE)
def test_is_not_measured_if_any_needed_run_is_missing(everything, claim, column, model):
    for spec in specs_of(claim, column, model):
        runs = {s: run for s, run in everything.runs.items() if s != spec}
        for verdict in verdicts_on(
            dataclasses.replace(everything, runs=runs), claim, column, model
        ):
            assert verdict.holds is None
            assert spec.folder in verdict.numbers
            assert math.isnan(verdict.z)


@pytest.mark.parametrize(("claim", "column", "model"), A_CASE_OF_EACH_RULE)
def test_one_seed_has_no_standard_error(tmp_path, claim, column, model):
    evidence = write(
        tmp_path / "plan",
        specs=specs_of(claim, column, model),
        changes={"seed": (0,)},
    )
    for verdict in verdicts_on(evidence, claim, column, model):
        if claim.rule == "trains":  # no difference of means
            assert verdict.holds is True
        else:
            assert verdict.holds is None
            assert "no standard error" in verdict.numbers


@pytest.mark.parametrize(("claim", "column", "model"), A_CASE_OF_EACH_RULE)
def test_is_not_measured_without_its_metric(tmp_path, claim, column, model):
    evidence = write(
        tmp_path / "plan",
        specs=specs_of(claim, column, model),
        changes={
            "metrics": ("matching",),
            "metrics_by_modalities": ("matching",),
        },
    )
    for verdict in verdicts_on(evidence, claim, column, model):
        assert verdict.holds is None
        assert "eval/" in verdict.numbers


# What the rules compute.

SHORT = {"changes": {"seed": (0, 1, 2), "beta": (0.3, 1.0)}}


def difference(tmp_path, own, other, name="gap", **options):
    """The verdict on MMVAE against unimodal VAEs, whose SWDs are given."""

    def value(spec, beta, tag):
        values = own if spec.model == "mmvae" else other
        return values[beta] if tag == "eval/swd/m0" else 1.0

    claim = BY_NAME[name]
    specs = specs_of(claim, "polymnist", "mmvae")
    evidence = write(tmp_path / "plan", value, specs=specs, **options)
    return verdicts_on(evidence, claim, "polymnist", "mmvae")[0]


def test_z_in_closed_form(tmp_path):
    """Chosen betas, standard errors from n - 1, and the sign of what is worse."""
    betas = dict(seed=(0, 1, 2), beta=(0.3, 1.0))
    verdict = difference(
        tmp_path, {0.3: 70.0, 1.0: 60.0}, {0.3: 50.0, 1.0: 55.0}, changes=betas,
        noise=0.1,
    )  # fmt: skip
    own, other = 60 + 6 * np.array([-1, 0, 1]), 50 + 5 * np.array([-1, 0, 1])
    error = np.sqrt(own.var(ddof=1) / 3 + other.var(ddof=1) / 3)
    assert verdict.difference == pytest.approx(10)
    assert verdict.standard_error == pytest.approx(error)
    assert verdict.z == pytest.approx(10 / error)
    assert [(p.beta, p.num) for p in verdict.points] == [(1.0, 3), (0.3, 3)]
    assert verdict.holds is True


def test_each_seed_is_judged_at_the_beta_of_the_others(tmp_path):
    """No seed has its own best value, and the error holds that the choice differs."""
    verdict = difference(tmp_path, {0.3: 1.0, 1.0: 1.0}, {0.3: 0.0, 1.0: 0.0}, **SHORT)
    path = tmp_path / "plan/polymnist/mmvae/summary.json"
    summary = json.loads(path.read_text())
    # Lower is better: seed 0 is best at 0.3, as the mean is; seeds 1 and 2 at 1.
    of_seeds = {0.3: (10.0, 80.0, 70.0), 1.0: (65.0, 60.0, 50.0)}
    for member in summary["members"]:
        value = of_seeds[member["beta"]][member["seed"]]
        member["metrics"]["eval/swd/m0"] = value
    path.write_text(json.dumps(summary))
    evidence = plan.read(tmp_path / "plan")
    claim = BY_NAME["gap"]
    verdict = verdicts_on(evidence, claim, "polymnist", "mmvae")[0]
    own = verdict.points[0]
    assert own.betas == (1.0, 0.3, 0.3) and math.isnan(own.beta)
    assert own.mean == pytest.approx((65 + 80 + 70) / 3)
    without = np.array([(60 + 50) / 2, (65 + 70) / 2, (65 + 80) / 2])
    error = np.sqrt(2 / 3 * np.sum((without - without.mean()) ** 2))
    assert verdict.standard_error == pytest.approx(error)  # the other's is 0
    assert "(beta 1, 0.3, 0.3)" in verdict.numbers


@pytest.mark.parametrize(
    ("betas", "holds"), [((0.3, 1.0), None), ((1.0,), True)], ids=["choice", "none"]
)
def test_two_seeds_cannot_choose_for_each_other(tmp_path, betas, holds):
    """They say so; where there is nothing to choose, they suffice."""
    verdict = difference(
        tmp_path, dict.fromkeys(betas, 60.0), dict.fromkeys(betas, 50.0),
        changes=dict(seed=(0, 1), beta=betas), noise=0.01,
    )  # fmt: skip
    assert verdict.holds is holds
    assert ("the other seeds needs 3 or more" in verdict.numbers) is (holds is None)


@pytest.mark.parametrize(("mean", "word"), [(60.0, "holds (fragile)"), (70.0, "holds")])
def test_what_holds_by_little_is_fragile(tmp_path, mean, word):
    # SE = sqrt((6^2 + 5^2) / 3) = 4.51, and 5.0 of 70.
    verdict = difference(
        tmp_path, {1.0: mean}, {1.0: 50.0}, changes={"beta": (1.0,)}, noise=0.1
    )
    assert (verdict.holds, verdict.word) == (True, word)
    found = found_claims(plan.read(tmp_path / "plan"), [verdict])
    assert found["claims"][0]["fragile"] is (word != "holds")
    assert word in table([verdict]) and f"**{word}**" in markdown(found)


def test_a_difference_of_less_than_two_standard_errors_does_not_count(tmp_path):
    betas = dict(beta=(1.0,))
    # SE = sqrt((6^2 + 5^2) / 3) = 4.51.
    for mean, holds in ((58.9, False), (59.2, True)):
        noise = 0.1
        verdict = difference(
            tmp_path / str(mean), {1.0: mean}, {1.0: 50.0}, changes=betas, noise=noise
        )
        assert verdict.holds is holds, verdict.z


def test_of_several_differences_the_least_counts(tmp_path):
    means = {"mvtcae": 0.4, "mmvae": 0.6, "mopoe": 0.5}
    claim = BY_NAME["coordination_coherence"]
    specs = specs_of(claim, "polymnist", "mvtcae")
    for nearest, holds in ((0.5, True), (0.401, False), (0.3, False)):
        means["mopoe"] = nearest
        evidence = write(
            tmp_path / str(nearest),
            lambda spec, beta, tag: means[spec.model],
            specs=specs,
        )
        (verdict,) = verdicts_on(evidence, claim, "polymnist", "mvtcae")
        assert verdict.difference == pytest.approx(nearest - 0.4)
        assert verdict.holds is holds
        assert [point.mean for point in verdict.points] == pytest.approx(
            [0.4, 0.6, nearest]
        )


def test_diverged_members_are_left_out(tmp_path):
    """A beta with one seed left cannot be chosen; one with two can."""
    verdict = difference(
        tmp_path,
        {0.3: 10.0, 1.0: 60.0, 3.0: 80.0},
        {0.3: 50.0, 1.0: 55.0, 3.0: 60.0},
        changes={"beta": (0.3, 1.0, 3.0)},
        is_finite=lambda spec, beta, seed: (
            spec.model != "mmvae"
            or (seed == 0 or beta == 3.0 or (seed, beta) == (1, 1))
        ),
    )
    own = verdict.points[0]
    assert (own.beta, own.num) == (1.0, 2)


def test_all_members_diverged(tmp_path):
    verdict = difference(
        tmp_path, {1.0: 2.0}, {1.0: 1.0}, changes={"beta": (1.0,)},
        is_finite=lambda spec, beta, seed: spec.model != "mmvae",
    )  # fmt: skip
    assert verdict.holds is None
    assert "diverged" in verdict.numbers


@pytest.mark.parametrize("with_fid", [True, False])
def test_fid_is_used_where_all_runs_have_it(tmp_path, with_fid):
    changes = {"metrics": ("swd", "frechet", "fid")}
    claim = BY_NAME["gap"]
    specs = specs_of(claim, "polymnist", "mmvae")

    def value(spec, beta, tag):
        lacks = "fid" in tag and spec.model == "unimodal" and not with_fid
        return None if lacks else as_in_the_paper(spec, beta, tag)

    evidence = write(tmp_path / "plan", value, specs=specs, changes=changes)
    tags = [v.tag for v in verdicts_on(evidence, claim, "polymnist", "mmvae")]
    others = ["eval/swd/m0", "eval/frechet_classifier/m0"]
    assert tags == (["eval/fid/m0"] if with_fid else others)


@pytest.mark.parametrize(
    ("mvae", "reaches", "is_level"),
    [(100, True, True), (120, True, True), (80, True, True), (150, False, False),
     (135, False, False), (50, True, False), (65, True, False)],
)  # fmt: skip
def test_the_level_is_less_than_half_of_the_gap_away(tmp_path, mvae, reaches, is_level):
    """Unimodal 100, the nearer mixture 170: from 65 to 135, on both sides."""

    def value(spec, beta, tag):
        return {"unimodal": 100, "mvae": mvae, "mmvae": 200, "mopoe": 170}[spec.model]

    names = ("mvae_reaches_unimodal", "mvae_level_with_unimodal")
    specs = specs_of(BY_NAME[names[0]], "polymnist", "mvae")
    evidence = write(tmp_path / "plan", value, specs=specs)
    found = [
        verdicts_on(evidence, BY_NAME[name], "polymnist", "mvae")[0].holds
        for name in names
    ]
    assert found == [reaches, is_level]


def test_the_level_cannot_be_reached_in_noise(tmp_path):
    specs = specs_of(BY_NAME["mvae_reaches_unimodal"], "polymnist", "mvae")
    evidence = write(tmp_path / "plan", specs=specs, noise=0.3)
    for name in ("mvae_reaches_unimodal", "mvae_level_with_unimodal"):
        for verdict in verdicts_on(evidence, BY_NAME[name], "polymnist", "mvae"):
            assert verdict.holds is False


def test_the_slope_is_that_of_least_squares(tmp_path):
    claim = BY_NAME["gap_grows"]
    values = {2: 100.0, 3: 130.0, 4: 128.0, 0: 160.0}

    def value(spec, beta, tag):
        return 90.0 if spec.model == "unimodal" else values[spec.num_modalities]

    specs = specs_of(claim, "polymnist", "mopoe")
    evidence = write(tmp_path / "plan", value, specs=specs, noise=0.02)
    verdict = verdicts_on(evidence, claim, "polymnist", "mopoe")[0]
    slope = np.polyfit([2, 3, 4, 5], list(values.values()), 1)[0]
    weights = np.array([-1.5, -0.5, 0.5, 1.5]) / 5
    errors = 0.02 * np.array(list(values.values())) / np.sqrt(3)
    assert verdict.difference == pytest.approx(slope)
    assert verdict.standard_error == pytest.approx(np.linalg.norm(weights * errors))
    assert verdict.holds is True
    assert "2 of 3 steps" in verdict.numbers


@pytest.mark.parametrize(
    ("values", "unimodal"),
    [((100, 140, 135, 130), 90), ((100, 110, 120, 130), 140)],
)
def test_growth_needs_most_steps_and_a_gap(tmp_path, values, unimodal):
    claim = BY_NAME["gap_grows"]
    of_num = dict(zip((2, 3, 4, 0), values, strict=True))

    def value(spec, beta, tag):
        return unimodal if spec.model == "unimodal" else of_num[spec.num_modalities]

    specs = specs_of(claim, "polymnist", "mopoe")
    evidence = write(tmp_path / "plan", value, specs=specs)
    verdict = verdicts_on(evidence, claim, "polymnist", "mopoe")[0]
    assert verdict.z > paper.THRESHOLD
    assert verdict.holds is False


@pytest.mark.parametrize(
    ("values", "holds"),
    [((1, 2, 3, 4, 5, 6), True), ((1, 6, 5.9, 5.8, 5.7, 5.6), False),
     ((6, 5, 4, 3, 2, 1), False), ((1, 3, 2, 4, 3.5, 6), True)],
)  # fmt: skip
def test_coherence_rises_if_the_slope_and_most_steps_do(tmp_path, values, holds):
    claim = BY_NAME["mvae_coherence_rises"]
    of_beta = dict(zip(DEMO.beta, values, strict=True))
    evidence = write(
        tmp_path / "plan",
        lambda spec, beta, tag: of_beta[beta],
        specs=specs_of(claim, "polymnist", "mvae"),
    )
    (verdict,) = verdicts_on(evidence, claim, "polymnist", "mvae")
    slope = np.polyfit(np.log10(DEMO.beta), values, 1)[0]
    assert verdict.difference == pytest.approx(slope)
    assert verdict.holds is holds


def test_worse_classifiers_are_no_collapse(tmp_path):
    """Half of the coherence above chance is left, but so it is of the accuracy."""

    def value(spec, beta, tag):
        part = 0.4 if spec.dataset == "translated" else 1.0
        return 0.1 + part * (0.8 if "accuracy" in tag else 0.7)

    claim = BY_NAME["coherence_collapses"]
    specs = specs_of(claim, "translated", "mopoe")
    evidence = write(tmp_path / "plan", value, specs=specs)
    (verdict,) = verdicts_on(evidence, claim, "translated", "mopoe")
    assert verdict.holds is False


def test_classifiers_of_which_nothing_is_known_are_not_measured(tmp_path):
    claim = BY_NAME["coherence_collapses"]
    here, there = specs_of(claim, "translated", "mopoe")
    evidence = write(tmp_path / "plan", lambda *given: 0.9, specs=(here, there))
    none = SimpleNamespace(spreads=evidence.spreads[:0])
    line = rules.Line(none, claim, "translated", "mopoe", "eval/coherence/joint")
    with pytest.raises(statistics.NotMeasured, match="no eval/classifier_accuracy in"):
        rules._accuracy(line, here)


@pytest.mark.parametrize(
    ("likelihoods", "holds"),
    [
        ((-100, -110, -130, -120), True),
        ((-100, -110, -120, -130), False),  # MoPoE and MMVAE reversed
        ((-100, -110, -130, -130), True),  # and undecided
        ((-100, -100, -100, -130), False),  # too much undecided, and reversed
    ],
)
def test_rankings_are_alike_if_no_pair_is_reversed(tmp_path, likelihoods, holds):
    of_model = dict(zip(plan.MODELS, likelihoods, strict=True))

    def value(spec, beta, tag):
        if tag == "eval/log_likelihood":
            return of_model[spec.model]
        return as_in_the_paper(spec, beta, tag)

    claim = BY_NAME["log_likelihood_ranking"]
    specs = specs_of(claim, "polymnist", "")
    evidence = write(tmp_path / "plan", value, specs=specs)
    for verdict in verdicts_on(evidence, claim, "polymnist", ""):
        assert verdict.holds is holds, verdict.numbers


def test_the_part_of_the_gap_and_its_standard_error(tmp_path):
    """Against the spread of simulated parts, to first order."""
    of_tag = {
        "eval/log_likelihood": {"mvae": -200, "mopoe": -210, "mmvae": -240},
        "quality": {"mvae": 100, "mopoe": 150, "mmvae": 200},
    }

    def value(spec, beta, tag):
        return of_tag.get(tag, of_tag["quality"])[spec.model]

    claim = BY_NAME["log_likelihood_gap"]
    specs = specs_of(claim, "polymnist", "mopoe")
    evidence = write(tmp_path / "plan", value, specs=specs, noise=0.005)
    verdict = verdicts_on(evidence, claim, "polymnist", "mopoe")[0]
    random = np.random.default_rng(0)

    def parts(means):
        v, p, m = (
            mean + 0.005 * abs(mean) / np.sqrt(3) * random.normal(size=400_000)
            for mean in means.values()
        )
        return (v - p) / (v - m)

    simulated = parts(of_tag["quality"]) - parts(of_tag["eval/log_likelihood"])
    assert verdict.difference == pytest.approx(0.25)
    assert verdict.standard_error == pytest.approx(simulated.std(), rel=0.02)


def test_one_diverged_member_is_no_training(tmp_path):
    claim = BY_NAME["mvae_trains"]
    evidence = write(
        tmp_path / "plan",
        specs=specs_of(claim, "polymnist", "mvae"),
        is_finite=lambda spec, beta, seed: (beta, seed) != (9.0, 1),
    )
    (verdict,) = verdicts_on(evidence, claim, "polymnist", "mvae")
    assert verdict.holds is False
    assert "2 of 3 members" in verdict.numbers


# The command.


@pytest.fixture
def command(monkeypatch, capsys):
    """(arguments) -> exit code, lines of standard output, lines of standard error."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")

    def run(*arguments):
        monkeypatch.delitem(sys.modules, "experiments.claims", raising=False)
        monkeypatch.setattr(sys, "argv", ["claims", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("experiments.claims", run_name="__main__")
        flags.FLAGS.unparse_flags()
        for name in ("directory", "before"):
            delattr(flags.FLAGS, name)
        out, err = capsys.readouterr()
        return stop.value.code, out.splitlines(), err.splitlines()

    yield run
    flags.FLAGS.set_gnu_getopt(False)


def read(directory):
    return json.loads((directory / "claims.json").read_text())


@pytest.mark.slow
def test_the_command_writes_what_evaluate_says(everything, command):
    code, out, err = command(everything.directory)
    assert (code, err) == (0, [])
    found = read(everything.directory)
    verdicts = evaluate(everything)
    assert len(verdicts) == len(found["claims"])
    for verdict, row in zip(verdicts, found["claims"], strict=True):
        holds = None if verdict.claim.rule == NEVER_JUDGED else True
        assert row["holds"] is verdict.holds is holds
        assert row["verdict"] == ("holds" if holds else "not measured")
        assert row["name"] == verdict.claim.name
        assert len(row["points"]) == len(verdict.points)
    assert found["scale"] == "demo"
    assert found["machine"] == "cpu, 2 cores"
    assert set(found["datasets"]) >= {"polymnist-made-up", "translated-made-up"}
    text = "\n".join(out)
    assert DEMO.description in text
    for claim in paper.CLAIMS:
        assert claim.text in text and claim.where in text


@pytest.mark.slow
def test_the_page_has_a_row_for_each_verdict(everything, command, monkeypatch):
    monkeypatch.chdir(everything.directory.parent)
    assert command(everything.directory)[0] == 0
    found = read(everything.directory)
    # No path of this machine: results are made to be shown.
    assert (
        found["command"] == f"python -m experiments.claims {everything.directory.name}"
    )
    lines = (everything.directory / "claims.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    assert len(rows) == len(found["claims"])
    for row, verdict in zip(rows, found["claims"], strict=True):
        is_judged = verdict["rule"] != paper.RULES[NEVER_JUDGED]
        assert ("**holds**" if is_judged else "**not measured**") in row
        assert verdict["claim"] in row and verdict["numbers"] in row
    assert DEMO.description in lines[0]


def test_verdicts_that_changed_say_what_they_were(tmp_path, command):
    specs = plan.sweep(("polymnist",), plan.MODELS)
    write(tmp_path / "plan", flat, specs=specs)
    assert command(tmp_path / "plan")[0] == 0
    old = tmp_path / "old.json"
    found = read(tmp_path / "plan")
    is_there = [row["holds"] is not None for row in found["claims"]]
    row = found["claims"][is_there.index(True)]
    row |= {"holds": True, "difference_in_standard_errors": 2.5}
    # What is not measured now has not changed.
    unseen = found["claims"][is_there.index(False)]
    unseen |= {"holds": True, "difference_in_standard_errors": 5.0}
    old.write_text(json.dumps(found))
    code, out, _ = command(tmp_path / "plan", f"--before={old}")
    assert code == 0
    (line,) = [line for line in out if "before" in line]
    assert row["name"] in line and "fails; before: holds (fragile)" in line
    page = (tmp_path / "plan/claims.md").read_text()
    assert page.count("before: ") == 1 and "**fails**, before: holds (fragile)" in page
    assert f"Of the {sum(is_there)} verdicts" in page and ", 1 are others" in page
    new = read(tmp_path / "plan")["claims"][is_there.index(True)]
    assert (new["before"], new["before_in_standard_errors"]) == ("holds (fragile)", 2.5)


@pytest.mark.parametrize("text", [None, "[]", "{", '{"claims": [{}]}'])
def test_before_is_a_claims_json(judged, command, text):
    path = judged / "before.json"
    if text is not None:
        path.write_text(text)
    code, out, err = command(judged, f"--before={path}")
    assert (code, out, len(err)) == (2, [], 1)
    assert f"--before={path}" in err[0]
    assert (judged / "claims.json").read_text() == "old"


def test_a_failing_claim_is_a_result_and_not_an_error(tmp_path, command):
    specs = plan.sweep(("polymnist",), plan.MODELS)
    write(tmp_path / "plan", flat, specs=specs)
    code, out, _ = command(f"--directory={tmp_path / 'plan'}")
    assert code == 0
    verdicts = {row["verdict"] for row in read(tmp_path / "plan")["claims"]}
    assert verdicts == {"holds", "fails", "not measured"}  # mvae_trains holds
    assert any(line.startswith("FAILS") for line in out)
    assert any(line.startswith("not measured") for line in out)


def test_new_runs_are_seen_by_the_next_call(tmp_path, command):
    claim = BY_NAME["coherence"]
    first, *others = specs_of(claim, "polymnist", "mmvae")

    def holds():
        assert command(tmp_path / "plan")[0] == 0
        return next(
            row["holds"]
            for row in read(tmp_path / "plan")["claims"]
            if (row["name"], row["model"]) == ("coherence", "MMVAE")
        )

    write(tmp_path / "plan", specs=[first])
    assert holds() is None
    write(tmp_path / "plan", specs=others)
    assert holds() is True


@pytest.fixture
def judged(tmp_path):
    """A folder with one run and an older claims.json."""
    directory = tmp_path / "plan"
    write(directory, specs=[plan.Spec("polymnist", "mvae")])
    (directory / "claims.json").write_text("old")
    return directory


def _no_plan(directory):
    (directory / plan.PLAN).unlink()


def _no_runs(directory):
    (directory / "polymnist/mvae/summary.json").unlink()


def _mixed_scale(directory):
    path = directory / "polymnist/mvae/config.json"
    config = json.loads(path.read_text())
    config["train"]["num_steps"] += 1
    path.write_text(json.dumps(config))


def _no_json(directory):
    (directory / "polymnist/mvae/summary.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_no_plan, "no plan.json"),
        (_no_runs, "no finished run"),
        (_mixed_scale, "num_steps"),
        (_no_json, "summary.json"),
    ],
)
def test_mistakes_are_one_line_and_overwrite_nothing(judged, command, spoil, words):
    spoil(judged)
    code, out, err = command(judged)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("error: ") and words in err[0]
    assert (judged / "claims.json").read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name the folder"),
        (("{here}", "more"), "'more'"),
        (("--directory={here}", "more"), "'more'"),
        (("{here}", "--nonsense"), "nonsense"),
        (("{here}/absent",), "no plan.json"),
    ],
)
def test_mistakes_in_the_arguments(judged, command, arguments, words):
    arguments = [text.format(here=judged) for text in arguments]
    code, out, err = command(*arguments)
    assert (code, out, len(err)) == (2, [], 1)
    assert words in err[0]
    assert (judged / "claims.json").read_text() == "old"
