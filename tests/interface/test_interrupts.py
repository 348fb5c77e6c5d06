"""Ctrl-C in `fit`: what is trained is returned, and the former handler is put back."""

import signal
import threading
import warnings

import jax
import numpy as np
import pytest

import mmvae_jax
from mmvae_jax.interface import fitting, interrupts

G = np.random.default_rng(0)
DATA = {"a": G.normal(size=(20, 3)), "b": G.normal(size=(20, 2))}
MANY = 500


@pytest.fixture
def press(monkeypatch):
    """(step, times = 1) -> None: Ctrl-C when that step is done, so many times."""

    def prepare(at, times=1):
        update, sent = fitting.ProgressBar.update, []

        def update_and_press(self, step, seconds, is_first):
            update(self, step, seconds, is_first)
            while step >= at and len(sent) < times:
                sent.append(step)
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(fitting.ProgressBar, "update", update_and_press)

    return prepare


def fit(num_steps=MANY, model="mvae", **options):
    config = {"modality.network_options.widths": (), "train.log_every_steps": 1}
    return mmvae_jax.fit(
        DATA,
        model=model,
        num_steps=num_steps,
        latent_dim=2,
        config=config,
        is_shown=False,
        **options,
    )


@pytest.fixture
def stop_at(monkeypatch):
    """(step) -> None: trainings take no time, and Ctrl-C ends them at that step."""

    def prepare(step):
        def fit_nothing(task, prepared, state, *given, events, **settings):
            assert not events.is_stopping()
            signal.raise_signal(signal.SIGINT)
            assert events.is_stopping()
            return state._replace(step=state.step + step)

        monkeypatch.setattr(fitting.stages, "fit", fit_nothing)

    return prepare


def test_the_steps_that_were_taken_are_said(stop_at, capsys):
    stop_at(3)
    with pytest.warns(UserWarning) as caught:
        stopped = fit(beta=(0.5, 1.0))
    assert [one.step for one in stopped] == [3, 3]
    assert [str(one.message) for one in caught] == [
        "Ctrl-C has ended the training after 3 of 500 steps: the model is the one of "
        "these steps"
    ]
    assert caught[0].filename == __file__
    assert "training stops after this call" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("step", "options", "line"),
    [
        (0, {}, "ended after 0 steps, and the model cannot be used before step 1"),
        (
            30,
            {"model": "telbo", "options": {"joint_share": 0.06}},
            "ended after 30 steps, and the model cannot be used before step 31 of its "
            "last stage (unimodal)",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_not_returned(stop_at, step, options, line):
    stop_at(step)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(**options)
    assert str(caught.value) == f"nothing is returned: the training has {line}"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_what_is_trained_is_returned(press):
    press(3)
    with pytest.warns(UserWarning, match="Ctrl-C has ended"):
        stopped = fit(beta=(0.5, 1.0))
    steps = stopped[0].step
    assert 3 <= steps <= 5  # the call that is running ends
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for one in stopped:
        assert one.step == one.history[-1]["step"] == steps
        assert mmvae_jax.embed(one, DATA).mean.shape == (20, 2)


@pytest.mark.slow
def test_it_is_the_model_of_these_steps(press):
    press(3)
    with pytest.warns(UserWarning, match="Ctrl-C has ended"):
        stopped = fit()
    whole = fit(stopped.step)
    jax.tree.map(np.testing.assert_array_equal, stopped.params, whole.params)
    assert stopped.history == whole.history


@pytest.mark.slow
def test_a_model_in_stages_is_returned_from_its_last_stage_on(press):
    staged = {"model": "telbo", "options": {"joint_share": 0.06}}
    press(10)
    with pytest.raises(KeyboardInterrupt, match="used before step 31 of its last"):
        fit(**staged)
    press(40)
    with pytest.warns(UserWarning, match="has ended the training after 4. of 500"):
        assert 40 <= fit(**staged).step <= 42


@pytest.mark.slow
def test_a_second_one_is_as_ever(press):
    press(3, times=2)
    with pytest.raises(KeyboardInterrupt):
        fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_former_handler_is_put_back():
    calls = []

    def former(number, frame):
        calls.append(number)

    before = signal.signal(signal.SIGINT, former)
    try:
        for times, of_former in ((0, 0), (1, 0), (3, 2)):
            calls.clear()
            with interrupts.caught_interrupt() as received:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            assert received == [signal.SIGINT] * min(times, 1)
            assert calls == [signal.SIGINT] * of_former
            assert signal.getsignal(signal.SIGINT) is former
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupts.caught_interrupt() as received:
            signal.raise_signal(signal.SIGINT)
        assert received == []
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_has_no_signals():
    found = []

    def catch():
        with interrupts.caught_interrupt() as received:
            found.append((received, signal.getsignal(signal.SIGINT)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=catch)
        thread.start()
        thread.join()
    assert found == [([], signal.default_int_handler)]
