"""Files and folders that are not what they should be.

What `test_errors` hands to the commands, and `damaged` bytes for the readers.
"""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib

import hypothesis.strategies as st
import numpy as np
from PIL import Image

NUM = 20
RNG = np.random.default_rng(0)
ARRAYS = {
    "image": RNG.integers(0, 256, (NUM, 4, 4), dtype=np.uint8),
    "vector": RNG.normal(size=(NUM, 3)).astype(np.float32),
    "text": RNG.integers(0, 5, (NUM, 6)),
    "text_words": np.array(["a", "b", "c", "d", "e"]),
    "labels": np.arange(NUM) % 4,
    "observed": np.ones((NUM, 3), bool),
}
MASK = ARRAYS["observed"].astype(int)
# name -> what is changed in ARRAYS; None: it is not there.
CHANGES = {
    "lengths": {"vector": ARRAYS["vector"][:5]},
    "no_modality": dict.fromkeys(("image", "vector", "text", "text_words")),
    "objects": {"vector": np.array([{}] * NUM)},
    "strings": {"vector": np.array(["x"] * NUM)},
    "complex": {"vector": ARRAYS["vector"] * 1j},
    "not_a_number": {"vector": ARRAYS["vector"] * np.nan},
    "negative_tokens": {"text": ARRAYS["text"] - 1},
    "few_words": {"text_words": ARRAYS["text_words"][:2]},
    "words_of_nothing": {"image_words": ARRAYS["text_words"]},
    "short_labels": {"labels": ARRAYS["labels"][:3]},
    "float_labels": {"labels": ARRAYS["labels"] / 2},
    "negative_labels": {"labels": ARRAYS["labels"] - 1},
    "many_labels": {"labels": ARRAYS["labels"] * 10**9},
    "narrow_mask": {"observed": ARRAYS["observed"][:, :2]},
    "mask_of_numbers": {"observed": MASK},
    "mask_of_nothing": {"observed": MASK > MASK},
}


def write_arrays(root):
    """npz_NAME.npz of CHANGES, and files that are damaged or hostile."""

    def write(name, content):
        (root / f"npz_{name}.npz").write_bytes(content)

    for name, changes in CHANGES.items():
        arrays = {n: x for n, x in (ARRAYS | changes).items() if x is not None}
        np.savez(root / f"npz_{name}.npz", **arrays)
    np.savez_compressed(root / "good.npz", **ARRAYS)
    good = (root / "good.npz").read_bytes()
    write("cut", good[: len(good) // 2])
    write("text", b"x,y\n1,2\n")
    write("nothing", b"")
    flipped = bytearray(good)
    flipped[200] ^= 255
    write("flipped", flipped)
    write("pickle", pickle.dumps(ARRAYS))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 2)}\n"
    for name, num, method in (
        ("terabytes", 1 << 40, zipfile.ZIP_STORED),
        ("bzip2", 1 << 20, zipfile.ZIP_BZIP2),
        ("bomb", 1 << 20, zipfile.ZIP_DEFLATED),
    ):
        text = header % num
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
        data = bytes(8 << 20) if name != "terabytes" else b""
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for number in range(5):
                archive.writestr(f"m{number}.npy", head + data)
        content = bytearray(file.getvalue())
        if name == "bomb":  # five entries of 4 GB, as the directory says
            start = 0
            while (start := content.find(b"PK\x01\x02", start) + 1) > 0:
                content[start + 23 : start + 27] = struct.pack("<I", 0xFFFFFFF0)
        write(name, content)


def idx(*shape, data=None):
    """An idx file; of other bytes than its header announces, if they are given."""
    head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
    return head + (bytes(int(np.prod(shape))) if data is None else data)


def write_digits(root):
    """Folders idx_NAME of four files, of which one is wrong."""
    images, labels = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    good = {
        images: idx(100, 28, 28),
        labels: idx(100),
        "t10k-images-idx3-ubyte": idx(20, 28, 28),
        "t10k-labels-idx1-ubyte": idx(20),
    }
    floats = bytearray(good[images])
    floats[2] = 13
    wrong = {
        "announces": {images: idx(1 << 20, 28, 28, data=bytes(100))},
        "huge": {images: idx(1 << 31, 1 << 31, 4, data=b"")},
        "floats": {images: floats},
        "swapped": {images: good[labels]},
        "few_labels": {labels: idx(99)},
        "eleven": {labels: idx(100, data=bytes([10] * 100))},
        "zero": {images: idx(0, 28, 28)},
        "wide": {images: idx(1, 1, 1 << 28), labels: idx(1)},
    }
    for name, changes in wrong.items():
        folder = root / f"idx_{name}"
        folder.mkdir()
        for file, content in (good | changes).items():
            (folder / f"{file}.gz").write_bytes(gzip.compress(content, 1))
    unnamed = root / "idx_unnamed"
    shutil.copytree(root / "idx_announces", unnamed)
    for path in unnamed.iterdir():
        path.rename(path.with_suffix(""))
    bomb = root / "idx_bomb"
    shutil.copytree(root / "idx_announces", bomb)
    # 64 MB behind the 78,400 bytes that are announced.
    more = gzip.compress(good[images] + bytes(64 << 20), 1)
    (bomb / f"{images}.gz").write_bytes(more)


def png(width, height):
    """A PNG file of some size without its pixels."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write_pictures(root):
    """Folders picture_NAME of two backgrounds, and published_NAME."""

    def encoded(image, kind):
        file = io.BytesIO()
        image.save(file, kind)
        return file.getvalue()

    noise = RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    good = encoded(Image.fromarray(noise), "PNG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n"
    wrong = {
        "cut": good[: len(good) // 2],
        "text": b"no picture",
        "none": b"",
        "bomb": png(9_000, 9_000),
        "zero": png(0, 40),
        "program": postscript,
        "floats": encoded(Image.new("F", (40, 40)), "TIFF"),
        "transparent": encoded(Image.new("RGBA", (40, 40)), "PNG"),
    }
    for name, content in wrong.items():
        folder = root / f"picture_{name}"
        folder.mkdir()
        (folder / "1.png").write_bytes(content)
        (folder / "2.png").write_bytes(good)
    for name in ("cut", "size", "name", "pipe"):
        for split in ("train", "test"):
            for m in range(2):
                folder = root / f"published_{name}" / split / f"m{m}"
                folder.mkdir(parents=True)
                for n in range(3):
                    Image.fromarray(noise[:8, :8]).save(folder / f"{n}.{n}.png")
        path = root / f"published_{name}" / "train" / "m1" / "2.2.png"
        if name == "cut":
            path.write_bytes(path.read_bytes()[:60])
        elif name == "size":
            path.write_bytes(good)
        elif name == "name":
            path.rename(path.with_name("two.png"))
        else:
            path.unlink()
            os.mkfifo(path)


RECORD = {"id": 1, "label": 1, "captions": ["a red bird"] * 10}


def write_birds(root):
    """Folders cub_NAME: archives, and the packed layout with wrong captions."""

    def write_archive(name, *members):
        folder = root / f"cub_{name}"
        (folder / "text_c10").mkdir(parents=True)
        with tarfile.open(folder / "CUB_200_2011.tgz", "w:gz") as archive:
            for entry in members:
                archive.addfile(entry, io.BytesIO(bytes(entry.size)))
        return folder / "CUB_200_2011.tgz"

    def member(name, **fields):
        entry = tarfile.TarInfo(name)
        for field, value in fields.items():
            setattr(entry, field, value)
        return entry

    table = "CUB_200_2011/images.txt"
    write_archive("outside", member("../outside.txt", size=9))
    write_archive("absolute", member("/tmp/outside.txt", size=9))
    write_archive("link", member(table, type=tarfile.SYMTYPE, linkname="/etc/passwd"))
    path = write_archive("cut", member(table, size=9))
    path.write_bytes(path.read_bytes()[:40])
    path = write_archive("bomb")
    entry = member("CUB_200_2011/other", size=1 << 40)
    path.write_bytes(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))

    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    jpeg = np.frombuffer(file.getvalue(), np.uint8)
    line = json.dumps(RECORD).encode()
    captions = {
        "not_utf8": line.replace(b"red", b"r\xe9d"),
        "no_captions": b"",
        "few_captions": json.dumps({**RECORD, "captions": ["one"]}).encode(),
        "nul": b"\0" * 100,
        "infinite": line.replace(b'"id": 1', b'"id": Infinity'),
        "deep": b"[" * 90_000,
        "captions_bomb": bytes(65 << 20),
    }
    for name in (*captions, "class"):
        folder = root / f"cub_{name}"
        folder.mkdir()
        content = gzip.compress(captions.get(name, line), 1)
        (folder / "cub_captions.jsonl.gz").write_bytes(content)
        np.savez(
            folder / "cub64_bbox.npz",
            jpeg=jpeg,
            offsets=np.array([0, len(jpeg)]),
            ids=np.array([1]),
            labels=np.array([0 if name == "class" else 1]),
            cub_is_train=np.array([True]),
        )


def write_configs(root):
    """Config files config_NAME.py."""
    start = 'def get_config(arg=""):\n    '
    texts = {
        "raises": 'raise RuntimeError("of the config\\nsecond line")\n',
        "none": f"{start}return None\n",
        "dict": f'{start}return {{"data": {{"data_dir": ""}}}}\n',
        "exits": f"import sys\n{start}sys.exit(0)\n",
        "nothing": "x = 1\n",
        "syntax": start[:-6],
        "endless": f"{start}return get_config(arg)\n",
        "partial": "from ml_collections import ConfigDict\n"
        f'{start}return ConfigDict({{"model": {{"name": "mopoe"}}}})\n',
        "section": "from configs import smoke\n"
        f"{start}config = smoke.get_config()\n    del config.train.batch_size\n"
        "    return config\n",
    }
    for name, text in texts.items():
        (root / f"config_{name}.py").write_text(text)
    (root / "config_bytes.py").write_bytes(bytes(100))


class Attack:
    """A pickle that makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        """What the unpickler would call."""
        return os.mkdir, (self.path,)


def write_prepared(root, directory):
    """Folders prepared_NAME, each a data_dir with a damaged copy of prepared data."""
    inside = directory.relative_to(directory.parents[2])
    features = "features.json"
    module = "tensorflow_datasets.core.features.tensor_feature.Tensor"
    changes = {
        "module": (features, lambda text: text.replace(module, "antigravity.Tensor")),
        "json": ("metadata.json", lambda text: text[:40]),
        "deep": ("metadata.json", lambda text: "[" * 90_000),
        "count": (
            "metadata.json",
            lambda text: text.replace('"train": 1', '"train": 9'),
        ),
        "info": ("dataset_info.json", lambda text: text[:40]),
    }
    for name, (file, change) in changes.items():
        copy = root / f"prepared_{name}" / inside
        shutil.copytree(directory, copy)
        (copy / file).write_text(change((copy / file).read_text()))


def write_runs(root, workdir):
    """Copies run_NAME of a run that is not finished or not readable."""
    members = '{"model": 1, "members": [1, 2]}'
    changes = {
        "deep": ("config.json", b"[" * 90_000),
        "nested": ("config.json", b'{"a":' * 900 + b"1" + b"}" * 900),
        "not_utf8": ("config.json", b'{"model": "\xff"}'),
        "list": ("config.json", b"[]"),
        "members": ("summary.json", members.encode()),
        "strings": ("summary.json", b'"members"'),
    }
    for name, (file, content) in changes.items():
        shutil.copytree(workdir, root / f"run_{name}")
        (root / f"run_{name}" / file).write_bytes(content)
    (root / "run_folder").mkdir()
    (root / "run_folder" / "config.json").mkdir()
    for name in ("version", "metadata", "log"):
        shutil.copytree(workdir, root / f"run_{name}")
        (root / f"run_{name}" / "summary.json").unlink()
        if name == "log":
            (root / "run_log" / "metrics.jsonl").write_text("[1]\n")
            continue
        for path in (root / f"run_{name}" / "checkpoints").rglob("_METADATA"):
            content = b"[" * 9_000
            if name == "version":
                content = path.read_bytes().replace(b"tree_metadata", b"tree_of_2030")
            path.write_bytes(content)


def write_weights(root):
    """weights_NAME.pth."""
    (root / "weights_text.pth").write_text("<html>not found</html>")
    (root / "weights_attack.pth").write_bytes(pickle.dumps(Attack(root / "attacked")))


def damaged(good):
    """Random bytes, and good ones that were changed, cut off, put in or repeated."""
    edit = st.tuples(
        st.sampled_from(("set", "cut", "put", "drop")),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=8)
        | st.sampled_from((bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"9" * 20)),
    )

    def apply(content, edits):
        content = bytearray(content)
        for kind, place, piece in edits:
            start = int(place * len(content))
            stop = start + len(piece)
            if kind == "cut":
                del content[start:]
            elif kind == "drop":
                del content[start:stop]
            else:
                content[start : stop if kind == "set" else start] = piece
        return bytes(content)

    changed = st.builds(
        apply, st.sampled_from(good), st.lists(edit, min_size=1, max_size=4)
    )
    return changed | st.binary(max_size=200)
