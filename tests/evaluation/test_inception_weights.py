import hashlib
import http.client
import os
import pickle

import numpy as np
import pytest
from golden.make_inception_golden import FOLDER, small_state

from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation.judges import inception_weights

LEGACY = (FOLDER / "inception_legacy.pth").read_bytes()


def assert_equal_to_small_state(state):
    expected = small_state()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        np.testing.assert_array_equal(state[name], value)


@pytest.fixture
def published(monkeypatch, tmp_path):
    """The small file in the place of the published one, the network in a folder."""
    source = tmp_path / "network" / "weights.pth"
    source.parent.mkdir()
    source.write_bytes(LEGACY)
    monkeypatch.setattr(inception_weights, "ADDRESS", source.as_uri())
    set_hash(monkeypatch, LEGACY)
    return source


def set_hash(monkeypatch, content):
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(inception_weights, "SHA256", digest)


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_no_foreign_name_is_looked_up(protocol, monkeypatch, tmp_path):
    """Not even where the hash is right."""
    marker = tmp_path / "marker"
    for attack in (
        Call(os.mkdir, str(marker)),
        Call(eval, f"open({str(marker)!r}, 'w')"),
        {"layer.weight": Call(os.mkdir, str(marker))},
    ):
        path = tmp_path / "weights.pth"
        path.write_bytes(pickle.dumps(attack, protocol))
        set_hash(monkeypatch, path.read_bytes())
        with pytest.raises(UsageError, match=r"it names \w+\.(mkdir|eval)") as raised:
            inception_weights.load(str(path), tmp_path)
        assert "\n" not in str(raised.value) and not marker.exists()
    pickle.loads(pickle.dumps(attack))
    assert marker.exists()  # An attack that can succeed.


def kept(folder):
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []


def test_the_file_name_carries_the_hash():
    name = inception_weights.ADDRESS.rpartition("/")[2]
    assert name.endswith(f"-{inception_weights.SHA256[:8]}.pth")
    assert len(inception_weights.SHA256) == 64


def test_a_download_is_kept(published, tmp_path):
    data_dir = tmp_path / "data"
    assert_equal_to_small_state(inception_weights.load("", data_dir))
    assert kept(data_dir) == ["weights", "weights.pth"]
    published.unlink()
    assert_equal_to_small_state(inception_weights.load("", data_dir))


def test_a_file_of_the_user_is_read_in_place(published, tmp_path):
    data_dir = tmp_path / "data"
    assert_equal_to_small_state(inception_weights.load(str(published), data_dir))
    assert kept(data_dir) == []


def test_without_a_network_the_user_learns_what_to_do(published, tmp_path):
    published.unlink()
    with pytest.raises(UsageError) as raised:
        inception_weights.load("", tmp_path / "data")
    message = str(raised.value)
    assert published.as_uri() in message and "\n" not in message
    assert str(tmp_path / "data" / "weights" / "weights.pth") in message
    assert kept(tmp_path / "data") == []


def test_an_interrupted_download_leaves_nothing(published, tmp_path, monkeypatch):
    def urlopen(*args, **kwargs):
        raise http.client.IncompleteRead(LEGACY[:9])

    monkeypatch.setattr(inception_weights.urllib.request, "urlopen", urlopen)
    with pytest.raises(UsageError, match="cannot fetch"):
        inception_weights.load("", tmp_path / "data")
    assert kept(tmp_path / "data") == []


def test_a_download_of_another_hash_is_not_kept(published, tmp_path):
    published.write_bytes(LEGACY + b"x")
    with pytest.raises(UsageError, match="not the published"):
        inception_weights.load("", tmp_path / "data")
    assert kept(tmp_path / "data") == []


def flipped(content):
    return bytes([*content[:-9], content[-9] ^ 1, *content[-8:]])


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize(
    "change",
    [lambda x: x + b"x", lambda x: x[:-1], flipped, lambda x: b"<html>none</html>"],
    ids=["longer", "truncated", "flipped", "html"],
)
def test_a_file_of_another_hash_is_refused_and_left(
    change, is_named, published, tmp_path, monkeypatch
):
    path = tmp_path / "data" / "weights" / "weights.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(change(LEGACY))
    # It is not even looked into.
    monkeypatch.setattr(inception_weights, "_state_dict", None)
    with pytest.raises(UsageError, match="sha256") as raised:
        inception_weights.load(str(path) if is_named else "", tmp_path / "data")
    assert str(path) in str(raised.value) and published.as_uri() in str(raised.value)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == change(LEGACY)


def test_a_file_too_large_or_no_file_is_not_read(published, tmp_path):
    path = tmp_path / "huge.pth"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # takes no place on the disk
    with pytest.raises(UsageError, match=r"huge.pth \(more than 268435456 bytes\)"):
        inception_weights.load(str(path), tmp_path / "data")
    path.unlink()
    os.mkfifo(path)  # a pipe would be waited for
    with pytest.raises(UsageError, match="it is no file"):
        inception_weights.load(str(path), tmp_path / "data")


def test_a_missing_file_of_the_user_is_not_replaced_by_a_download(published, tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UsageError, match="inception_weights") as raised:
            inception_weights.load(str(path), tmp_path / "data")
        assert str(path) in str(raised.value)
    assert kept(tmp_path / "data") == []


def test_a_download_is_used_where_it_cannot_be_kept(published, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert_equal_to_small_state(inception_weights.load("", blocked))
    assert blocked.read_text() == "" and published.exists()
