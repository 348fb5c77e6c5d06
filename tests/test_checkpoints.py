"""Checkpoints hold the bits of a state, and damage is passed over."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmvae_jax import checkpoints
from mmvae_jax.errors import UsageError
from mmvae_jax.train import TrainState

# Threads of orbax complain about damage once more, later.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def make_state(step, width=40):
    """A state of two members, with awkward bits."""
    rng = np.random.default_rng(step)
    params = {
        "encoders": {"m0": jnp.asarray(rng.normal(size=(2, 30, width)), jnp.float32)},
        "odd": jnp.array([-0.0, 1e-42], jnp.float32),
    }
    adam = optax.scale_by_adam()
    _, optimizer = adam.update(params, adam.init(params))
    return TrainState(
        step=jnp.full(2, step, jnp.int32),
        params=params,
        optimizer=optimizer,
        finite=jnp.array([True, False]),
        totals={"train/loss": jnp.array([jnp.nan, jnp.inf], jnp.float32)},
        num_logged=jnp.full(2, 3, jnp.int32),
    )


def bits(state):
    return jax.tree.map(lambda leaf: (leaf.dtype, np.asarray(leaf).tobytes()), state)


def save_all(directory, steps, num_kept=3):
    manager = checkpoints.open_checkpoints(directory, num_kept)
    for step in steps:
        checkpoints.save(manager, step, make_state(step))
    checkpoints.close(manager)


def restore(directory, like):
    manager = checkpoints.open_checkpoints(directory, 3)
    try:
        return checkpoints.restore(manager, like)
    finally:
        checkpoints.close(manager)


def test_bits_come_back(tmp_path):
    save_all(tmp_path / "c", [7])
    step, state = restore(tmp_path / "c", make_state(0))
    assert step == 7
    assert jax.tree.structure(state) == jax.tree.structure(make_state(7))
    assert isinstance(state.optimizer, optax.ScaleByAdamState)
    assert bits(state) == bits(make_state(7))


def test_none_without_a_checkpoint(tmp_path):
    assert restore(tmp_path / "c", make_state(0)) is None


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    # On CPU numpy arrays and jax arrays may share memory, and the donated buffers
    # are written to while the checkpoint is on its way to the disk.
    overwrite = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf * 0 + 1, tree), donate_argnums=0
    )
    manager = checkpoints.open_checkpoints(tmp_path / "c", 5)
    for step in range(1, 4):
        state = make_state(step, width=3_000)
        checkpoints.save(manager, step, state)
        jax.block_until_ready(overwrite(state.params))
        assert state.params["odd"].is_deleted()
    checkpoints.close(manager)
    step, state = restore(tmp_path / "c", make_state(0, width=3_000))
    assert step == 3
    assert bits(state) == bits(make_state(3, width=3_000))


def test_the_newest_are_kept(tmp_path):
    save_all(tmp_path / "c", [1, 2, 3, 4], num_kept=2)
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert names == {"3", "4"}


def test_a_step_is_saved_once(tmp_path):
    manager = checkpoints.open_checkpoints(tmp_path / "c", 2)
    checkpoints.save(manager, 5, make_state(5))
    checkpoints.save(manager, 5, make_state(6))
    checkpoints.close(manager)
    _, state = restore(tmp_path / "c", make_state(0))
    assert bits(state) == bits(make_state(5))


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(folder):
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def remove_data(folder):
    for path in (folder / "default").rglob("*"):
        if path.is_file():
            path.unlink()


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, remove_data])
def test_damage_is_passed_over(damage, tmp_path):
    save_all(tmp_path / "c", [1, 2, 3])
    damage(tmp_path / "c" / "3")
    before = contents(tmp_path / "c" / "3")
    with pytest.warns(UserWarning, match="checkpoint 3 in .* cannot be read") as found:
        step, state = restore(tmp_path / "c", make_state(0))
    ours = [str(w.message) for w in found if "checkpoint 3" in str(w.message)]
    assert len(ours) == 1 and "\n" not in ours[0]
    assert step == 2
    assert bits(state) == bits(make_state(2))
    # Nothing is lost: the damaged one lies beside the others.
    assert contents(tmp_path / "c" / "3.damaged") == before
    save_all(tmp_path / "c", [3])
    assert restore(tmp_path / "c", make_state(0))[0] == 3


def test_nothing_readable(tmp_path):
    save_all(tmp_path / "c", [1, 2])
    for name in "12":
        truncate(tmp_path / "c" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError, match="none of the checkpoints in .*set aside"):
            restore(tmp_path / "c", make_state(0))


def test_an_unfinished_checkpoint_is_none(tmp_path):
    save_all(tmp_path / "c", [1, 2])
    folder = tmp_path / "c" / "2"
    folder.rename(tmp_path / "c" / "2.orbax-checkpoint-tmp-0")
    step, _ = restore(tmp_path / "c", make_state(0))
    assert step == 1


@pytest.mark.parametrize("change", ["shape", "fewer", "more"])
def test_another_shape(change, tmp_path):
    save_all(tmp_path / "c", [1])
    like = make_state(0, width=41 if change == "shape" else 40)
    if change == "fewer":
        like.params.pop("odd")
    if change == "more":
        like.params["new"] = jnp.zeros(())
    with pytest.raises(UsageError, match="checkpoint 1 in .* is of another shape") as e:
        restore(tmp_path / "c", like)
    text = str(e.value)
    assert "\n" not in text and "choose another --workdir" in text
    wanted = {"shape": "(2, 30, 40) there and (2, 30, 41) here", "fewer": "absent here"}
    assert wanted.get(change, "absent there and () here") in text


@pytest.mark.parametrize("name", ["save", "wait_until_finished"])
def test_a_full_disk(name, tmp_path, monkeypatch):
    manager = checkpoints.open_checkpoints(tmp_path / "c", 2)

    def full(*arguments, **options):
        raise ValueError("RESOURCE_EXHAUSTED: x [OS error 28: No space left on device]")

    with monkeypatch.context() as patch:
        patch.setattr(manager, name, full)
        with pytest.raises(OSError, match="No space left on device") as error:
            checkpoints.save(manager, 1, make_state(1))
            checkpoints.close(manager)
    assert error.value.errno == 28 and error.value.filename == str(tmp_path / "c")
    checkpoints.close(manager)
