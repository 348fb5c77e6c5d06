"""Where the training data are: on the devices, or in host memory."""

import jax
import numpy as np
import pytest
from small_tasks import (
    BATCH,
    MAP,
    MEMBERS,
    NUM,
    VMAP,
    Setup,
    assert_same_bits,
    noisy_regression,
)
from test_stages import FIRST, STEPS, toy_model

from mmvae_jax.data.batches import batch_indices
from mmvae_jax.errors import UsageError
from mmvae_jax.training import devices, examples, execution, mapping
from mmvae_jax.training.step import vae_task

DATA = {"x": np.arange(2 * NUM).reshape(NUM, 2).astype(np.float32)}


def opened(window, num_steps=10, **options):
    given = {"batch_size": BATCH, "data_seed": 3, "steps_per_call": 4} | options
    layout = devices.ONE_DEVICE
    return examples.opened(DATA, window, layout, num_steps=num_steps, **given)


@pytest.mark.parametrize("window", [0, 1, 3, 4])
@pytest.mark.parametrize("start", [0, 5])
def test_every_step_is_given_its_examples(window, start):
    with opened(window) as take:
        step = start
        while step < 10:
            arrays, rows, num = take(step, min(4, 10 - step))
            assert rows.shape == (4, BATCH) and 1 <= num <= min(window or 4, 10 - step)
            for i in range(num):
                (wanted,) = batch_indices(3, step + i, 1, NUM, BATCH)
                found = np.asarray(arrays["x"])[rows[i]]
                np.testing.assert_array_equal(found, DATA["x"][wanted])
            step += num


def test_the_next_window_is_on_its_way_and_no_later_one(monkeypatch):
    asked = []
    put_shared = devices.put_shared

    def put(tree, layout):
        asked.append(len(asked))
        return put_shared(tree, layout)

    monkeypatch.setattr(devices, "put_shared", put)
    with opened(3) as take:
        take(0, 2)
        take(2, 1)
    assert len(asked) == 2
    asked.clear()
    with opened(3, num_steps=3) as take:  # there is no next one
        take(0, 3)
    assert len(asked) == 1


@pytest.mark.parametrize("how", [MAP, VMAP], ids=lambda x: x.mapping)
def test_bits_are_those_of_data_on_the_device(how):
    setup = noisy_regression()
    wanted = setup.fit(MEMBERS, how, 11)
    setup.data = jax.device_get(setup.data)
    hosted = how._replace(window=3)
    assert_same_bits(setup.fit(MEMBERS, hosted, 11), wanted)
    state = setup.fit(MEMBERS, hosted, 4)  # interrupted within a window
    assert_same_bits(setup.fit(MEMBERS, hosted, 11, state), wanted)


@pytest.mark.parametrize("how", [MAP, VMAP], ids=lambda x: x.mapping)
def test_a_pass_over_all_examples_before_a_stage(how, tiny_images, tmp_path):
    images = tiny_images({"m0": (2, 2, 1)}, NUM + 3)  # no whole batches
    task = vae_task(toy_model(), num_steps=STEPS)
    wanted = Setup(task, jax.device_put(images)).fit(MEMBERS, how, STEPS)
    np.save(tmp_path / "m0.npy", images["m0"])
    mapped = {"m0": np.load(tmp_path / "m0.npy", mmap_mode="r")}
    setup = Setup(task, mapped)
    hosted = how._replace(window=2)
    state = setup.fit(MEMBERS, hosted, FIRST)
    assert_same_bits(setup.fit(MEMBERS, hosted, STEPS, state), wanted)


def test_a_program_that_is_compiled_beforehand_takes_windows():
    setup = noisy_regression()
    data = jax.device_get(setup.data)
    hosted = execution.Execution("vmap", 4, window=2)
    _, hyper, keys = setup.start(MEMBERS)
    found = mapping.prepare(setup.task, hosted, hyper, keys, data, batch_size=BATCH)
    assert isinstance(found.data["x"], np.ndarray)
    setup.programs[hosted], setup.data = found.programs, data
    wanted = noisy_regression().fit(MEMBERS, VMAP, 7)
    assert_same_bits(setup.fit(MEMBERS, hosted, 7), wanted)


def test_large_data_stay_on_the_host(monkeypatch):
    def window(place, memory, **options):
        given = {"batch_size": 8, "steps_per_call": 256} | options
        return examples.window_steps(place, DATA, memory=memory, **given)

    num = examples.num_bytes(DATA)
    assert num == 8 * NUM
    assert window("auto", 4 * num) == 0 < window("auto", 4 * num - 1)
    assert window("device", 1) == 0
    assert window("host", 1 << 40) == 256
    monkeypatch.setattr(examples, "WINDOW_BYTES", 5 * 8 * 8)
    assert window("host", 1) == 5
    assert window("host", 1, steps_per_call=1) == 1
    assert window("host", 1, batch_size=40) == 1  # more than the bytes of a window
    with pytest.raises(UsageError, match="unknown data_on 'disk'"):
        window("disk", 1)
