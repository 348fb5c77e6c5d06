import hashlib
import http.client
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from golden.make_inception_golden import FOLDER, small_state
from hypothesis import given
from hypothesis import strategies as st

from mmvae_jax import inception_weights
from mmvae_jax.errors import UsageError

LEGACY = (FOLDER / "inception_legacy.pth").read_bytes()
HEADER = [
    pickle.dumps(x, 2)
    for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])
]


def read(content):
    return inception_weights.read_state_dict(content)


def assert_equal_to_small_state(state):
    expected = small_state()
    assert list(state) == list(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        np.testing.assert_array_equal(state[name], value)


def test_a_file_written_by_pytorch_is_read():
    assert_equal_to_small_state(read(LEGACY))


@pytest.mark.parametrize("length", range(0, len(LEGACY), 7))
def test_a_truncated_file_is_refused(length):
    with pytest.raises(UsageError):
        read(LEGACY[:length])


@given(st.integers(0, len(LEGACY) - 1), st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read_as_arrays(position, byte):
    damaged = bytearray(LEGACY)
    damaged[position] = byte
    try:
        state = read(bytes(damaged))
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in state.values())


@pytest.mark.parametrize(
    "content",
    [
        (FOLDER / "inception_zip.pth").read_bytes(),
        (FOLDER / "inception_half.pth").read_bytes(),
        b"<html>not found</html>",
        b"".join([pickle.dumps(1, 2), *HEADER[1:]]),
        b"".join([*HEADER[:2], pickle.dumps({"little_endian": False}, 2), *HEADER[3:]]),
        b"".join([*HEADER[:3], pickle.dumps({"a": 1}, 2), HEADER[4]]),
    ],
    ids=["zip", "half", "html", "magic", "endian", "numbers"],
)
def test_other_formats_are_refused(content):
    assert read(b"".join(HEADER)) == {}
    with pytest.raises(UsageError, match="format from before 1.6"):
        read(content)


def test_a_view_outside_of_its_storage_is_refused():
    offset = b"K\x14"  # of layer.row: 20, of 24 elements, and it has four
    assert LEGACY.count(offset) == 1
    with pytest.raises(UsageError, match="leaves its storage"):
        read(LEGACY.replace(offset, b"K\x15"))


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(bytearray(9), 5), b"\x80\x02]r\xff\xff\xff\x7f."],
    ids=["protocol", "memo of gigabytes"],
)
def test_pickles_that_torch_does_not_write_are_refused(content):
    with pytest.raises(UsageError, match="unexpected|exhausted"):
        read(content)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("protocol", [0, 2])
def test_no_code_is_run(tmp_path, place, protocol):
    marker = tmp_path / "marker"
    attacks = [
        Malicious(os.system, f"touch {marker}"),
        Malicious(Path.touch, marker),
        Malicious(eval, f"open({str(marker)!r}, 'w')"),
        {"layer.weight": Malicious(os.mkdir, str(marker))},
    ]
    for attack in attacks:
        content = pickle.dumps(attack, protocol)
        parts = [*HEADER[:place], content, *HEADER[place + 1 :]]
        with pytest.raises(UsageError, match="it names|unexpected DICT"):
            read(b"".join(parts))
        assert not marker.exists()
        newest = pickle.dumps(attack, pickle.HIGHEST_PROTOCOL)
        with pytest.raises(UsageError, match="unexpected"):
            read(newest)
        assert not marker.exists()
    pickle.loads(pickle.dumps(attacks[0]))
    assert marker.exists()  # an attack that can succeed


@pytest.fixture
def published(monkeypatch, tmp_path):
    """The small file in the place of the published one, the network in a folder."""
    source = tmp_path / "network" / "weights.pth"
    source.parent.mkdir()
    source.write_bytes(LEGACY)
    digest = hashlib.sha256(LEGACY).hexdigest()
    monkeypatch.setattr(inception_weights, "ADDRESS", source.as_uri())
    monkeypatch.setattr(inception_weights, "SHA256", digest)
    return source


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


@pytest.mark.parametrize("is_named", [True, False])
def test_a_file_of_another_hash_is_refused_and_left(published, tmp_path, is_named):
    path = tmp_path / "data" / "weights" / "weights.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(LEGACY + b"x")
    with pytest.raises(UsageError, match="sha256") as raised:
        inception_weights.load(str(path) if is_named else "", tmp_path / "data")
    assert str(path) in str(raised.value) and published.as_uri() in str(raised.value)
    assert path.read_bytes() == LEGACY + b"x"


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


def test_arrays_are_not_larger_than_a_few_times_the_file(monkeypatch):
    monkeypatch.setattr(inception_weights, "MAX_TIMES", 0.1)
    with pytest.raises(UsageError, match="arrays are larger than 0.1 times the file"):
        read(LEGACY)


def test_a_missing_file_of_the_user_is_not_replaced_by_a_download(published, tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UsageError, match="inception_weights") as raised:
            inception_weights.load(str(path), tmp_path / "data")
        assert str(path) in str(raised.value)
    assert kept(tmp_path / "data") == []


def test_a_place_that_cannot_be_written_is_an_error_of_one_line(published, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match="cannot fetch and keep"):
        inception_weights.load("", blocked)
