"""Photographs with captions: the layouts of the files, their damages, the splits."""

import functools
import gzip
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import dataset_images
import numpy as np
import prepared
import pytest
from cub import birds, files, official, options, packed
from dataset_errors import DatasetError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs import cub
from experiments.running import datasets
from mmvae_jax import tokens
from mmvae_jax.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "data" / "cub"
# Of a set of classes 1 to 4, the first and the last are test classes.
CLASSES = ("001.Grey_Auk", "002.Red_Owl", "003.Tiny_Wren", "004.Old_Crow")
COLOURS = ("grey", "red", "green", "black")
BIRDS = [
    (number, f"{name}/{name[4:]}_{number:04d}.jpg", label)
    for number, (label, name) in enumerate(
        ((label, name) for label, name in enumerate(CLASSES, 1) for _ in range(3)), 1
    )
]


def data_config(data_dir, cub_dir, **changes):
    config = cub.get_config().data
    config.update({"data_dir": str(data_dir), "cub_dir": str(cub_dir), **changes})
    return config


def captions_of(number, label):
    """Ten captions, which tell image and class; "rare" is in few."""
    texts = [
        f"Image {number} is a {COLOURS[label - 1]} bird, caption {i}."
        for i in range(10)
    ]
    texts[3] += f" rare{label}"
    return texts


def write_tables(folder, **lines):
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "images": [f"{number} {name}" for number, name, _ in BIRDS],
        "image_class_labels": [f"{number} {label}" for number, _, label in BIRDS],
        "train_test_split": [f"{number} {number % 2}" for number, *_ in BIRDS],
        "bounding_boxes": [f"{number} 20.0 10.0 30.0 40.0" for number, *_ in BIRDS],
    }
    for name, text in {**tables, **lines}.items():
        (folder / f"{name}.txt").write_text("\n".join(text) + "\n")


def picture(number):
    """White, with a box whose colour tells the number."""
    image = Image.new("RGB", (60 + number, 70), (255, 255, 255))
    image.paste((number * 20, 0, 60), (20, 10, 50, 50))
    return image


def write_images(folder):
    for number, name, _ in BIRDS:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path, quality=95)


def write_captions(folder, per_class=False):
    for label, name in enumerate(CLASSES, 1):
        texts = {
            n.rpartition("/")[2]: captions_of(i, k) for i, n, k in BIRDS if k == label
        }
        if per_class:
            folder.mkdir(parents=True, exist_ok=True)
            lines = itertools.chain.from_iterable(texts[n] for n in sorted(texts))
            (folder / f"{name}.txt").write_text("\n".join(lines))
            continue
        (folder / name).mkdir(parents=True, exist_ok=True)
        for image, lines in texts.items():
            path = folder / name / f"{Path(image).stem}.txt"
            path.write_text("\n".join(lines) + "\n\n")


def write_cub(folder):
    """The published layout, with captions beside it."""
    write_tables(folder / "CUB_200_2011")
    write_images(folder / "CUB_200_2011")
    write_captions(folder / "text_c10")
    return folder


def pack(folder, name, *members, remove=True):
    """Moves files of a folder into an archive in it."""
    with tarfile.open(folder / name, "w:gz") as archive:
        for member in members:
            archive.add(folder / member, arcname=member)
    if remove:
        for member in members:
            shutil.rmtree(folder / member)


def write_packed(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    jpegs = []
    for number, *_ in BIRDS:
        buffer = io.BytesIO()
        image = picture(number).resize((64, 64), box=(20, 10, 50, 50))
        image.save(buffer, "JPEG", quality=95)
        jpegs.append(buffer.getvalue())
    arrays = {
        "jpeg": np.frombuffer(b"".join(jpegs), np.uint8),
        "offsets": np.cumsum([0, *map(len, jpegs)]),
        "ids": np.array([number for number, *_ in BIRDS], np.int32),
        "labels": np.array([label for *_, label in BIRDS], np.int16),
        "cub_is_train": np.array([number % 2 == 1 for number, *_ in BIRDS]),
    }
    arrays.update({k: v for k, v in changes.items() if k in arrays})
    np.savez(folder / packed.IMAGES, **arrays)
    records = [
        {"id": number, "label": label, "captions": captions_of(number, label)}
        for number, _, label in BIRDS
    ]
    records.append({"id": 99, "label": 7, "captions": ["no image"] * 10})
    lines = changes.get("lines", [json.dumps(record) for record in records])
    text = "\n".join(lines).encode()
    (folder / packed.CAPTIONS).write_bytes(gzip.compress(text))
    return folder


def prepared_set(tmp_path, folder, **changes):
    return prepared.read(
        datasets.prepare(data_config(tmp_path / "data", folder, **changes))
    )


def fails(tmp_path, folder, message, **changes):
    """Preparation ends in one line, and nothing of it is left."""
    with pytest.raises(UsageError, match=message) as caught:
        datasets.prepare(data_config(tmp_path / "data", folder, **changes))
    assert len(str(caught.value).splitlines()) == 1
    assert not list((tmp_path / "data").glob("cub/*/*.*.*"))


def numbers_shown(images):
    """The numbers that the middle pixels of boxed crops tell."""
    side = images.shape[1] // 2
    return np.rint(images[:, side, side, 0] / 20).astype(int)


def numbers_told(split, words):
    texts = [tokens.decode(row, words) for row in split["caption"]]
    return np.array([int(text.split()[1]) for text in texts])


# ---- what is prepared


def test_images_and_captions_belong_together(tmp_path):
    splits, metadata = prepared_set(
        tmp_path, write_cub(tmp_path), crop="box", min_count=1, split="original"
    )
    words = metadata["words"]["caption"]
    assert metadata["modalities"] == ["image", "caption"]
    assert metadata["num_examples"] == {"train": 60, "test": 60}
    for split in splits.values():
        assert split["image"].shape == (60, 64, 64, 3)
        assert split["image"].dtype == np.uint8
        assert split["caption"].shape == (60, 32)
        assert split["caption"].dtype == split["label"].dtype == np.int32
    # Numbers that only the test split has are not in the vocabulary.
    train = splits["train"]
    told = numbers_told(train, words)
    np.testing.assert_array_equal(told, numbers_shown(train["image"]))
    np.testing.assert_array_equal(train["label"], (told - 1) // 3)
    # The ten captions of an image follow each other, the classes do not.
    assert (told.reshape(6, 10) == told[::10, None]).all()
    assert [tokens.decode(row, words).split()[7] for row in train["caption"][:10]] == [
        str(i) for i in range(10)
    ]
    assert (np.diff(told[::10]) < 0).any()


@pytest.mark.parametrize("captions_per_image", [1, 4])
def test_fewer_captions_make_fewer_examples(tmp_path, captions_per_image):
    splits, metadata = prepared_set(
        tmp_path, write_cub(tmp_path), captions_per_image=captions_per_image
    )
    number = 6 * captions_per_image
    assert metadata["num_examples"] == {"train": number, "test": number}
    assert len(splits["test"]["image"]) == number
    # "rare" is in the fourth captions only, three times in those of a class.
    words = metadata["words"]["caption"]
    assert not any(word.startswith("rare") for word in words)


def test_splits(tmp_path):
    folder = write_cub(tmp_path)
    apart, _ = prepared_set(tmp_path, folder, crop="box")
    assert set(apart["train"]["label"] + 1) == {2, 3}
    assert set(apart["test"]["label"] + 1) == {1, 4} <= set(birds.TEST_CLASSES)
    original, _ = prepared_set(tmp_path, folder, crop="box", split="original")
    for name, odd in (("train", 1), ("test", 0)):
        assert set(original[name]["label"]) == {0, 1, 2, 3}
        assert (numbers_shown(original[name]["image"]) % 2 == odd).all()


def test_test_classes_are_fifty():
    assert len(set(birds.TEST_CLASSES)) == 50
    assert sorted(birds.TEST_CLASSES) == list(birds.TEST_CLASSES)
    assert birds.TEST_CLASSES[-1] <= 200


def test_the_vocabulary_is_that_of_the_training_captions(tmp_path):
    folder = write_cub(tmp_path)
    for min_count in (1, 3, 4):
        _, metadata = prepared_set(tmp_path, folder, min_count=min_count)
        words = metadata["words"]["caption"]
        assert tuple(words[:3]) == tokens.SPECIALS
        # Three images a class, one of ten captions is rare.
        assert ("rare2" in words) == ("rare3" in words) == (min_count <= 3)
        assert "rare1" not in words and "black" not in words
        assert {"bird", "red", "green"} <= set(words)


def test_whole_images_and_boxes(tmp_path):
    folder = write_cub(tmp_path)
    whole, _ = prepared_set(tmp_path, folder, image_size=32)
    boxed, _ = prepared_set(tmp_path, folder, image_size=32, crop="box")
    assert (boxed["train"]["image"][..., 2] < 110).all()
    corners = whole["train"]["image"][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners > 245).all()
    # The box takes 30 of 60 + number pixels across, 40 of 70 down.
    shares = (whole["train"]["image"][..., 2] < 160).mean((1, 2))
    numbers = numbers_shown(boxed["train"]["image"])
    np.testing.assert_allclose(shares, 30 / (60 + numbers) * 40 / 70, atol=0.03)


@given(st.floats(-20, 80), st.floats(-20, 80), st.floats(1, 120), st.floats(1, 120))
def test_boxes_are_cut_at_the_border(left, top, width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (60, 50), (9, 99, 199)).save(buffer, "PNG")
    cut = functools.partial(birds.decode_image, buffer.getvalue(), 8, where="it")
    box = (left, top, width, height)
    inside = [
        min(limit, low + size) - max(0, low)
        for low, size, limit in ((left, width, 60), (top, height, 50))
    ]
    if min(inside) < 1:
        with pytest.raises(DatasetError, match="it: its bounding box .*60x50 pixels"):
            cut(box)
        return
    np.testing.assert_array_equal(cut(box), np.full((8, 8, 3), (9, 99, 199)))


def test_equal_files_give_equal_data(tmp_path):
    first, second = (write_cub(tmp_path / name) for name in "ab")
    _, before = prepared_set(tmp_path / "a", first)
    _, after = prepared_set(tmp_path / "b", second)
    assert before["fingerprint"] == after["fingerprint"]
    name = BIRDS[4][1].removesuffix(".jpg")
    path = second / "text_c10" / f"{name}.txt"
    path.write_text(path.read_text().replace("red", "old red"))
    _, changed = prepared_set(tmp_path / "b", second)
    assert changed["fingerprint"] != before["fingerprint"]


# ---- layouts


def rearrange(folder, layout):
    """Turns the published layout into another one."""
    inner = folder / "CUB_200_2011"
    if layout == "inside":
        for path in inner.iterdir():
            path.rename(folder / path.name)
        inner.rmdir()
    elif layout == "archive":
        pack(folder, "CUB_200_2011.tgz", "CUB_200_2011")
    elif layout == "captions in CUB":
        (folder / "text_c10").rename(inner / "text_c10")
    elif layout == "captions elsewhere":
        (folder / "cvpr2016_cub").mkdir()
        (folder / "text_c10").rename(folder / "cvpr2016_cub" / "text_c10")
    elif layout == "captions a class":
        shutil.rmtree(folder / "text_c10")
        write_captions(folder / "text_c10", per_class=True)
    elif layout == "archives":
        (folder / "cvpr2016_cub").mkdir()
        (folder / "text_c10").rename(folder / "cvpr2016_cub" / "text_c10")
        pack(folder, "cvpr2016_cub.tar.gz", "cvpr2016_cub")
        os.symlink("/etc", inner / "somewhere")  # not asked for, never followed
        with tarfile.open(folder / "CUB_200_2011.tgz", "w:gz") as archive:
            archive.add(inner, arcname="./CUB_200_2011")
        (inner / "somewhere").unlink()
        shutil.rmtree(inner)
    else:
        assert layout == "captions archive"
        pack(folder, "text_c10.tgz", "text_c10")


@functools.cache
def published_fingerprint():
    with tempfile.TemporaryDirectory() as folder:
        _, metadata = prepared_set(Path(folder), write_cub(Path(folder) / "cub"))
    return metadata["fingerprint"]


@pytest.mark.parametrize(
    "layout",
    [
        "inside",
        "archive",
        "archives",
        "captions in CUB",
        "captions elsewhere",
        "captions a class",
        "captions archive",
    ],
)
def test_layouts_give_the_same_data(tmp_path, layout):
    folder = write_cub(tmp_path / "cub")
    rearrange(folder, layout)
    before = sorted(folder.rglob("*"))
    _, metadata = prepared_set(tmp_path, folder)
    assert metadata["fingerprint"] == published_fingerprint()
    # The user's folder is read only.
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("change", ["image", "caption", "table", "archive"])
def test_changed_files_get_another_folder(tmp_path, change):
    folder = write_cub(tmp_path)
    if change == "archive":
        pack(folder, "CUB_200_2011.tgz", "CUB_200_2011", remove=False)
        keep = folder / "elsewhere"
        (folder / "CUB_200_2011").rename(keep)
    name = options.Options(cub_dir=str(folder)).name
    assert options.Options(cub_dir=str(folder)).name == name
    image = folder / "CUB_200_2011" / "images" / BIRDS[0][1]
    if change == "image":
        image.write_bytes(image.read_bytes() + b"\0")
    elif change == "caption":
        path = folder / "text_c10" / BIRDS[0][1].replace(".jpg", ".txt")
        path.write_text(path.read_text() + "one more")
    elif change == "table":
        path = folder / "CUB_200_2011" / "bounding_boxes.txt"
        path.write_text(path.read_text().replace("20.0", "21.0", 1))
    else:
        table = keep / "bounding_boxes.txt"
        table.write_text(table.read_text().replace("20.0", "21.0", 1))
        keep.rename(folder / "CUB_200_2011")
        (folder / "CUB_200_2011.tgz").unlink()
        pack(folder, "CUB_200_2011.tgz", "CUB_200_2011")
    assert options.Options(cub_dir=str(folder)).name != name


def test_every_option_is_in_the_name(tmp_path):
    folder = str(write_cub(tmp_path / "a"))
    base = {"cub_dir": folder}
    changes = [
        {},
        {"cub_dir": str(write_packed(tmp_path / "b")), "crop": "box"},
        {"crop": "box"},
        {"split": "original"},
        {"image_size": 32},
        {"captions_per_image": 3},
        {"caption_length": 16},
        {"min_count": 1},
    ]
    assert {key for change in changes for key in change} == set(
        datasets.option_names("cub")
    )
    names = {options.Options(**{**base, **change}).name for change in changes}
    assert len(names) == len(changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cub_dir": ""}, "cub_dir='' is not a folder: set it .*datasets/cub/README"),
        ({"cub_dir": "no/such"}, "cub_dir='no/such' is not a folder"),
        ({"crop": "head"}, "crop='head' must be one of auto, whole, box"),
        ({"split": "random"}, "split='random' must be one of classes, original"),
        ({"image_size": 4}, r"image_size=4 must be in 8\.\.256"),
        ({"captions_per_image": 11}, r"captions_per_image=11 must be in 1\.\.10"),
        ({"caption_length": 0}, r"caption_length=0 must be in 1\.\.256"),
        ({"min_count": 0}, r"min_count=0 must be in 1\.\."),
    ],
)
def test_impossible_options(tmp_path, changes, message):
    (tmp_path / "cub").mkdir()
    folder = changes.pop("cub_dir", tmp_path / "cub")
    fails(tmp_path, folder, message, **changes)


def test_folders_without_photographs_or_captions(tmp_path):
    folder = write_cub(tmp_path)
    shutil.rmtree(folder / "text_c10")
    fails(tmp_path, folder, r"has no captions \(text_c10/ .*set config.data.cub_dir")
    shutil.rmtree(folder / "CUB_200_2011")
    fails(tmp_path, folder, r"has no photographs \(CUB_200_2011/ or CUB_200_2011.tgz")


# ---- damages


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    "damage, message",
    [
        ("no caption", r"text_c10/002.Red_Owl/Red_Owl_0005.txt: no such file"),
        ("few captions", r"Red_Owl_0005.txt: 9 captions where 10 are needed; lower"),
        ("no image", r"images/002.Red_Owl/Red_Owl_0005.jpg: no such file, but images"),
        ("corrupt image", r"Red_Owl_0005.jpg: not a readable image"),
        ("cut image", r"Red_Owl_0005.jpg: not a readable image"),
        ("no table", "bounding_boxes.txt: no such file"),
    ],
)
def test_files_that_are_missing_or_damaged(tmp_path, damage, message, archive):
    folder = write_cub(tmp_path / "cub")
    image = folder / "CUB_200_2011" / "images" / BIRDS[4][1]
    captions = folder / "text_c10" / BIRDS[4][1].replace(".jpg", ".txt")
    if damage == "no caption":
        captions.unlink()
    elif damage == "few captions":
        captions.write_text("\n".join(captions_of(5, 2)[:9]))
    elif damage == "no image":
        image.unlink()
    elif damage == "corrupt image":
        image.write_bytes(b"GIF89a" + bytes(100))
    elif damage == "cut image":
        image.write_bytes(image.read_bytes()[:-200])
    else:
        (folder / "CUB_200_2011" / "bounding_boxes.txt").unlink()
    if archive:
        pack(folder, "CUB_200_2011.tgz", "CUB_200_2011")
        pack(folder, "text_c10.tgz", "text_c10")
    fails(tmp_path, folder, message)


@pytest.mark.parametrize(
    "table, lines, message",
    [
        ("bounding_boxes", ["1 2 3 4 5"], "its 1 lines are not those of the 12 images"),
        ("train_test_split", ["1 1"] * 12, "its 12 lines are not those of the 12"),
        ("image_class_labels", ["one two"], "'one two' is not a number and 1 fields"),
        ("images", ["1"], "'1' is not a number and 1 fields"),
        (
            "train_test_split",
            [f"{n} {1 + (n == 3)}" for n in range(1, 13)],
            "train_test_split.txt: .*0003.jpg has 2, which is neither 1 .* nor 0",
        ),
        ("images", [f"{n} {BIRDS[0][1]}" for n in range(1, 13)], "is not named|twice"),
        ("images", [], "its 0 lines are not those of the 0 images"),
        (
            "bounding_boxes",
            [f"{n} a b c d" for n in range(1, 13)],
            "bounding_boxes.txt",
        ),
        (
            "bounding_boxes",
            [f"{n} 0 0 1 nan" for n in range(1, 13)],
            "not all .* finite",
        ),
        (
            "bounding_boxes",
            [f"{n} 500 0 9 9" for n in range(1, 13)],
            r"bounding box \(500.0, 0.0, 9.0, 9.0\) is not within its \d+x70 pixels",
        ),
        (
            "image_class_labels",
            [f"{n} 7" for n in range(1, 13)],
            "'001.Grey_Auk/Grey_Auk_0001.jpg' is not named .* its class 7",
        ),
        (
            "images",
            [f"{n} ../../{name}" for n, name, _ in BIRDS],
            "'../../001.Grey_Auk/Grey_Auk_0001.jpg' is not named",
        ),
    ],
)
def test_tables_that_do_not_fit(tmp_path, table, lines, message):
    folder = write_cub(tmp_path / "cub")
    write_tables(folder / "CUB_200_2011", **{table: lines})
    fails(tmp_path, folder, message, crop="box")


def test_captions_of_a_class_must_be_ten_an_image(tmp_path):
    folder = write_cub(tmp_path / "cub")
    rearrange(folder, "captions a class")
    path = folder / "text_c10" / f"{CLASSES[1]}.txt"
    path.write_text(path.read_text() + "\none more")
    message = r"002.Red_Owl.txt has 31 captions where 3 images need 30"
    fails(tmp_path, folder, message)


def test_a_split_without_images(tmp_path):
    folder = write_cub(tmp_path / "cub")
    lines = [f"{number} 1" for number, *_ in BIRDS]
    write_tables(folder / "CUB_200_2011", train_test_split=lines)
    fails(
        tmp_path, folder, "split='original' leaves no image to test", split="original"
    )


def test_captions_in_another_encoding(tmp_path):
    folder = write_cub(tmp_path / "cub")
    path = folder / "text_c10" / BIRDS[4][1].replace(".jpg", ".txt")
    path.write_bytes(path.read_bytes().replace(b"red", b"r\xe9d\r"))
    _, metadata = prepared_set(tmp_path, folder, min_count=1)
    assert {"red", "r", "d"} <= set(metadata["words"]["caption"])


def test_images_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_images, "MAX_PIXELS", 70 * 70)
    folder = write_cub(tmp_path / "cub")
    fails(tmp_path, folder, r".jpg: 7\dx70 pixels are more than the 4900 that")


# ---- hostile archives


def member(name, data=b"", **fields):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, data


def write_archive(path, *members):
    """An archive of given members before those of a small set."""
    with tarfile.open(path, "w:gz") as archive:
        for entry, data in members:
            archive.addfile(entry, io.BytesIO(data))
    return path


TABLE = "CUB_200_2011/images.txt"


@pytest.mark.parametrize(
    "members, message",
    [
        ([member("../evil.txt", b"x")], "'../evil.txt' would leave the folder"),
        ([member("CUB_200_2011/a/../../evil", b"x")], "would leave the folder"),
        ([member("/etc/evil", b"x")], "'/etc/evil' would leave the folder"),
        (
            [member(TABLE, type=tarfile.SYMTYPE, linkname="/etc/passwd")],
            "images.txt is a link or a folder in the archive",
        ),
        (
            [
                member("CUB_200_2011/secret", b"1 a"),
                member(TABLE, type=tarfile.LNKTYPE, linkname="CUB_200_2011/secret"),
            ],
            "images.txt is a link or a folder in the archive",
        ),
        (
            [member("CUB_200_2011", type=tarfile.SYMTYPE, linkname="/etc")],
            "CUB_200_2011/images.txt: no such file",
        ),
        ([member(TABLE, type=tarfile.FIFOTYPE)], "is a link or a folder"),
        ([member(TABLE, type=tarfile.DIRTYPE)], "is a link or a folder"),
    ],
)
def test_hostile_archives(tmp_path, members, message):
    folder = tmp_path / "cub"
    write_captions(folder / "text_c10")
    write_archive(folder / "CUB_200_2011.tgz", *members)
    fails(tmp_path, folder, message)
    assert not (tmp_path / "evil.txt").exists()
    left = {path.name for path in folder.iterdir()}
    assert left == {"text_c10", "CUB_200_2011.tgz"}


@pytest.mark.parametrize(
    "where", ["asked for", "other", "header", "many", "sparse", "negative"]
)
def test_archives_that_declare_huge_sizes(tmp_path, monkeypatch, where):
    """Nothing is unpacked to find that it is too large."""
    folder = tmp_path / "cub"
    write_captions(folder / "text_c10")
    path = folder / "CUB_200_2011.tgz"
    huge = 1 << 40
    if where == "many":
        monkeypatch.setattr(files, "MAX_MEMBERS", 5)
        write_archive(path, *(member(f"CUB_200_2011/{i}") for i in range(9)))
        message = "unpacks to more than 5 files"
    else:
        name, kind = {
            "asked for": (TABLE, tarfile.REGTYPE),
            "other": ("CUB_200_2011/other", tarfile.REGTYPE),
            "header": ("././@PaxHeader", tarfile.XHDTYPE),
            "sparse": (TABLE, tarfile.GNUTYPE_SPARSE),
            "negative": ("CUB_200_2011/other", tarfile.REGTYPE),
        }[where]
        entry = tarfile.TarInfo(name)
        entry.type = kind
        entry.size = {"negative": -huge, "sparse": 0}.get(where, huge)
        block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
        if where == "sparse":
            block[483:495] = b"%011o\0" % (1 << 32)  # the size with the holes
            block[148:155] = b"%06o\0" % tarfile.calc_chksums(block)[0]
        path.write_bytes(gzip.compress(bytes(block) + bytes(10240)))
        message = {
            "asked for": r"images.txt: \d+ bytes are more than the|unpacks to more",
            "other": "unpacks to more than",
            "header": r"cannot be read to its end .*a header of \d+ bytes",
            "sparse": r"images.txt: \d+ bytes are more than the|unpacks to more",
            "negative": "cannot be read to its end",
        }[where]
    fails(tmp_path, folder, message)


def test_files_that_are_too_large(tmp_path, monkeypatch):
    folder = write_cub(tmp_path / "cub")
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    fails(
        tmp_path, folder, r"images.txt: \d+ bytes are more than the 100 that are read"
    )


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "empty", "tar"])
def test_damaged_archives(tmp_path, damage):
    folder = write_cub(tmp_path / "cub")
    pack(folder, "CUB_200_2011.tgz", "CUB_200_2011")
    path = folder / "CUB_200_2011.tgz"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 3]
    elif damage == "flip":
        data[len(data) // 3] ^= 255
    else:
        data = {"text": b"no archive", "empty": b"", "tar": gzip.decompress(data)}[
            damage
        ]
    path.write_bytes(data)
    messages = {
        "text": "not compressed by gzip, as its name says, but begins with b'no archi'",
        "empty": "is empty; fetch it again",
        "tar": "not compressed by gzip.* program has unpacked it, compress it again",
    }
    damaged = "cannot be read to its end as a .tgz archive .*; fetch it again"
    fails(tmp_path, folder, f"CUB_200_2011.tgz: {messages.get(damage, damaged)}")


# ---- the packed layout


def test_packed_layout(tmp_path):
    folder = write_packed(tmp_path / "cub")
    splits, metadata = prepared_set(tmp_path, folder, crop="box", min_count=1)
    train = splits["train"]
    assert metadata["num_examples"] == {"train": 60, "test": 60}
    told = numbers_told(train, metadata["words"]["caption"])
    np.testing.assert_array_equal(told, numbers_shown(train["image"]))
    np.testing.assert_array_equal(train["label"], (told - 1) // 3)
    assert set(splits["test"]["label"] + 1) == {1, 4}
    small, _ = prepared_set(
        tmp_path, folder, crop="box", image_size=16, split="original"
    )
    assert (numbers_shown(small["train"]["image"]) % 2 == 1).all()


@pytest.mark.parametrize("changes", [{"crop": "whole"}, {"image_size": 65}])
def test_packed_crops_are_all_there_is(tmp_path, changes):
    folder = write_packed(tmp_path / "cub")
    message = r"of 64 pixels only: set config.data.crop=\"box\" and config.data.image_s"
    fails(tmp_path, folder, message, **{"crop": "box", **changes})


def no_record(number):
    return [
        json.dumps({"id": n, "label": k, "captions": captions_of(n, k)})
        for n, _, k in BIRDS
        if n != number
    ]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ids": np.arange(11)}, "ids, labels and cub_is_train differ in length"),
        ({"ids": np.ones(12, int)}, "a number occurs twice in ids"),
        ({"labels": np.ones(11, int)}, "differ in length"),
        ({"labels": np.ones(12)}, r"labels is float64 \(12,\), and must be integer"),
        ({"jpeg": np.zeros(7, np.uint16)}, r"jpeg is uint16 \(7,\), and must be uint8"),
        ({"labels": np.ones(12, int)}, "image 4 is of class 2, in .* of class 1"),
        ({"offsets": np.arange(13)}, "the offsets do not cut jpeg into the 12 images"),
        ({"jpeg": np.zeros(7, np.uint8)}, "the offsets do not cut jpeg"),
        ({"jpeg": np.array([{}])}, "not a readable npz file"),
        ({"lines": no_record(5)}, "image 5 of cub64_bbox.npz has no captions"),
        ({"lines": ["{"]}, "line 1 is not a record .*JSONDecodeError"),
        ({"lines": ["[" * 99_999]}, "line 1 is not a record"),
        ({"lines": ['{"id": 1, "label": 1}']}, "line 1 is not a record .*KeyError"),
        (
            {"lines": ['{"id": 1, "label": 1, "captions": "one"}']},
            "line 1 is not a record .*TypeError: captions are not a list of texts",
        ),
        (
            {"lines": ['{"id": 1, "label": 1.7, "captions": []}']},
            "line 1 is not a record .*label is 1.7, no integer",
        ),
        (
            {"lines": ['{"id": "1", "label": 1, "captions": []}']},
            "line 1 is not a record .*id is '1', no integer",
        ),
        (
            {"lines": ['{"id": 1, "label": 1, "captions": ["one"]}']},
            "image 1: 1 captions where 10 are needed",
        ),
    ],
)
def test_packed_files_that_do_not_fit(tmp_path, changes, message):
    fails(tmp_path, write_packed(tmp_path / "cub", **changes), message, crop="box")


@pytest.mark.parametrize(
    "damage", ["npz", "array", "captions", "image", "bomb", "none"]
)
def test_damaged_packed_files(tmp_path, monkeypatch, damage):
    folder = write_packed(tmp_path / "cub")
    images, captions = folder / packed.IMAGES, folder / packed.CAPTIONS
    if damage == "npz":
        images.write_bytes(images.read_bytes()[:-30])
        message = "cub64_bbox.npz: not a readable npz file"
    elif damage == "array":
        np.savez(images, jpeg=np.zeros(3, np.uint8))
        message = "cub64_bbox.npz: offsets is not a file in the archive"
    elif damage == "captions":
        captions.write_bytes(captions.read_bytes()[:-9])
        message = "cub_captions.jsonl.gz: cannot be read to its end"
    elif damage == "image":
        with np.load(images) as file:
            arrays = dict(file)
        arrays["jpeg"][: arrays["offsets"][1]] = 7
        np.savez(images, **arrays)
        message = "cub64_bbox.npz: image 1: not a readable image"
    elif damage == "bomb":
        monkeypatch.setattr(packed, "MAX_BYTES", 1000)
        message = "unpacks to more than 1000 bytes"
    else:
        captions.unlink()
        message = r"cub_captions.jsonl.gz: no such file; the layout"
    fails(tmp_path, folder, message, crop="box")


# ---- the command, and real files


def test_crops_are_what_the_folder_has(tmp_path):
    folders = {"box": write_packed(tmp_path / "a"), "whole": write_cub(tmp_path / "b")}
    for crop, folder in folders.items():
        config = options.Options(cub_dir=str(folder))
        assert config.crop == crop and f"-{crop}-" in config.name
        assert config.name == options.Options(cub_dir=str(folder), crop=crop).name


@pytest.mark.slow
def test_command_reports_in_one_line(tmp_path):
    folder = write_packed(tmp_path / "cub")
    command = [
        sys.executable,
        "-m",
        "experiments.prepare",
        "--config=configs/cub.py",
        f"--config.data.data_dir={tmp_path / 'data'}",
        f"--config.data.cub_dir={folder}",
        "--config.data.crop=whole",
    ]
    wrong = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith(f"error: {folder} has crops")
    assert "Traceback" not in wrong.stderr


def test_layouts_are_documented():
    text = (ROOT / "datasets" / "cub" / "README.md").read_text()
    for name in (packed.IMAGES, packed.CAPTIONS, "CUB_200_2011.tgz", "text_c10"):
        assert name in text
    for name in datasets.option_names("cub"):
        assert re.search(rf"`{name}`", text)
    assert official.CAPTIONS == 10


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no CUB files beside the checkout")
def test_real_packed_subset(tmp_path):
    splits, metadata = prepared_set(tmp_path, REAL, crop="box", captions_per_image=2)
    assert metadata["num_examples"] == {"train": 2 * 5414, "test": 2 * 2042}
    train, test = (set(splits[name]["label"] + 1) for name in ("train", "test"))
    assert test <= set(birds.TEST_CLASSES) and not train & set(birds.TEST_CLASSES)
    words = metadata["words"]["caption"]
    assert {"a", "bird", "this"} <= set(words[3:13])
    lengths = (splits["train"]["caption"] != tokens.PAD).sum(1)
    assert 15 < lengths.mean() < 18
    records = packed._read_records(REAL / packed.CAPTIONS)
    assert len(records) == 11_788
    with gzip.open(REAL / packed.CAPTIONS, "rt") as file:
        for line in map(json.loads, file):
            is_test = line["label"] in birds.TEST_CLASSES
            assert is_test == (line["zs_split"] == "test")
