"""Checkpoints hold the bits of a state, and damage is passed over."""

import gc
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from saved_states import bits, make_state, restore, save_all

from mmvae_jax.errors import UsageError
from mmvae_jax.training import checkpoints

# Threads of orbax complain about damage once more, later.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(scope="module", autouse=True)
def complaints_stay_here():
    """What orbax leaves of a failed read complains when it is collected: now."""
    yield
    gc.collect()


def test_bits_come_back(tmp_path):
    save_all(tmp_path / "c", [7])
    step, state = restore(tmp_path / "c", make_state(0))
    assert step == 7
    assert jax.tree.structure(state) == jax.tree.structure(make_state(7))
    assert isinstance(state.optimizer, optax.ScaleByAdamState)
    assert bits(state) == bits(make_state(7))


def test_notes_come_back_and_are_not_needed(tmp_path):
    """Older versions wrote none; and a state is read without them."""
    manager = checkpoints.open_checkpoints(tmp_path / "c", 5)
    written = {"training_seconds": 1 / 3, "timed_steps": 7}
    checkpoints.save(manager, 1, make_state(1), written)
    checkpoints.save(manager, 2, make_state(2))
    checkpoints.close(manager)
    expected = [written, {}]
    for content in (None, "{", "", "[]"):
        manager = checkpoints.open_checkpoints(tmp_path / "c", 5)
        assert [checkpoints.notes(manager, step) for step in (1, 2)] == expected
        checkpoints.close(manager)
        if content is not None:
            assert bits(checkpoints.read(tmp_path / "c", make_state(0), 1)[1]) == bits(
                make_state(1)
            )
        (tmp_path / "c" / "1" / "_CHECKPOINT_METADATA").write_text(content or "")
        expected = [{}, {}]


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


def test_what_a_killed_process_did_not_remove_is_removed_by_the_next(tmp_path):
    save_all(tmp_path / "c", [1, 2, 3, 4], num_kept=4)
    truncate(tmp_path / "c" / "4")
    with pytest.warns(UserWarning, match="checkpoint 4 .* set aside"):
        step, _ = restore(tmp_path / "c", make_state(0), num_kept=2)
    names = {path.name for path in (tmp_path / "c").iterdir()}
    assert step == 3 and names == {"2", "3", "4.damaged"}


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


def remove_item(folder):
    shutil.rmtree(folder / "default")


def remove_all(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_byte, remove_data, remove_item, remove_all]
)
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


def test_a_checkpoint_that_is_asked_for_is_read_or_named(tmp_path):
    """No other one instead, and nothing in the folder is changed."""
    save_all(tmp_path / "c", [1, 2])
    step, state = checkpoints.read(tmp_path / "c", make_state(0), 1)
    assert step == 1 and bits(state) == bits(make_state(1))
    truncate(tmp_path / "c" / "1")
    before = contents(tmp_path / "c")
    with pytest.raises(UsageError, match="checkpoint 1 in .*; it keeps 1, 2$"):
        checkpoints.read(tmp_path / "c", make_state(0), 1)
    with pytest.raises(UsageError, match="has no checkpoint 3, it keeps 1, 2$"):
        checkpoints.read(tmp_path / "c", make_state(0), 3)
    assert contents(tmp_path / "c") == before


def test_nothing_readable(tmp_path):
    save_all(tmp_path / "c", [1, 2])
    for name in "12":
        truncate(tmp_path / "c" / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError, match="none of the checkpoints in .*set aside"):
            restore(tmp_path / "c", make_state(0))
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "1.damaged",
        "2.damaged",
    }
    # The same command starts from the beginning.
    assert restore(tmp_path / "c", make_state(0)) is None
    save_all(tmp_path / "c", [1])
    assert restore(tmp_path / "c", make_state(0))[0] == 1


def unfinished(folder):
    """Makes a checkpoint one that was complete when the process died, but not named."""
    return folder.rename(folder.with_name(folder.name + ".orbax-checkpoint-tmp"))


def test_an_unfinished_checkpoint_is_none(tmp_path):
    save_all(tmp_path / "c", [1, 2])
    folder = unfinished(tmp_path / "c" / "2")
    with pytest.warns(UserWarning, match="checkpoint 2 in .* was never finished"):
        step, state = restore(tmp_path / "c", make_state(0))
    assert step == 1 and bits(state) == bits(make_state(1))
    assert not folder.exists()


def test_an_unfinished_first_checkpoint_is_left_until_there_is_another(tmp_path):
    save_all(tmp_path / "c", [1])
    folder = unfinished(tmp_path / "c" / "1")
    before = contents(folder)
    with pytest.warns(UserWarning, match="checkpoint 1 in .* was never finished"):
        assert restore(tmp_path / "c", make_state(0)) is None
    assert contents(folder) == before
    save_all(tmp_path / "c", [1])
    step, state = restore(tmp_path / "c", make_state(0))
    assert step == 1 and bits(state) == bits(make_state(1))


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_what_is_kept_after_damage(tmp_path):
    """No good checkpoint makes room for a damaged one."""
    directory = tmp_path / "c"
    save_all(directory, [1, 2, 3], num_kept=2)
    truncate(directory / "3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert restore(directory, make_state(0))[0] == 2
    assert names(directory) == {"2", "3.damaged"}
    save_all(directory, [3], num_kept=2)
    assert names(directory) == {"2", "3", "3.damaged"}
    save_all(directory, [4], num_kept=2)
    assert names(directory) == {"3", "4", "3.damaged"}


def test_killed_while_an_older_checkpoint_was_removed(tmp_path):
    directory = tmp_path / "c"
    save_all(directory, [1, 2, 3])
    largest_file(directory / "1").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step, state = restore(directory, make_state(0))
    assert step == 3 and bits(state) == bits(make_state(3))
    save_all(directory, [4], num_kept=2)
    assert names(directory) == {"3", "4"}


def empty(path):
    path.write_bytes(b"")


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_the_first(path):
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 0xFF]) + content[1:])


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x04
    path.write_bytes(bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [empty, halve, flip_the_first, flip_one_bit, Path.unlink]
)
def test_any_damage_to_any_file(damage, tmp_path):
    """Either it does not matter, or the checkpoint before is taken."""
    save_all(tmp_path / "good", [2, 3])
    files = [path for path in (tmp_path / "good" / "3").rglob("*") if path.is_file()]
    assert len(files) > 8
    fallen_back = 0
    for number, path in enumerate(files):
        directory = tmp_path / str(number)
        shutil.copytree(tmp_path / "good", directory)
        damage(directory / path.relative_to(tmp_path / "good"))
        before = contents(directory / "3")
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            step, state = restore(directory, make_state(0))
        is_said = any("cannot be read" in str(w.message) for w in found)
        assert step == (2 if is_said else 3), path
        assert bits(state) == bits(make_state(step)), path
        kept = directory / ("3.damaged" if is_said else "3")
        assert contents(kept) == before, path
        fallen_back += is_said
    assert fallen_back


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
