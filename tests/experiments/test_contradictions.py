"""Members whose coherence other measures contradict: what is said, and what is not."""

import json

import pytest

from experiments.drawing import page
from experiments.plans.runs import find_runs
from experiments.running import terminal
from experiments.running.contradictions import NOISE, contradictions, names_of

TAGS = {
    "coherence": "eval/coherence/leave_one_out",
    "matching": "eval/matching/leave_one_out",
    "frechet": "eval/frechet_classifier",
    "conditional": "eval/conditional_frechet/leave_one_out",
    "second": "eval/second_judge/coherence/leave_one_out",
    "real": "eval/second_judge/real_disagreement/leave_one_out",
}


def member(beta, finite=True, **values):
    return {
        **{"beta": beta, "learning_rate": 0.001, "seed": 0, "finite": finite},
        "metrics": {TAGS[name]: value for name, value in values.items()},
    }


def lines_of(members):
    return contradictions(members, names_of(members))


GOOD = dict(coherence=0.7, matching=0.6, frechet=50.0)
FOOLING = dict(coherence=0.9, matching=0.4, frechet=90.0)


def test_more_coherent_and_worse_by_both_others():
    (line,) = lines_of([member(1.0, **GOOD), member(3.0, **FOOLING)])
    assert line.startswith("beta=3,seed=0 is more coherent than beta=1,seed=0 for its")
    for words in (
        "coherence 0.9 against 0.7",
        "matching 0.4 against 0.6",
        "Fréchet distance of prior samples 90 against 50",
    ):
        assert words in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "change",
    [
        {"coherence": 0.7 + 0.9 * NOISE},
        {"matching": 0.6},
        {"matching": 0.6 - 0.9 * NOISE},
        {"frechet": 50.0 * (1 + 0.9 * NOISE)},
        {"frechet": 40.0},
        {"matching": None},
    ],
)
def test_one_measure_alone_contradicts_nothing(change):
    other = member(3.0, **FOOLING | change)
    assert lines_of([member(1.0, **GOOD), other]) == []
    del other["metrics"][TAGS[next(iter(change))]]
    assert lines_of([member(1.0, **GOOD), other]) == []


def test_the_distance_is_that_of_the_examples_whose_coherence_it_is():
    good, fooling = GOOD | {"conditional": 8.0}, FOOLING | {"conditional": 9.0}
    (line,) = lines_of([member(1.0, **good), member(3.0, **fooling)])
    assert "Fréchet distance given all others 9 against 8)" in line
    # Prior samples do not matter where both have it ...
    fooling["conditional"] = 7.0
    assert lines_of([member(1.0, **good), member(3.0, **fooling)]) == []
    fooling |= {"conditional": 9.0, "frechet": 40.0}
    assert len(lines_of([member(1.0, **good), member(3.0, **fooling)])) == 1
    # ... and are compared where one lacks it.
    (line,) = lines_of([member(1.0, **good), member(3.0, **FOOLING)])
    assert "Fréchet distance of prior samples 90 against 50)" in line
    (line,) = lines_of(
        [member(1.0, **GOOD | {"conditional": None}), member(3.0, **FOOLING)]
    )
    assert "of prior samples" in line


def test_members_that_diverged_have_no_part_in_it():
    assert lines_of([member(1.0, False, **GOOD), member(3.0, **FOOLING)]) == []
    assert lines_of([member(1.0, **GOOD), member(3.0, False, **FOOLING)]) == []
    assert lines_of([]) == []


def test_the_best_matched_of_several_is_named_once():
    better = dict(GOOD, matching=0.8)
    lines = lines_of(
        [member(0.5, **GOOD), member(1.0, **better), member(3.0, **FOOLING)]
    )
    assert len(lines) == 1 and "than beta=1,seed=0 for" in lines[0]


@pytest.mark.parametrize(
    ("second", "real", "is_told"),
    [(0.7, 0.1, True), (0.79, 0.1, False), (0.7, 0.2, False), (0.95, 0.0, False)],
)
def test_a_second_classifier_beyond_what_real_examples_explain(second, real, is_told):
    lines = lines_of([member(1.0, coherence=0.9, second=second, real=real)])
    assert len(lines) == is_told
    if is_told:
        assert "the coherence 0.9, by a second classifier 0.7, and of real" in lines[0]
        assert "disagree about 0.1 only" in lines[0]


def summary():
    return {
        "model": "mopoe",
        "dataset": "polytest",
        "num_steps": 20,
        "device": "cpu",
        "members": [member(1.0, **GOOD), member(3.0, **FOOLING)],
    }


def save(folder, summary, **config):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("config.json", {"model": {"name": summary["model"]}} | config),
        ("summary.json", summary),
    ):
        (folder / name).write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("")


def test_the_table_and_the_page_say_it(capsys, tmp_path):
    terminal.print_table(summary())
    assert "beta=3,seed=0 is more coherent than beta=1" in capsys.readouterr().out
    save(tmp_path, summary())
    text = page.render(tmp_path)
    assert (
        "MoPoE-VAE beta=3,seed=0 is more coherent than MoPoE-VAE beta=1,seed=0" in text
    )
    assert "Of these members other measures say the opposite" in text
    honest = summary()
    honest["members"][1] = member(3.0, **GOOD)
    (tmp_path / "summary.json").write_text(json.dumps(honest))
    assert "say the opposite" not in page.render(tmp_path)


def test_the_page_compares_the_models_on_the_same_data_with_the_same_judges(tmp_path):
    good, fooling = (
        {**summary(), "members": [member(1.0, **x)]} for x in (GOOD, FOOLING)
    )
    fooling["model"] = "mvae"
    data = {"name": "polymnist", "data_dir": "here"}

    def is_said(change=None, **others):
        changed = fooling | (change or {})
        save(
            tmp_path / "b", changed, **{"data": data | {"data_dir": "there"}, **others}
        )
        found = find_runs(tmp_path)
        lines = page._contradictions(found, page._names(found, tmp_path))
        return any(line.startswith(words) for line in lines)

    words = "MVAE beta=1,seed=0 is more coherent than MoPoE-VAE beta=1,seed=0 for its"
    save(tmp_path / "a", good, data=data)
    assert is_said()
    assert words in page.render(tmp_path)
    assert not is_said({"dataset": "other"})
    assert not is_said(data=data | {"num_modalities": 2})
    assert not is_said(classifier={"network": "mlp"})
    assert not is_said(eval={"num_examples": 50})
    (judged,) = fooling["members"]
    judged = judged | {
        "metrics": judged["metrics"] | {"eval/classifier_accuracy/m0": 0.9}
    }
    assert not is_said({"members": [judged]})
