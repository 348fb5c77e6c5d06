"""Members whose coherence other measures contradict: what is said, and what is not."""

import json

import pytest

from experiments.drawing import page
from experiments.running import terminal
from experiments.running.contradictions import NOISE, contradictions

TAGS = {
    "coherence": "eval/coherence/leave_one_out",
    "matching": "eval/matching/leave_one_out",
    "frechet": "eval/frechet_classifier",
    "second": "eval/second_judge/coherence/leave_one_out",
    "real": "eval/second_judge/real_disagreement/leave_one_out",
}


def member(beta, finite=True, **values):
    return {
        **{"beta": beta, "learning_rate": 0.001, "seed": 0, "finite": finite},
        "metrics": {TAGS[name]: value for name, value in values.items()},
    }


GOOD = dict(coherence=0.7, matching=0.6, frechet=50.0)
FOOLING = dict(coherence=0.9, matching=0.4, frechet=90.0)


def test_more_coherent_and_worse_by_both_others():
    (line,) = contradictions([member(1.0, **GOOD), member(3.0, **FOOLING)])
    assert line.startswith("beta=3,seed=0 is more coherent than beta=1,seed=0 for its")
    for words in (
        "coherence 0.9 against 0.7",
        "matching 0.4 against 0.6",
        "Fréchet distance 90 against 50",
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
    assert contradictions([member(1.0, **GOOD), other]) == []
    del other["metrics"][TAGS[next(iter(change))]]
    assert contradictions([member(1.0, **GOOD), other]) == []


def test_members_that_diverged_have_no_part_in_it():
    assert contradictions([member(1.0, False, **GOOD), member(3.0, **FOOLING)]) == []
    assert contradictions([member(1.0, **GOOD), member(3.0, False, **FOOLING)]) == []
    assert contradictions([]) == []


def test_the_best_matched_of_several_is_named_once():
    better = dict(GOOD, matching=0.8)
    lines = contradictions(
        [member(0.5, **GOOD), member(1.0, **better), member(3.0, **FOOLING)]
    )
    assert len(lines) == 1 and "than beta=1,seed=0 for" in lines[0]


@pytest.mark.parametrize(
    ("second", "real", "is_told"),
    [(0.7, 0.1, True), (0.79, 0.1, False), (0.7, 0.2, False), (0.95, 0.0, False)],
)
def test_a_second_classifier_beyond_what_real_examples_explain(second, real, is_told):
    lines = contradictions([member(1.0, coherence=0.9, second=second, real=real)])
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


def test_the_table_and_the_page_say_it(capsys, tmp_path):
    terminal.print_table(summary())
    assert "beta=3,seed=0 is more coherent than beta=1" in capsys.readouterr().out
    for name, content in (
        ("config.json", {"model": {"name": "mopoe"}}),
        ("summary.json", summary()),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "metrics.jsonl").write_text("")
    text = page.render(tmp_path)
    assert "beta=3,seed=0 is more coherent than beta=1,seed=0" in text
    assert "Of these members other measures say the opposite" in text
    honest = summary()
    honest["members"][1] = member(3.0, **GOOD)
    (tmp_path / "summary.json").write_text(json.dumps(honest))
    assert "say the opposite" not in page.render(tmp_path)
