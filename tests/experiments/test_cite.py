"""Citations: every row has its entries, every entry its use, and runs print theirs."""

import json
import re
from pathlib import Path

import pytest

from experiments.running import citing, datasets
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.metrics import METRICS
from mmvae_jax.evaluation.samplers import SAMPLERS
from mmvae_jax.interface import references
from mmvae_jax.models import MODELS

pytest_plugins = ("run_fixtures",)

BIBS = {path.parent.name: path for path in datasets.DATASETS.glob("*/CITATIONS.bib")}
ENTRIES = {
    name: references.parse(text)
    for name, text in {
        "references": (Path(references.__file__).parents[1] / "references.bib"),
        **BIBS,
    }.items()
    for text in [text.read_text()]
}
ALL = [(file, key) for file, own in ENTRIES.items() for key in own]
VENUE = {
    "article": "journal",
    "inproceedings": "booktitle",
    "techreport": "institution",
}


def fields_of(entry):
    """Name -> value of the fields of an entry, one a line."""
    found = re.findall(r"^ +(\w+) *= \{(.*)\},?$", entry, re.MULTILINE)
    assert len(found) == len(entry.splitlines()) - 2, entry
    assert len(dict(found)) == len(found), entry
    return dict(found)


def surname(entry):
    """That of the first author, as keys and texts have it."""
    authors = fields_of(entry)["author"]
    return authors.split(" and ")[0].partition(",")[0].strip("{}")


@pytest.mark.parametrize(("file", "key"), ALL)
def test_an_entry_has_what_a_reader_looks_for(file, key):
    entry = ENTRIES[file][key]
    kind, fields = entry[1 : entry.index("{")], fields_of(entry)
    assert {"title", "author", "year"} <= fields.keys()
    if kind in VENUE:
        assert VENUE[kind] in fields
    elif key != references.SOFTWARE:
        assert {"url", "doi", "eprint"} & fields.keys()
        name = surname(entry).split()[-1].lower()
        assert key.startswith(f"{name}{fields['year']}")
    if "eprint" in fields:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])
        assert fields["archivePrefix"] == "arXiv"


def test_every_row_has_entries_and_every_entry_a_use():
    used = {references.SOFTWARE}
    for model in MODELS.values():
        used |= {model.citation.key, *model.citation.also}
    for name, metric in METRICS.items():
        assert metric.citations, name
        used |= set(metric.citations)
    for sampler in SAMPLERS.values():
        used |= set(sampler.citations)
    assert used == set(ENTRIES["references"])
    # Data that nobody has published may have none.
    assert {"cub", "discrete", "polymnist", "shapes"} <= set(BIBS)
    assert set(BIBS) <= set(datasets.names())


def test_tables_and_entries_name_the_same_authors_and_years():
    for model in MODELS.values():
        key, text, _ = model.citation
        if key != references.SOFTWARE:
            entry = ENTRIES["references"][key]
            assert text.startswith(surname(entry)), text
            assert fields_of(entry)["year"] in text, text


def test_a_key_is_of_one_entry():
    for key in {key for _, key in ALL}:
        of_key = [own[key] for own in ENTRIES.values() if key in own]
        assert len({json.dumps(fields_of(entry)) for entry in of_key}) == 1, key


def test_conditions_are_options_of_the_data_set():
    for name in BIBS:
        for entry in ENTRIES[name].values():
            for condition in fields_of(entry).get("keywords", "").split(", "):
                field = condition.partition("=")[0]
                assert not field or field in datasets.option_names(name)


def cited(text):
    """Use -> keys of the comments; the entries below are all of them, once."""
    lines = [line for line in text.splitlines() if line.startswith("% ")]
    used = {
        use: set(keys.split(", ")) - {"no entry"}
        for use, keys in (line.removeprefix("% ").split(": ") for line in lines)
    }
    assert references.parse(text).keys() == set().union(*used.values())
    return used


def config(model="mopoe", metrics=("elbo",), data=None):
    data = data or {"name": "polymnist", "digits": "sklearn"}
    metrics = list(metrics)
    return {"model": {"name": model}, "eval": {"metrics": metrics}, "data": data}


def test_a_run_cites_its_model_its_metrics_and_its_data_only():
    assert cited(citing.bibtex([(config(), None)])) == {
        "this software": {"mmvae_jax"},
        "model mopoe": {"sutter2021generalized"},
        "metric elbo": {"kingma2014auto", "daunhawer2022limitations"},
        "data set polymnist": {
            "sutter2021generalized",
            "daunhawer2022limitations",
            "alpaydin1998optical",
        },
    }


def test_the_digits_decide_on_their_source():
    mnist = {"name": "polymnist", "digits": "mnist"}
    keys = citing.datasets_entries(mnist).keys()
    assert "lecun1998gradient" in keys and "alpaydin1998optical" not in keys


def test_a_metric_that_was_added_later_is_cited():
    members = [{"metrics": {"eval/swd": 1.0}}]
    found = cited(citing.bibtex([(config(), {"members": members})]))
    assert found["metric swd"] == {"karras2018progressive"}
    assert "metric coherence" not in found and "sampler gmm" not in found


def test_a_sampler_that_was_added_later_is_cited_with_its_metric():
    members = [{"metrics": {"eval/gmm/swd": 1.0}}]
    found = cited(citing.bibtex([(config(), {"members": members})]))
    assert found["metric swd"] == {"karras2018progressive"}
    assert found["sampler gmm"] == {"ghosh2020variational"}
    assert "sampler flow" not in found


def test_what_has_no_entry_is_said():
    run = config("unheard", (), {"name": "arrays"})
    found = cited(citing.bibtex([(run, None)]))
    assert found["model unheard"] == found["data set arrays"] == set()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("@misc{a,\n title = {b}\n", "entry a does not end"),
        ("@misc{a, title = {b}}\n@misc{a, title = {c}}", "two BibTeX entries a"),
    ],
)
def test_a_file_that_is_no_bibtex_is_refused(text, line):
    with pytest.raises(ValueError, match=line):
        references.parse(text)


def test_several_entries_are_read_whole():
    text = "@misc{a, title = {{B} c}}\nwords\n@book{d,\n  note = {@misc{e,}}\n}\n"
    assert list(references.parse(text).values()) == [
        "@misc{a, title = {{B} c}}",
        "@book{d,\n  note = {@misc{e,}}\n}",
    ]


@pytest.mark.slow
def test_the_command_prints_the_entries_of_all_runs(tmp_path, commands):
    for model in ("mvae", "mmvm"):
        (tmp_path / "runs" / model).mkdir(parents=True)
        content = json.dumps(config(model))
        (tmp_path / "runs" / model / "config.json").write_text(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("[]")
    names = ("runs", "empty", "other")
    jobs = [(["experiments.cite", str(tmp_path / name)], "") for name in names]
    good, *bad = commands([*jobs, (["experiments.cite"], "")])
    assert good.code == 0, good.stderr
    found = cited(good.stdout)
    assert found["model mvae"] == {"wu2018multimodal"}
    assert found["model mmvm"] == {"sutter2024unity"}
    lines = ("no run in", "names no model", "name the folder of a run")
    for outcome, line in zip(bad, lines, strict=True):
        assert outcome.code == 2
        (said,) = outcome.stderr.splitlines()
        assert said.startswith("error: ") and line in said


def test_unreadable_runs_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config.json is no JSON"):
        citing.read(tmp_path)
