"""Whole data sets of users, drawn by seeds: a run that ends well, or one line.

What is drawn is `whole_data.draw(seed)`; a failure is repeated by its seed,
`pytest -m "" "tests/test_whole_data.py::test_any_data_set[SEED]"`. Whatever the data
are, a run of two steps

* ends, with finite numbers or with nan and a reason (`unexplained`), and has said what
  is odd (`DataSet.noted`), or
* is refused by one line before anything is trained,

and no library warns of anything.
"""

import contextlib
import io
import json
import logging
import signal
import traceback
import warnings

import pytest
import whole_data

from experiments.running import datasets, session
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.evaluate import NOT_FINITE

pytest_plugins = ("run_fixtures",)

REFUSED, FINISHED = "refused", "finished"
# Refused, each for another reason, in the time of a fast test; the others are slow.
FAST = (2, 3, 9, 10, 23, 28, 29, 37, 43, 98)
TRAINED = (16,)  # in any case
SLOW = range(300)


def outcome(data_set, folder):
    """How it ends, what was said last, and a list of what is wrong with that."""
    folder.mkdir()
    config = data_set.write(folder)
    load = datasets.load_of

    def load_all(config):
        return data_set.with_attributes(load(config))

    workdir, said = folder / "run", io.StringIO()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    wrong = []
    with (
        pytest.MonkeyPatch.context() as patch,
        logged_warnings() as logged,
        warnings.catch_warnings(record=True) as warned,
    ):
        patch.setattr(datasets, "load_of", load_all)
        warnings.simplefilter("always")  # as -W error, but all of them are told
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = session.train_and_evaluate(config, workdir)
            end = FINISHED
        except UsageError as error:
            end = REFUSED
            said.write(f"error: {error}")
            wrong += refusal_faults(str(error), workdir)
        except Exception as error:
            end = type(error).__name__
            wrong.append(f"{place(error)}: {end}: {str(error)[:200]!r}")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    wrong += [
        f"warning {w.filename}:{w.lineno}: {str(w.message)[:120]!r}" for w in warned
    ]
    wrong += sorted(set(logged))
    if end == FINISHED:
        wrong += summary_faults(code, workdir, said.getvalue())
        wrong += [
            f"nobody says that {name} {words}"
            for name, words in data_set.noted.items()
            if f"{name} {words}" not in said.getvalue()
        ]
    return end, said.getvalue().strip().rpartition("\n")[2], wrong


@contextlib.contextmanager
def logged_warnings():
    """What libraries log as warnings or worse, as a list of lines."""
    lines, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(
        f"{record.name} logs {record.getMessage()[:120]!r}"
    )
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


def place(error):
    """The last line of this project in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if ".venv" not in f.filename and "/tests/" not in f[0]]
    frame = (own or frames)[-1]
    return f"{'/'.join(frame.filename.split('/')[-3:])}:{frame.lineno}"


def refusal_faults(line, workdir):
    """What is wrong with a refusal: it is one line, and nothing has been trained."""
    left = {path.name for path in workdir.iterdir()} if workdir.exists() else set()
    wrong = [] if len(line.splitlines()) == 1 else [f"not one line: {line!r}"]
    if left - {".lock"}:
        wrong.append(f"refused after training began: {line!r}")
    return wrong


def summary_faults(code, workdir, said):
    """What is wrong with the end of a run: numbers that nothing explains."""
    if not (workdir / "summary.json").exists():
        return [f"no summary.json, exit code {code}"]  # 128 + n: signal n stopped it
    text = (workdir / "summary.json").read_text()
    try:
        summary = json.loads(text, parse_constant=no_json)
    except ValueError as error:
        return [f"summary.json: {error}"]
    is_finite = [member["finite"] for member in summary["members"]]
    wrong = [] if code == int(not any(is_finite)) else [f"exit code {code}"]
    for member in summary["members"]:
        if member["finite"]:
            wrong += unexplained(member)
        elif "diverged" not in said:
            wrong.append("a member has diverged, and nobody says so")
    return wrong


def no_json(name):
    raise ValueError(f"{name} is no JSON")


def unexplained(member):
    """Values that are no numbers, and of which the summary does not say why.

    That they are not finite is a reason only for a member that has diverged.
    """
    return [
        f"{tag} is {value}, and the reason is {member['undefined'].get(tag)!r}"
        for tag, value in member["metrics"].items()
        if value is None and member["undefined"].get(tag) in (None, "", NOT_FINITE)
    ]


SEEDS = [
    *FAST,
    *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW if n not in FAST),
]


@pytest.mark.parametrize("seed", SEEDS)
def test_any_data_set(seed, tmp_path, cache):
    data_set = whole_data.draw(seed)
    end, line, wrong = outcome(data_set, tmp_path / "case")
    assert not wrong, f"seed {seed} ({data_set.words}) {end}, {line!r}: {wrong}"
    assert seed not in TRAINED or end == FINISHED, line


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1_000, 1_010))
def test_data_of_which_nothing_is_odd_are_trained_on(seed, tmp_path, cache):
    end, line, wrong = outcome(whole_data.draw(seed, oddity=0.0), tmp_path / "case")
    assert (end, wrong) == (FINISHED, []), f"seed {seed}: {line!r}"
