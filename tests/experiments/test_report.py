"""The page of finished runs: what it shows, that it stands alone, and its errors."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments import report
from experiments.drawing import page, page_pictures
from experiments.drawing.page import METRICS, _shown_member, points_in, render, write
from experiments.plans.names import model_label
from experiments.plans.runs import find_runs
from mmvae_jax.errors import UsageError
from mmvae_jax.files import file_name
from mmvae_jax.models import MODELS

HOSTILE = "<script>alert('x')</script> & \"q\""
ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "experiments" / "drawing" / "report.js").read_text()
NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Page(HTMLParser):
    """What a page refers to, its elements, and its text."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.words = [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.words.append(data)


def metrics(shift=0.0):
    return {
        "eval/elbo": -100.0 + shift,
        "eval/kl": 5.0,
        "eval/coherence/leave_one_out": 0.5 + shift / 100,
        "eval/coherence/leave_one_out/a": 0.25,
        "eval/coherence/leave_one_out/b": 0.75,
        "eval/coherence/size_1": 0.61,
        "eval/coherence/size_2": 0.62,
        "eval/classifier_accuracy/a": 0.987,
        "eval/classifier_accuracy/b": 0.977,
        "eval/swd": 222.0,
        "eval/swd/a": 211.0,
        "eval/swd/b": 233.0,
        "eval/log_likelihood": -90.0,
        "eval/log_likelihood/standard_error": 0.5,
    }


def save_picture(path, seed=0, size=(20, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)


def save_run(workdir, model="mvae", betas=(0.5, 2.0), seeds=(0, 1), **changes):
    """A finished run of a few numbers: beta 2 has the metrics of 0.5 and ten more."""
    members = [
        {
            "beta": beta,
            "learning_rate": 0.001,
            "seed": seed,
            "finite": True,
            "metrics": metrics(10.0 * (beta == 2.0) + seed),
        }
        for beta in betas
        for seed in seeds
    ]
    summary = {
        "model": model,
        "dataset": "polytest",
        "num_steps": 1200,
        "wall_seconds": 150.0,
        "training_seconds": 90.0,
        "step_seconds": 0.25,
        "num_parameters": 12345,
        "device": "cpu",
        "members": members,
    }
    lines = [
        {"step": step, "member": k, "train/elbo": -200.0 + step / 20, "train/loss": 1.0}
        for step in (100, 600, 1200)
        for k in range(len(members))
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"model": {"name": model}}))
    (workdir / "summary.json").write_text(json.dumps(summary | changes))
    (workdir / "metrics.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    for k, beta in enumerate(betas):
        for seed in seeds:
            for name in ("prior", "a_given_b"):
                file = f"beta={beta:g},seed={seed}_{name}.png"
                save_picture(workdir / "samples" / file, k)
    return summary


def edit(path, change):
    """Applies a function to the content of a JSON file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path):
    """Two runs, a figure, and the verdicts on them."""
    directory = tmp_path / "study"
    save_run(directory / "first")
    save_run(directory / "second", model="mmvae")
    save_picture(directory / "tradeoff.png")
    claims = [
        {"claim": "MVAE is good", "holds": True, "numbers": "1.0 ± 0.1 against 2.0"},
        {"claim": "MMVAE is bad", "holds": False, "numbers": "3.0 against 4.0"},
        {"claim": "MoPoE is late", "holds": None},
    ]
    results = {"claims": claims, "date": "2001-02-03", "machine": "a toaster"}
    (directory / "results.json").write_text(json.dumps(results))
    return directory


def test_what_the_page_shows(runs):
    page = Page(render(runs))
    for words in (
        "Multimodal VAEs: study",
        "MVAE 4 4 1,200 2.5 min 90 s 0.25 s 12,345 cpu polytest",
        "MMVAE 4 4 1,200 2.5 min 90 s 0.25 s 12,345 cpu polytest",
        "MVAE is good ✓ holds 1.0 ± 0.1 against 2.0",
        "MMVAE is bad ✗ fails 3.0 against 4.0",
        "MoPoE is late ○ not measured –",
        # Means and standard deviations of -100 and -99, and of -90 and -89.
        "MVAE 0.5 2 0.505 ± 0.007 222.0 ± 0.0 -99.5 ± 0.7",
        "MVAE 2 2 0.605 ± 0.007 222.0 ± 0.0 -89.5 ± 0.7",
        "model β a b MVAE 0.5 0.250 ± 0.000 0.750 ± 0.000",
        "model β 1 given 2 given MVAE 0.5 0.610 ± 0.000 0.620 ± 0.000",
        "on real data: a 0.987, b 0.977",
        "β = 2, seed = 1 yes 0.610 222.0 -89.0",
        "a given b (real, top row)",
        "2001-02-03",
        "a toaster",
        '"name": "mmvae"',
    ):
        assert words in page.text, words
    # 1 figure, 1 front, 2 panels, and 2 grids for each of 4 members of 2 runs.
    assert page.tags.count("img") == 1 + 1 + 2 + 2 * 4 * 2
    # Other members' samples, and the configs.
    assert page.tags.count("details") == 2 + 2


def test_the_entries_of_what_the_runs_used_end_the_page(runs):
    text = Page(render(runs)).text
    *_, end = text.partition("Citations The BibTeX entries")
    assert "% model mvae: wu2018multimodal" in end
    for key in ("wu2018multimodal", "shi2019variational", "karras2018progressive"):
        assert f"{{{key}," in end
    assert "burda2016importance," in end and "heusel2017gans," not in end


def test_many_members_show_one_of_each_run(runs, monkeypatch):
    monkeypatch.setattr(page, "MAX_MEMBERS", 7)
    shown = Page(render(runs))
    assert shown.tags.count("img") == 1 + 1 + 2 + 2 * 2
    # Their numbers stay.
    assert "β = 2, seed = 1 yes 0.610 222.0 -89.0" in shown.text


def test_figures_are_in_the_order_of_their_numbers(runs):
    for name in ("figure_10", "figure_2", "figure_theorem"):
        save_picture(runs / "figures" / f"{name}.png")
    captions = [figure.caption for figure in page_pictures.figures(runs)]
    assert captions[1:] == ["Figure 2", "Figure 10", "Figure theorem"]


def test_claims_json_is_preferred(runs):
    claim = {
        "claim": "MVAE is new",
        "holds": True,
        "numbers": "1",
        "dataset": "PolyTest",
        "model": "MVAE",
        "metric": "eval/swd/m0",
        "difference_in_standard_errors": 2.51,
    }
    (runs / "claims.json").write_text(json.dumps({"claims": [claim]}))
    page = Page(render(runs))
    words = (
        "MVAE is new (PolyTest, MVAE, swd/m0) ✓ holds (fragile) 1; difference +2.5 SE"
    )
    assert words in page.text
    assert "MVAE is good" not in page.text


def draw_fronts(directory):
    points = points_in(directory)
    return page_pictures.draw_fronts(points.heads, points.spreads, METRICS)


def test_a_front_holds_what_can_be_compared(runs):
    points = points_in(runs)

    def captions(heads, spreads):
        fronts = page_pictures.draw_fronts(heads, spreads, METRICS)
        return [front.caption for front in fronts]

    assert captions(points.heads, points.spreads) == ["polytest"]
    others = points.heads.assign(dataset=[f"{k}" for k in range(len(points.heads))])
    # One point is no front, and neither is one measure.
    assert captions(others, points.spreads) == []
    bare = points.spreads[points.spreads["tag"] != page_pictures.COHERENCE]
    assert captions(points.heads, bare) == []


def test_a_front_of_many_models_is_readable(tmp_path, monkeypatch):
    """Models are named without their folders, and betas only if there is room."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: saved.append(self))
    models = list(MODELS)[: page_pictures.MAX_ANNOTATED + 1]
    for num, model in enumerate(models, 1):
        save_run(tmp_path / "d" / model, model, betas=(0.5,))
        if num < page_pictures.MAX_ANNOTATED:
            continue
        draw_fronts(tmp_path)
        (axis,) = saved[-1].axes
        assert len(axis.texts) == (num if num == page_pictures.MAX_ANNOTATED else 0)
        (legend,) = [axis.get_legend()] if axis.get_legend() else saved[-1].legends
        labels = [text.get_text() for text in legend.get_texts()]
        assert set(labels) == {model_label(model) for model in models[:num]}


def test_two_runs_of_one_model_are_told_apart(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: saved.append(self))
    for name in ("d", "e"):
        save_run(tmp_path / name)
    draw_fronts(tmp_path)
    texts = saved[-1].axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts] == ["MVAE (d)", "MVAE (e)"]


def test_the_page_stands_alone(runs):
    text = render(runs)
    page = Page(text)
    assert page.references
    assert all(r.startswith(("data:image/", "#")) for r in page.references)
    assert {"link", "iframe", "object"}.isdisjoint(page.tags)
    # Its one script is in it, and the page's own policy lets no other run.
    ((attributes, script),) = re.findall(r"<script(.*?)>(.*?)</script>", text, re.S)
    assert attributes == "" and script == SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; " in text
    assert re.findall(r"script-src ([^;\"]*)", text) == [f"'sha256-{digest}'"]
    assert not re.search(r"\bon\w+=|javascript:", text.replace(script, ""))
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    assert "http" not in re.sub(r"http-equiv|data:[^\"]*", "", text)
    assert str(runs.parent) not in text


def test_links_lead_somewhere(runs):
    text = render(runs)
    targets = [r[1:] for r in Page(text).references if r.startswith("#")]
    assert len(set(targets)) == 11 and targets.count("gallery") == 1 + 4  # points
    assert all(f'id="{target}"' in text for target in targets)


def test_values_are_escaped(tmp_path):
    directory = tmp_path / "<b>study"
    save_run(directory / "<i>run", model=HOSTILE, dataset=HOSTILE, device=HOSTILE)
    save_run(directory / "other", model=HOSTILE)
    hostile = metrics() | {"eval/swd/<script>": 1.0}
    edit(
        directory / "other" / "summary.json",
        lambda summary: [m.update(metrics=hostile) for m in summary["members"]],
    )
    save_picture(directory / "<script>.png")
    for name in list((directory / "other" / "samples").iterdir()):
        name.rename(name.with_name(name.name.replace("a_given", '"><script>_given')))
    results = {"claims": [{"claim": HOSTILE, "holds": True, "numbers": HOSTILE}]}
    results |= {"scale": HOSTILE, "versions": {HOSTILE: HOSTILE}, "command": HOSTILE}
    (directory / "results.json").write_text(json.dumps(results))
    text = render(directory)
    page = Page(text)
    assert {"b", "i"}.isdisjoint(page.tags) and page.tags.count("script") == 1
    assert HOSTILE in page.text and f"{HOSTILE} (<i>run)" in page.text
    assert not re.search(r"<script|<b>|<i>", text.replace(f"<script>{SCRIPT}", ""))


def test_what_is_no_number_is_nan(runs):
    def spoil(summary):
        first, second, third, fourth = summary["members"]
        first["metrics"].update({"eval/elbo": None, "eval/kl": math.nan})
        del second["metrics"]["eval/swd"]
        third["metrics"]["eval/elbo"] = fourth["metrics"]["eval/elbo"] = 1e400
        first["metrics"]["eval/swd/a"] = None
        first["undefined"] = {
            "eval/elbo": "<b> is in no example",
            "eval/swd/a": "<b> is in no example",
        }

    edit(runs / "first" / "summary.json", spoil)
    page = Page(render(runs))
    # Of some seed, SWD, ELBO or KL is missing.
    assert "MVAE 0.5 2 0.505 ± 0.007 nan nan nan -90.0 ± 0.0" in page.text
    assert "MVAE 2 2 0.605 ± 0.007 222.0 ± 0.0 nan 5.000 ± 0.000" in page.text
    assert "β = 0.5, seed = 0 yes 0.500 222.0 nan nan -90.0" in page.text
    assert "β = 0.5, seed = 1 yes 0.510 – 99" not in page.text
    assert "<b> is in no example (MVAE: elbo, swd/a)" in page.text
    assert not re.search(r"\b(inf|None)\b", page.text)


def test_names_of_modalities_are_safe_in_the_page(tmp_path):
    names = ("a/b", "<i>x</i>", "%s{}", "standard_error")

    def rename(summary):
        for member in summary["members"]:
            for name in names:
                member["metrics"][f"eval/swd/{name}"] = 77.5
                member["metrics"][f"eval/classifier_accuracy/{name}"] = 0.25

    save_run(tmp_path / "run", betas=(1.0,), seeds=(0,))
    edit(tmp_path / "run" / "summary.json", rename)
    file = f"beta=1,seed=0_{file_name('a/b_given_<i>x</i>')}.png"
    save_picture(tmp_path / "run" / "samples" / file)
    page = Page(render(tmp_path))
    assert "i" not in page.tags
    assert f"β a b {' '.join(names)} MVAE 1 211.0 233.0 77.5 77.5 77.5" in page.text
    assert ", ".join(f"{name} 0.250" for name in names) in page.text
    assert "a/b given <i>x</i> (real, top row)" in page.text


def test_members_that_diverged_are_marked(runs):
    def diverge(summary):
        for member in summary["members"][1:]:
            member.update(finite=False, metrics=dict.fromkeys(metrics()))

    edit(runs / "first" / "summary.json", diverge)
    page = Page(render(runs))
    assert "MVAE 4 1 1,200" in page.text
    assert "MVAE 0.5 1 of 2 finite" in page.text
    assert "MVAE 2 0 of 2 finite – – – – –" in page.text
    assert "β = 0.5, seed = 0 yes 0.500 222.0" in page.text
    assert "β = 0.5, seed = 1 NO nan nan nan nan nan" in page.text
    assert "β = 2, seed = 0 NO nan nan nan nan nan" in page.text


def test_a_finite_member_is_the_one_shown(runs):
    rows = json.loads((runs / "first" / "summary.json").read_text())["members"]
    assert _shown_member(rows) == 2
    rows[2]["finite"] = False
    assert _shown_member(rows) == 3
    rows[3]["finite"] = False
    assert _shown_member(rows) == 0
    for row in rows:
        row["finite"] = False
    assert _shown_member(rows) == 0


def test_learning_rates_are_not_averaged(tmp_path):
    save_run(tmp_path / "run", betas=(1.0,))

    def change(summary):
        summary["members"][1]["learning_rate"] = 0.01

    edit(tmp_path / "run" / "summary.json", change)
    text = Page(render(tmp_path)).text
    assert "MVAE 1, lr 0.001 1 0.500 222.0 -100.0" in text
    assert "MVAE 1, lr 0.01 1 0.510 222.0 -99.0" in text
    assert "β = 1, seed = 1, learning_rate = 0.01 yes" in text


def test_the_least_a_run_can_have(tmp_path):
    """No results, figures, samples, log or metrics."""
    times = ("wall_seconds", "training_seconds", "step_seconds")
    unknown = dict.fromkeys(times) | {"undefined": {"training_seconds": "not kept"}}
    save_run(tmp_path, seeds=(0,), **unknown)
    shutil.rmtree(tmp_path / "samples")
    (tmp_path / "metrics.jsonl").unlink()
    edit(
        tmp_path / "summary.json",
        lambda summary: [m.update(metrics={}) for m in summary["members"]],
    )
    page = Page(render(tmp_path))
    assert "MVAE 2 2 1,200 – – – 12,345 cpu" in page.text
    assert "not kept" in page.text and "MVAE: training_seconds" in page.text
    assert "img" not in page.tags
    assert {"#claims", "#figures", "#curves", "#modalities"}.isdisjoint(page.references)


def test_conditional_metrics_are_shown_by_what_is_given(tmp_path):
    save_run(tmp_path, seeds=(0,))
    names = ("size_2", "size_10", "leave_one_out", "reconstruction")
    values = {f"eval/conditional_swd/{x}": 2.0 + i for i, x in enumerate(names)}
    edit(
        tmp_path / "summary.json",
        lambda summary: [m["metrics"].update(values) for m in summary["members"]],
    )
    text = Page(render(tmp_path)).text
    title = "SWD ↓ by the number of modalities given model β 2 given 10 given all given"
    assert f"{title} MVAE 0.5 2.000 3.000 5.000" in text
    assert "SWD, leave one out ↓" in text and "SWD, given all ↓" in text
    assert "Fréchet (classifier) ↓ by the number" not in text


def test_probes_of_attributes_are_shown_by_attribute(tmp_path):
    save_run(tmp_path, betas=(1.0,), seeds=(0,))
    probes = {
        "shared/label/mlp": 0.9,
        "shared/attribute_colour/linear": 0.4,
        "shared/attribute_tilt/linear": 0.3,
        "shared/attribute_tilt/mlp": 0.35,
        "private/own/mlp": 0.8,
        "private/m0/attribute_tilt/mlp": 0.7,  # one modality's are not shown
    }
    values = {f"eval/probe/{tag}": value for tag, value in probes.items()}
    edit(
        tmp_path / "summary.json",
        lambda summary: summary["members"][0]["metrics"].update(values),
    )
    text = Page(render(tmp_path)).text
    assert "shared, MLP probe ↑ private, MLP probe of own attributes ↑" in text
    title = "shared, linear probe by attribute model β colour tilt MVAE 1"
    assert f"{title} 0.400 0.300" in text
    assert "shared, MLP probe by attribute model β tilt MVAE 1 0.350" in text
    assert "private, MLP probe by attribute" not in text


def test_curves_with_gaps_and_outliers(runs):
    path = runs / "first" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["train/elbo"] = None
    lines[5]["train/elbo"] = -1e30
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"torn')
    (first, *_) = find_runs(runs)
    tag, curves = page_pictures.read_curves(first)
    assert tag == "train/elbo" and len(curves) == 4
    steps, values = curves[0][1]
    assert list(steps) == [100, 600, 1200] and np.isnan(values[0])
    assert len(page_pictures.draw_curves([first], {first.workdir: "x"})) == 1


def test_long_curves_are_thinned(tmp_path):
    save_run(tmp_path, betas=(1.0,), seeds=(0,))
    lines = [{"step": k, "member": 0, "train/loss": float(k)} for k in range(5000)]
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    tag, [(_, curve)] = page_pictures.read_curves(find_runs(tmp_path)[0])
    assert tag == "train/loss" and 400 < curve.shape[1] <= 500
    assert (curve[0] == curve[1]).all()


def test_an_axis_leaves_out_only_what_hides_the_rest():
    low, high = page_pictures._limits([*range(100)])
    assert low < 0 and high > 99
    low, high = page_pictures._limits([*range(1000), -1e30])
    assert -200 < low and high < 1200
    assert page_pictures._limits([]) == (0, 1)
    low, high = page_pictures._limits([3.0, 3.0])
    assert low < 3 < high


def test_pixels_survive(runs):
    """The member shown openly is byte for byte the file; the others may shrink."""
    path = runs / "first" / "samples" / "beta=2,seed=0_prior.png"
    exact = page_pictures.picture(path, "")
    assert exact.uri in render(runs)
    assert page_pictures.picture(path, "", lossless=False).uri.startswith(
        "data:image/webp"
    )
    assert len(page_pictures.picture(path, "", lossless=False).uri) < len(exact.uri)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "first" / "summary.json").write_text("{"),
        lambda d: (d / "first" / "summary.json").write_text("[]"),
        lambda d: (d / "first" / "summary.json").write_bytes(b"\xff\xfe"),
        lambda d: edit(d / "first" / "summary.json", lambda s: s.pop("dataset")),
        lambda d: edit(d / "first" / "summary.json", lambda s: s.update(members=[])),
        lambda d: edit(
            d / "first" / "summary.json", lambda s: s["members"][0].pop("seed")
        ),
        lambda d: edit(d / "first" / "summary.json", lambda s: s.update(model=[1])),
        lambda d: edit(d / "first" / "summary.json", lambda s: s.update(num_steps="x")),
        lambda d: edit(
            d / "first" / "summary.json",
            lambda s: s["members"][0]["metrics"].update({"eval/swd": "x"}),
        ),
        lambda d: (d / "first" / "config.json").unlink(),
        lambda d: (d / "first" / "config.json").write_text("3"),
        lambda d: (d / "first" / "metrics.jsonl").write_text("[1]\n"),
        lambda d: (d / "first" / "metrics.jsonl").write_text(
            '{"step": 1, "member": 99, "train/elbo": 1.0}\n'
        ),
        lambda d: (d / "results.json").write_text("no"),
        lambda d: (d / "results.json").write_text("[]"),
        lambda d: (d / "results.json").write_text('{"claims": [1]}'),
        lambda d: (d / "tradeoff.png").write_bytes(b"not a picture"),
        lambda d: shutil.rmtree(d / "first") or shutil.rmtree(d / "second"),
    ],
)
def test_what_cannot_be_read_is_refused(damage, runs):
    out = runs / "report.html"
    out.write_text("the old page")
    damage(runs)
    with pytest.raises(UsageError) as error:
        write(runs, out)
    assert "\n" not in str(error.value)
    assert out.read_text() == "the old page"


def test_a_page_is_replaced(runs):
    out = runs / "new" / "page.html"
    write(runs, out)
    first = out.read_text()
    out.write_text("the old page")
    write(runs, out)
    assert out.read_text() == first
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    for wrong in (runs, out / "below.html"):
        with pytest.raises(UsageError, match="--out"):
            write(runs, wrong)


@pytest.mark.slow
def test_the_command_prints_a_link(tmp_path, monkeypatch, capsys):
    save_run(tmp_path / "a run", betas=(1.0,), seeds=(0,))
    given = SimpleNamespace(FLAGS=SimpleNamespace(directory=str(tmp_path), out=""))
    monkeypatch.setattr(report, "flags", given)
    report.main()
    link = (tmp_path / "report.html").as_uri()
    assert capsys.readouterr().out.startswith(f"{link} (")


@pytest.mark.slow
def test_the_command_refuses_an_empty_directory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", f"--directory={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no finished run in ")
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def attributes_of(text, tag, name):
    """The attributes of all elements of a tag that have one of this name."""
    found = []

    class Elements(HTMLParser):
        def handle_starttag(self, own, attrs):
            if own == tag and name in dict(attrs):
                found.append(dict(attrs))

    Elements().feed(text)
    return found


def test_the_gallery_has_every_picture_once(runs):
    for folder in ("first", "second"):
        for beta, seed in ((0.5, 0), (0.5, 1), (2, 0), (2, 1)):
            file = f"beta={beta:g},seed={seed}_traversal.png"
            save_picture(runs / folder / "samples" / file)
    text = render(runs)
    axes = ("data-model", "data-beta", "data-rate", "data-seed", "data-condition")
    found = [
        tuple(own[axis] for axis in axes)
        for own in attributes_of(text, "img", "data-condition")
    ]
    conditions = {
        "unconditional",
        "a given b (real, top row)",
        "latent traversal (a dimension a row, −2 to 2 deviations of the prior)",
    }
    assert sorted(found) == sorted(
        (model, beta, "0.001", seed, condition)
        for model in ("MVAE", "MMVAE")
        for beta in ("0.5", "2")
        for seed in ("0", "1")
        for condition in conditions
    )


def test_points_of_the_front_say_their_values_where_they_are(runs):
    # Two points of each run that are not the same.
    edit(
        runs / "second" / "summary.json",
        lambda summary: [
            member["metrics"].update({"eval/swd": 300.0 + 7 * k})
            for k, member in enumerate(summary["members"])
        ],
    )
    points = attributes_of(render(runs), "a", "data-model")
    assert [own["aria-label"] for own in points] == [
        "MVAE, β = 0.5: coherence 0.505 ± 0.007, SWD ↓ 222.0 ± 0.0",
        "MVAE, β = 2: coherence 0.605 ± 0.007, SWD ↓ 222.0 ± 0.0",
        "MMVAE, β = 0.5: coherence 0.505 ± 0.007, SWD ↓ 303.5 ± 4.9",
        "MMVAE, β = 2: coherence 0.605 ± 0.007, SWD ↓ 317.5 ± 4.9",
    ]
    assert {own["href"] for own in points} == {"#gallery"}
    (front,) = draw_fronts(runs)
    svg = base64.b64decode(front.uri.partition(",")[2]).decode()
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())
    groups = [x.split('<g id="')[0] for x in svg.split('id="PathCollection_')[1:]]
    drawn = []
    for path in re.findall(r'<path d="(.*?)"', "".join(groups), re.S):
        corners = np.array(re.findall(r"-?\d+\.?\d*", path), float).reshape(-1, 2)
        drawn.append((corners.min(axis=0) + corners.max(axis=0)) / 2)
    drawn = 100 * np.array(drawn) / (width, height)
    places = [(point.left, point.top) for point in front.points]
    np.testing.assert_allclose(places, drawn[: len(places)], atol=0.2)


# As much of a browser as the script needs: elements, and a page of two models.
DOM = """
class Element {
  constructor(tag, dataset = {}) {
    Object.assign(this, { tag, dataset, children: [], events: {}, attributes: {} });
  }
  append(...own) { this.children.push(...own); }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, act) { this.events[name] = act; }
  all(tag) {
    const own = this.tag === tag ? [this] : [];
    return own.concat(...this.children.map((x) => x.all?.(tag) ?? []));
  }
}
const gallery = new Element("section");
gallery.hidden = true;
const pictures = [];
for (const model of ["MVAE", "MMVAE"])
  for (const beta of ["10", "2", "0.5"])
    for (const condition of ["unconditional", "a given b", "traversal"]) {
      if (model === "MMVAE" && condition === "traversal") continue;
      const choice = { model, beta, rate: "0.1", seed: "0", condition };
      const own = new Element("img", choice);
      own.src = own.alt = [model, beta, condition].join();
      pictures.push(own);
    }
const link = new Element("a");
link.hidden = true;
const point = new Element("a", { model: "MMVAE", beta: "10", rate: "0.1" });
const document = {
  getElementById: (id) => (id === "gallery" ? gallery : null),
  createElement: (tag) => new Element(tag),
  querySelectorAll: (what) =>
    ({ "img[data-condition]": pictures, "a.point": [point] })[what] ?? [link],
};
"""
USE = """
const shown = () => gallery.all("img")[0].src;
const texts = (row) => row.all("span").map((x) => x.textContent);
const rows = gallery.all("fieldset").map(texts);
const press = (text) =>
  gallery.all("label").find((x) => x.all("span")[0].textContent === text)
    .all("input")[0].events.change();
const found = [shown()];
for (const text of ["0.5", "traversal", "MMVAE", "2"]) {
  press(text);
  found.push(shown());
}
point.events.click();
found.push(shown());
console.log(JSON.stringify({ rows, found, hidden: [gallery.hidden, link.hidden] }));
"""


@pytest.mark.skipif(NODE is None, reason="there is no node to run the script in")
def test_buttons_choose_a_picture():
    done = subprocess.run(
        [NODE, "-e", DOM + SCRIPT.replace('"use strict";', "") + USE],
        check=True,
        capture_output=True,
        text=True,
    )
    seen = json.loads(done.stdout)
    # Numbers in their order; what has one value is no choice.
    conditions = ["unconditional", "a given b", "traversal"]
    assert seen["rows"] == [["MVAE", "MMVAE"], ["0.5", "2", "10"], conditions]
    assert seen["found"] == [
        "MVAE,10,unconditional",
        "MVAE,0.5,unconditional",
        "MVAE,0.5,traversal",
        "MMVAE,0.5,unconditional",  # it has no traversal
        "MMVAE,2,unconditional",
        "MMVAE,10,unconditional",  # the point
    ]
    assert seen["hidden"] == [False, False]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open it in")
def test_a_browser_shows_it(runs, tmp_path):
    out = runs / "report.html"
    write(runs, out)
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        + [f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr"]
        + [f"--screenshot={tmp_path}/page.png", "--window-size=390,900", out.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
    )
    page = Page(done.stdout)
    assert "MVAE is good ✓ holds" in page.text
    assert page.tags.count("img") == 20 + 1  # that of the gallery
    assert "fieldset" in page.tags
    # What the page's own policy refuses would be said here.
    assert "Content Security Policy" not in done.stderr
    assert "CONSOLE" not in done.stderr


def add_captions(workdir, text):
    """Turns a run into one with captions, all members alike."""

    def measured(summary):
        for member in summary["members"]:
            for tag, value in {
                "attribute_coherence/leave_one_out": 0.71,
                "attribute_coherence/leave_one_out/a": 0.72,
                "attribute_coherence/size_1": 0.71,
                "attribute_coherence/joint": 0.69,
                "attribute_coherence/colour": 0.73,
                "attribute_coherence/colour/joint": 0.68,
                "attribute_accuracy/a": 0.931,
                "attribute_accuracy/colour/a": 0.932,
                "captions/bleu": 17.5,
                "captions/distinct_2": 0.31,
                "captions/real/bleu": 23.5,
                "captions/real/distinct_2": 0.33,
            }.items():
                member["metrics"][f"eval/{tag}"] = value

    edit(workdir / "summary.json", measured)
    for path in list((workdir / "samples").glob("*_prior.png")):
        name = path.name.replace("prior.png", "captions.txt")
        path.with_name(name).write_text(text, encoding="utf-8")


def test_captions_and_attributes(runs):
    add_captions(runs / "first", f"1. {HOSTILE} <exc>\n   - a bird\n")
    text = render(runs)
    page = Page(text)
    # As they are, and escaped: no word of a caption is part of the page.
    assert page.text.count(f"1. {HOSTILE} <exc> - a bird") == 4
    assert page.tags.count("script") == 1 and "exc" not in page.tags
    assert page.text.count("Captions of these samples as text") == 4
    assert page.text.count("a given b (real, on the left)") == 4
    assert page.text.count("a given b (real, top row)") == 4
    for words in (
        "attribute coherence ↑ joint attribute coherence ↑",
        "Attribute coherence ↑ model β a MVAE 0.5 0.720 ± 0.000",
        "by attribute, mean over modalities model β colour MVAE 0.5 0.730 ± 0.000",
        "on real data: a 0.987, b 0.977, a 0.931",
        "BLEU (one against the others of its image) 23.5, distinct-2 0.330",
    ):
        assert words in page.text, words
    # Text keeps its edges on narrow screens; pixels stay square.
    assert text.count('<img class="pixels"') == 2 * 4


def test_captions_that_cannot_be_read(runs):
    add_captions(runs / "first", "")
    path = next((runs / "first" / "samples").glob("*_captions.txt"))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="_captions.txt is not readable text"):
        render(runs)
