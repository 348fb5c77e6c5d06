"""Compiled steps: members of a sweep are their solo runs, at once up to rounding."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_tasks import (
    MAP,
    MEMBERS,
    VMAP,
    assert_same_bits,
    bits_differ,
    noisy_regression,
)

from mmvae_jax.errors import UsageError
from mmvae_jax.training import sweep
from mmvae_jax.training.execution import (
    Execution,
    compile_steps,
    init_states,
    matmul_precision,
)
from mmvae_jax.training.loop import Events


def test_members_start_as_they_do_alone(regression):
    start, hyper, keys = regression.start(MEMBERS)
    states = init_states(regression.task, hyper, keys, regression.data)
    assert_same_bits(states, start)
    assert states.finite.all() and not states.step.any()
    assert bits_differ(*(states.params["w"][k] for k in (0, 1)))
    assert_same_bits(*(states.params["w"][k] for k in (0, 2)))  # of equal seeds


ADAM_LIMIT = 1e-6  # parameters of order 1 after 30 steps


def test_a_member_of_a_sweep_is_its_solo_run(any_vae):
    mapped = any_vae.fit(MEMBERS, MAP, 30)
    vmapped = any_vae.fit(MEMBERS, VMAP, 30)
    for k, member in enumerate(MEMBERS):
        solo = any_vae.fit([member], MAP, 30)
        assert_same_bits(sweep.member(mapped, k), sweep.member(solo, 0))
        pairs = zip(
            jax.tree.leaves(sweep.member(vmapped.params, k)),
            jax.tree.leaves(sweep.member(solo.params, 0)),
            strict=True,
        )
        for a, b in pairs:
            if any_vae.task.stages:
                # An Adam that begins anew takes steps by the signs of gradients, also
                # of those that are rounding errors, which flows with random
                # parameters enlarge. Far: a tenth of a member's step.
                is_far = ~np.isclose(a, b, rtol=0, atol=0.1 * member.learning_rate)
                assert is_far.sum() <= max(1, 0.05 * is_far.size)
                np.testing.assert_allclose(a, b, rtol=0, atol=3 * member.learning_rate)
            else:
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=ADAM_LIMIT)
    assert mapped.step.tolist() == [30, 30, 30] and mapped.finite.all()
    for one, other in itertools.combinations(range(3), 2):
        assert bits_differ(*(sweep.member(mapped.params, k) for k in (one, other)))


@pytest.mark.parametrize("mapping", sweep.MAPPINGS)
def test_all_mappings_train_the_same_members(mapping, regression):
    state = regression.fit(MEMBERS, Execution(mapping, 16), 30)
    for k, member in enumerate(MEMBERS):
        solo = regression.fit([member], Execution("map", 16), 30)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=ADAM_LIMIT),
            sweep.member(state, k),
            sweep.member(solo, 0),
        )


@pytest.mark.parametrize("execution", [MAP, VMAP])
def test_a_diverged_member_is_frozen_and_leaves_the_others_alone(execution, vae):
    start, hyper, _ = vae.start(MEMBERS)
    healthy = vae.fit(MEMBERS, execution, 12)
    broken = hyper._replace(beta=hyper.beta.at[1].set(jnp.nan))
    state = vae.fit(MEMBERS, execution, 12, hyper=broken)
    assert state.finite.tolist() == [True, False, True]
    assert state.step.tolist() == [12, 12, 12]
    for k in (0, 2):
        assert_same_bits(sweep.member(state, k), sweep.member(healthy, k))
    assert_same_bits(sweep.member(state.params, 1), sweep.member(start.params, 1))
    assert_same_bits(sweep.member(state.optimizer, 1), sweep.member(start.optimizer, 1))
    # It stays so, even where the loss would be finite again.
    later = vae.fit(MEMBERS, execution, 15, state=state)
    assert later.finite.tolist() == [True, False, True]
    assert_same_bits(sweep.member(later.params, 1), sweep.member(start.params, 1))


@pytest.mark.parametrize(
    ("backend", "precision", "expected"),
    [
        ("cpu", "default", "None"),
        ("cpu", "float32", "HIGHEST"),
        ("gpu", "default", "None"),
        ("gpu", "float32", "HIGHEST"),
        ("gpu", "tensorfloat32", "TF32_TF32_F32"),
        ("gpu", "bfloat16", "BF16_BF16_F32"),
        ("tpu", "bfloat16", "DEFAULT"),
    ],
)
def test_matrix_products_have_the_precision_asked_for(
    backend, precision, expected, vae, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    execution = Execution("map", 4, precision)
    state, hyper, keys = vae.start(MEMBERS[:1])
    rows = np.zeros((4, 8), np.int32)
    arguments = (state, hyper, keys, vae.data, rows, 1)
    text = str(compile_steps(vae.task, execution).trace(*arguments).jaxpr)
    found = re.findall(r"dot_general\[.*?precision=\(?([\w.]+)", text, re.DOTALL)
    # One of the default precision does not say so.
    found = [name.rpartition(".")[2] for name in found]
    found += ["None"] * (text.count("dot_general[") - len(found))
    # Sums of experts' precisions over subsets name their own.
    assert set(found) == {expected, "HIGHEST"}
    # Outputs, likelihoods and KL terms are float32, whatever is multiplied.
    assert "bf16[" not in text


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("cpu", "tensorfloat32"), ("cpu", "bfloat16"), ("tpu", "tensorfloat32")],
)
def test_a_precision_that_a_backend_lacks_is_refused(backend, precision):
    message = (
        f"precision='{precision}': a {backend} computes no matrix "
        "products of that kind; leave it 'default'"
    )
    with pytest.raises(UsageError, match=f"^{message}$"):
        matmul_precision(precision, backend)


def test_one_compilation_serves_every_number_of_steps():
    setup = noisy_regression()
    state = None
    for num_steps in (1, 2, 9, 30, 31):
        state = setup.fit(MEMBERS, VMAP, num_steps, state=state)
    setup.fit(MEMBERS, VMAP, 12, events=Events(5, lambda *args: None))
    assert setup.program(VMAP)._cache_size() == 1


def test_without_a_loop_a_call_takes_one_step(regression):
    looped = regression.fit(MEMBERS, MAP, 12)
    calls = []
    events = Events(progress=lambda step, *_: calls.append(step))
    state = regression.fit(MEMBERS, Execution("map", 1), 12, events=events)
    assert calls == list(range(1, 13))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, looped
    )
