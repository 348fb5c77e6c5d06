"""Whatever the bytes: a reader returns what it documents or raises one line.

Every reader of bytes that others wrote gets random ones, good files with bytes changed,
cut off or put in, and files that are well formed and say what is not so. It may raise
the exception of mistakes, which is one line, and no other; in little memory and time.
The long versions are slow tests.
"""

import gc
import gzip
import io
import json
import shutil
import signal
import struct
import tarfile
import time
import tracemalloc
import warnings
import zipfile

import dataset_images
import numpy as np
import pytest
from cub import birds, files, official, packed
from dataset_errors import DatasetError
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import damaged
from PIL import Image
from polymnist import backgrounds, digits
from saved_states import bits, make_state, restore, save_all

from configs.scales import cpu
from experiments.plans import plan, runs
from experiments.running import datasets, workdirs
from mmvae_jax import tokens
from mmvae_jax.data import arrays, prepared
from mmvae_jax.errors import UsageError
from mmvae_jax.training import log, sweep

pytest_plugins = ("run_fixtures",)

SECONDS = 5
MEGABYTES = 64  # of what Python and NumPy allocate
MISTAKES = (UsageError, DatasetError)


def saved(save, *args, **kwargs):
    file = io.BytesIO()
    save(file, *args, **kwargs)
    return file.getvalue()


def idx(*shape, kind=8):
    head = struct.pack(">HBB", 0, kind, len(shape))
    return head + struct.pack(f">{len(shape)}I", *shape)


RNG = np.random.default_rng(0)
ARRAYS = {
    "image": RNG.integers(0, 256, (6, 4, 4), dtype=np.uint8),
    "vector": RNG.normal(size=(6, 3)).astype(np.float32),
    "text": RNG.integers(0, 3, (6, 5)),
    "text_words": np.array(["a", "b", "c"]),
    "labels": np.arange(6),
    "observed": np.ones((6, 3), bool),
}
PIXELS = Image.fromarray(RNG.integers(0, 256, (9, 8, 3), dtype=np.uint8))
JPEG = saved(PIXELS.save, "JPEG")
PACKED = {
    "jpeg": np.frombuffer(JPEG, np.uint8),
    "offsets": np.array([0, len(JPEG)]),
    "ids": np.array([1]),
    "labels": np.array([1]),
    "cub_is_train": np.array([True]),
}
RECORD = json.dumps({"id": 1, "label": 1, "captions": ["a red bird"] * 10}).encode()
TABLES = {
    "images.txt": b"1 001.Auk/a.jpg\n2 002.Owl/b.jpg\n",
    "image_class_labels.txt": b"1 1\n2 2\n",
    "train_test_split.txt": b"1 1\n2 0\n",
    "bounding_boxes.txt": b"1 0 0 5 5\n2 1 1 4.5 4\n",
}


def archive(**changes):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in TABLES.items():
            entry = tarfile.TarInfo(f"CUB_200_2011/{name}")
            entry.size = len(content)
            entry.pax_headers = changes
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


SUMMARY = {
    "model": "mopoe",
    "dataset": "d",
    "num_steps": 1,
    "wall_seconds": 1.0,
    "device": "cpu",
    "members": [
        {"beta": 1.0, "learning_rate": 1e-3, "seed": 0, "finite": True, "metrics": {}}
    ],
}


def read_npz(path):
    dataset = arrays.load(str(path))
    for split in (dataset.train, dataset.test):
        num = split.num_examples
        assert num > 0 and split.modalities
        for name, x in split.modalities.items():
            assert len(x) == num and x.dtype in (np.uint8, np.float32, np.int32)
            assert np.isfinite(x).all()
            if x.dtype == np.int32:
                assert 0 <= x.min() and x.max() < len(dataset.words[name])
        assert split.labels is None or split.labels.shape == (num,)


def read_idx(path):
    assert digits.read_idx(path, 3).ndim == 3


def read_picture(path):
    pixels = backgrounds.read_image(path)
    assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,) and pixels.size


def read_photograph(path):
    pixels = birds.decode_image(path.read_bytes(), 8, (1, 1, 4, 4), path)
    assert pixels.dtype == np.uint8 and pixels.shape == (8, 8, 3)


def read_packed_arrays(path):
    found = packed._read_arrays(path)
    assert len(found["offsets"]) == len(found["ids"]) + 1


def read_packed_captions(path):
    for number, record in packed._read_records(path).items():
        assert isinstance(number, int) and isinstance(record["label"], int)
        assert all(isinstance(text, str) for text in record["captions"])
        tokens.encode(record["captions"], tokens.SPECIALS, 4)


def read_archive(path):
    place = files.Place(path, "CUB_200_2011/")
    tables = official._parse_tables(place, official._read_tables(place))
    boxes = official._numbers(place, tables, "bounding_boxes.txt")
    assert boxes.shape == (len(tables["images.txt"]), 4) and np.isfinite(boxes).all()


def read_captions(path):
    texts = official._lines(path.read_bytes())
    rows = tokens.encode(texts, tokens.build_vocabulary(texts), 5)
    assert rows.shape == (len(texts), 5) and (rows >= 0).all()


def read_json(path):
    workdirs.read_json(path)


def read_run(path):
    for name in ("config.json", "summary.json"):
        (path.parent / name).write_bytes(path.read_bytes())
    for run in runs.find_runs(path.parent):
        runs.spreads(runs.long_table({"run": run.summary}))
        json.dumps(run.config)


def read_execution(path):
    target = path.with_name("execution.json")
    path.replace(target)
    found = workdirs.earlier_mapping(target.parent, "cpu", (1, 1))
    assert found is None or found in sweep.MAPPINGS


def read_plan(path):
    folder = path.parent / "plan"
    folder.mkdir(exist_ok=True)
    path.replace(folder / plan.PLAN)
    with pytest.raises(UsageError) as error:
        plan.read(folder)
    if f"{folder}/" in str(error.value):
        raise error.value
    # No run of it has been made.
    assert str(error.value).startswith(f"no finished run in {folder};")


def read_log(path):
    assert all(isinstance(line["step"], int) for line in log.read_metrics(path))


SCALE = cpu.get_config()
# name -> (reader, suffix, good files of it).
READERS = {
    "npz": (
        read_npz,
        ".npz",
        (saved(np.savez, **ARRAYS), saved(np.savez_compressed, **ARRAYS)),
    ),
    "idx": (read_idx, "", (idx(2, 3, 3) + bytes(18),)),
    "idx, packed": (read_idx, ".gz", (gzip.compress(idx(2, 3, 3) + bytes(18)),)),
    "picture": (
        read_picture,
        ".png",
        tuple(saved(PIXELS.save, form) for form in dataset_images.FORMATS)
        + tuple(
            saved(PIXELS.convert(mode).save, "TIFF" if mode == "F" else "PNG")
            for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "F")
        ),
    ),
    "photograph": (read_photograph, ".jpg", (JPEG, saved(PIXELS.save, "PNG"))),
    "packed arrays": (read_packed_arrays, ".npz", (saved(np.savez, **PACKED),)),
    "packed captions": (read_packed_captions, ".gz", (gzip.compress(RECORD),)),
    "captions, unpacked": (
        lambda path: repack(path, read_packed_captions),
        ".gz",
        (RECORD, RECORD + b"\n" + RECORD),
    ),
    "archive": (read_archive, ".tgz", (gzip.compress(archive()),)),
    "archive, unpacked": (
        lambda path: repack(path, read_archive),
        ".tgz",
        (archive(), archive(**{"GNU.sparse.map": "0,1", "GNU.sparse.size": "1"})),
    ),
    "captions": (read_captions, ".txt", (b"a red bird\na blue one", b"\0\xff\xfe")),
    "json": (read_json, ".json", (json.dumps(SUMMARY).encode(),)),
    "run": (read_run, ".json", (json.dumps(SUMMARY).encode(), b"{}", b"[]")),
    "execution": (
        read_execution,
        ".json",
        (json.dumps({"device": "cpu", "layout": [1, 1], "mapping": "map"}).encode(),),
    ),
    "plan": (
        read_plan,
        ".json",
        (json.dumps({"scale": "cpu", "config": SCALE.to_dict()}).encode(),),
    ),
    "log": (read_log, ".jsonl", (b'{"step": 1, "train/loss": 2.0}\n{"step": 2}\n',)),
}


def repack(path, read):
    """What is damaged before it is packed gets by the checksum of the packing."""
    path.write_bytes(gzip.compress(path.read_bytes(), 1))
    read(path)


def check(read, path, content):
    """One call of a reader: in time, in memory, and with one line if it refuses."""

    def hang(*_):
        pytest.fail("it hangs")  # no Exception, which a reader would turn into a line

    path.write_bytes(content)
    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(20 * SECONDS)  # the machine may be busy
    tracemalloc.start()
    start = time.process_time()
    try:
        read(path)
    except MISTAKES as error:
        assert len(str(error).splitlines()) == 1
    finally:
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert seconds < SECONDS
    assert peak < MEGABYTES << 20, f"{peak >> 20} MiB"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", READERS)
def test_good_files_are_read(name, place):
    read, suffix, good = READERS[name]
    path = place / f"good{suffix}"
    for number, content in enumerate(good):
        path.write_bytes(content)
        # Foreign formats come second.
        if number == 0:
            read(path)
        else:
            check(read, path, content)


def fuzz(name, place, num):
    read, suffix, good = READERS[name]

    @settings(max_examples=num)
    @given(damaged(good))
    def run(content):
        check(read, place / f"bad{suffix}", content)

    run()


@pytest.mark.parametrize("name", READERS)
def test_any_bytes(name, place):
    fuzz(name, place, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_any_bytes_for_longer(name, place):
    fuzz(name, place, 2_000)


# ---- well formed, and not so


def npy(header, data=b""):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def zipped(method=zipfile.ZIP_STORED, **entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as target:
        for name, content in entries.items():
            target.writestr(f"{name}.npy", content)
    return file.getvalue()


def lying(content, size):
    """A zip file whose directory says another size."""
    content = bytearray(content)
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.index(mark) + offset
        content[start : start + 4] = struct.pack("<I", size)
    return bytes(content)


VECTOR = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
ZEROS = npy(VECTOR % "(2500000, 1)", bytes(10_000_000))
HOSTILE = {
    # An array is as large as its header says, a file as its directory.
    "npz: a header of terabytes": ("npz", zipped(x=npy(VECTOR % "(1099511627776, 2)"))),
    "npz: a negative shape": ("npz", zipped(x=npy(VECTOR % "(-1, 2)"))),
    "npz: a deep header": ("npz", zipped(x=npy("(" * 9_000))),
    "npz: objects": (
        "npz",
        zipped(x=npy("{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}", b"x")),
    ),
    "npz: objects in a record": (
        "npz",
        zipped(
            x=npy("{'descr':[('a','|O')],'fortran_order':False,'shape':(1,1)}", ZEROS)
        ),
    ),
    "npz: bzip2": ("npz", zipped(zipfile.ZIP_BZIP2, x=ZEROS)),
    "npz: a directory of 4 GB": ("npz", lying(zipped(x=ZEROS[:200]), 0xFFFFFFF0)),
    "npz: a directory of nothing": ("npz", lying(zipped(x=ZEROS[:200]), 0)),
    "npz: no array": ("npz", zipped(x=b"text")),
    "npz: twice the same": ("npz", saved(np.savez, **{"a": ARRAYS["text"]}) * 2),
    "idx: a header of 1 GB": ("idx", idx(1, 1 << 15, 1 << 15) + bytes(9)),
    "idx: a header of exabytes": ("idx", idx(*[(1 << 32) - 1] * 3)),
    "idx: gzip of 1 GB": ("idx, packed", gzip.compress(idx(2, 3, 3) + bytes(1 << 24))),
    "picture: none": ("picture", b"\x89PNG\r\n\x1a\n"),
    "picture: another program's": (
        "picture",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    ),
    "captions: a number of no size": (
        "captions, unpacked",
        RECORD.replace(b'"id": 1', b'"id": Infinity'),
    ),
    "captions: a number of many digits": (
        "captions, unpacked",
        RECORD.replace(b'"id": 1', b'"id": "%s"' % (b"9" * 9_999)),
    ),
    "captions: deep": ("captions, unpacked", b"[" * 900_000),
    "captions: a long line": ("captions, unpacked", b"[" + b"[]," * 500_000 + b"[]]"),
    "captions: half a letter": (
        "captions, unpacked",
        RECORD.replace(b"a red", b"\\ud83d red"),
    ),
    "archive: a sparse map": (
        "archive, unpacked",
        archive(**{"GNU.sparse.map": "many", "GNU.sparse.size": "1"}),
    ),
    "archive: a size that is none": ("archive, unpacked", archive(size="9" * 40)),
    "archive: a time that is none": ("archive, unpacked", archive(mtime="1e999")),
    "json: deep": ("json", b"[" * 200_000),
    "json: a deep dict": ("run", b'{"a":' * 900 + b"1" + b"}" * 900),
    "json: not UTF-8": ("json", b'{"a": "\xff"}'),
    "json: a number of many digits": ("json", b"9" * 10_000),
    "log: not UTF-8": ("log", b'{"step": 1}\n{"step": \xff}\n'),
    "log: other lines": ("log", b'{"step": 1}\n[]\n{"loss": 2}\n'),
    "log: deep": ("log", b"[" * 200_000),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case, place):
    name, content = HOSTILE[case]
    read, suffix, _ = READERS[name]
    check(read, place / f"hostile{suffix}", content)


# ---- prepared data: TFDS reads them, a description may name any class


DESCRIPTION = {
    "features.json": {
        "featuresDict": {
            "features": {
                name: {
                    "pythonClassName": (
                        "tensorflow_datasets.core.features.tensor_feature.Tensor"
                    ),
                    "tensor": {"dtype": "uint8", "shape": {"dimensions": ["-1", "2"]}},
                }
                for name in ("m0", "label")
            }
        },
        "pythonClassName": (
            "tensorflow_datasets.core.features.features_dict.FeaturesDict"
        ),
    },
    "dataset_info.json": {
        "name": "polymnist",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "moduleName": "polymnist.polymnist_dataset_builder",
        "splits": [{"name": "train", "numBytes": "8", "shardLengths": ["1"]}],
    },
    "metadata.json": {
        "modalities": ["m0"],
        "num_examples": {"train": 4, "test": 4},
        "fingerprint": "0",
    },
}


def describe(folder, **contents):
    folder.mkdir(exist_ok=True)
    for name, value in DESCRIPTION.items():
        value = contents.get(name.partition(".")[0], json.dumps(value).encode())
        (folder / name).write_bytes(value)


@pytest.mark.parametrize("field", ["pythonClassName", "type"])
def test_a_description_cannot_have_a_module_imported(place, monkeypatch, field):
    (place / "imported_by_features.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(place)
    features = {field: "imported_by_features.Feature", "content": {}}
    describe(place / "described", features=json.dumps(features).encode())
    with pytest.raises(UsageError, match="features.json names imported_by_features"):
        prepared.load(place / "described")


def fuzz_description(place, num):
    good = [json.dumps(value).encode() for value in DESCRIPTION.values()]

    @settings(max_examples=num)
    @given(st.sampled_from(sorted(DESCRIPTION)), damaged(good))
    def run(name, content):
        def read(path):
            with pytest.raises(UsageError, match="is damaged"):
                prepared.load(path.parent)

        folder = place / "description"
        describe(folder)
        check(read, folder / name, content)

    run()


def test_any_description(place):
    fuzz_description(place, 12)


@pytest.mark.slow
def test_any_description_for_longer(place):
    fuzz_description(place, 1_000)


# ---- what libraries read: prepared examples, and checkpoints


def fuzz_examples(folder, smoke_config, num):
    """Damage to a file of examples is said, or does not matter."""
    good = datasets.prepare(smoke_config().data)
    shutil.copytree(good, folder, dirs_exist_ok=True)
    expected = prepared.load(good)
    shards = sorted(path.name for path in good.glob("*array_record*"))
    assert shards
    contents = {name: (good / name).read_bytes() for name in shards}

    def read(path):
        found = prepared.load(path.parent)
        for split in ("train", "test"):
            pairs = zip(
                getattr(found, split).leaves().items(),
                getattr(expected, split).leaves().items(),
                strict=True,
            )
            for (name, x), (wanted, y) in pairs:
                assert name == wanted and np.array_equal(x, y)

    @settings(max_examples=num)
    @given(
        st.sampled_from(shards).flatmap(
            lambda name: st.tuples(st.just(name), damaged((contents[name],)))
        )
    )
    def run(case):
        name, content = case
        try:
            check(read, folder / name, content)
        finally:
            (folder / name).write_bytes(contents[name])

    run()


def test_any_examples(tmp_path, smoke_config):
    fuzz_examples(tmp_path / "examples", smoke_config, 12)


@pytest.mark.slow
def test_any_examples_for_longer(tmp_path, smoke_config):
    fuzz_examples(tmp_path / "examples", smoke_config, 800)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_any_bytes_in_a_checkpoint(tmp_path):
    """The state that was saved, or that of the checkpoint before, is what is found."""
    like = make_state(0)
    save_all(tmp_path / "good", [2, 3])
    newest = tmp_path / "good" / "3"
    contents = {
        path.relative_to(newest): path.read_bytes()
        for path in sorted(newest.rglob("*"))
        if path.is_file()
    }
    steps = []

    @settings(max_examples=400)
    @given(
        st.sampled_from(sorted(contents)).flatmap(
            lambda name: st.tuples(st.just(name), damaged((contents[name],)))
        )
    )
    def run(case):
        name, content = case
        folder = tmp_path / "damaged"
        shutil.copytree(tmp_path / "good", folder)
        try:
            (folder / "3" / name).write_bytes(content)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                step, state = restore(folder, like)
            expected = make_state(step)
            assert bits(state) == bits(expected)
            is_set_aside = (folder / "3.damaged").is_dir()
            assert step == (2 if is_set_aside else 3)
            steps.append(step)
        finally:
            shutil.rmtree(folder)

    run()
    gc.collect()  # what orbax leaves of a failed read complains now
    assert set(steps) == {2, 3}
