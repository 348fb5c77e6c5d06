"""A file is written whole or not at all."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmvae_jax import files


@pytest.mark.parametrize("is_shared", [False, True])
def test_bytes_and_text_in_utf_8(is_shared, tmp_path):
    path = tmp_path / "page.html"
    for content in ("\u03b2 = 1\n", b"\x00\xff"):
        files.write_whole(path, content, is_shared=is_shared)
        wanted = content.encode() if isinstance(content, str) else content
        assert path.read_bytes() == wanted
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_error_leaves_the_file_as_it_was(failing, is_shared, tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    files.write_whole(path, "old")

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if failing == "fsync" else type(path), failing, fail)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, "new", is_shared=is_shared)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_kill_left_is_overwritten(tmp_path):
    (tmp_path / "config.partial").write_text("a longer text, cut o")
    files.write_whole(tmp_path / "config.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "{}"


def test_threads_may_share_a_file(tmp_path):
    path = tmp_path / "moments.npz"
    contents = [bytes([k]) * 100_000 for k in range(24)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda c: files.write_whole(path, c, is_shared=True), contents))
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]
