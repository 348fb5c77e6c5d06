"""TFDS builder of PolyMNIST and its variants; needs no TensorFlow."""

import dataclasses
import hashlib
import math
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from polymnist import backgrounds, digits, published, recipe
from polymnist.errors import DatasetError

SPLITS = ("train", "test")
SOURCES = ("mnist", "sklearn", "published")
BLOCK_BYTES = 16 << 20


@dataclasses.dataclass(eq=False, kw_only=True)
class PolymnistConfig(tfds.core.BuilderConfig):
    """The options of the recipe; see README.md.

    Attributes:
      name: set from the other fields, so that different data never share a folder.
      digits: "mnist", "sklearn" or "published".
      digits_dir: folder with the four MNIST idx files; "" downloads them.
      backgrounds_dir: folder with one image a modality; "" for built-in textures.
      published_dir: folder in the published layout, for digits="published".
      num_modalities: M, at least 1.
      image_size: side of the images, in pixels.
      translate_scale: side of the digit relative to the image; 1.0 does not move it.
      repeated: every modality uses the first background.
      pairings: how many tuples each digit image is part of, per modality.
      seed: int, at least 0.
    """

    name: str = ""
    digits: str = "mnist"
    digits_dir: str = ""
    backgrounds_dir: str = ""
    published_dir: str = ""
    num_modalities: int = 5
    image_size: int = 28
    translate_scale: float = 1.0
    repeated: bool = False
    pairings: int = 1
    seed: int = 0

    def __post_init__(self):
        """Checks the options and names the config after them."""
        _check_options(self)
        self.name = _config_name(self)

    @property
    def side(self):
        """Side of the digit in the image, in pixels."""
        return math.floor(self.image_size * self.translate_scale + 0.5)


def _check_options(config):
    """Raises DatasetError for the first option that cannot be."""
    limits = {
        "num_modalities": (1, 1000),
        "image_size": (8, 512),
        "pairings": (1, 10_000),
        "seed": (0, 2**63),
    }
    for field, (low, high) in limits.items():
        value = getattr(config, field)
        if not low <= value <= high:
            raise DatasetError(f"config.data.{field}={value} must be in {low}..{high}")
    if config.digits not in SOURCES:
        raise DatasetError(
            f"config.data.digits={config.digits!r} must be one of {', '.join(SOURCES)}"
        )
    if not 0.25 <= config.translate_scale <= 1.0:
        raise DatasetError(
            f"config.data.translate_scale={config.translate_scale} must be in "
            "0.25..1.0 (1.0: no translation)"
        )
    if config.digits != "published":
        return
    if not config.published_dir:
        raise DatasetError(
            'config.data.digits="published" needs config.data.published_dir, a folder '
            "with {train,test}/m{i}/{n}.{digit}.png"
        )
    if config.translate_scale != 1.0 or config.repeated or config.pairings != 1:
        raise DatasetError(
            'config.data.digits="published" takes the images as they are: leave '
            "translate_scale=1.0, repeated=False and pairings=1"
        )


def _config_name(config):
    """All options in one word, with a hash of the files of the user."""
    words = [config.digits, f"m{config.num_modalities}", f"{config.image_size}px"]
    foreign = hashlib.sha256()
    if config.digits == "published":
        # Names and sizes only: reading 350,000 small files takes longer than this
        # check may, as it is made at the start of every run.
        for piece in published.describe(config.published_dir, config.num_modalities):
            foreign.update(piece)
        return "-".join([*words, foreign.hexdigest()[:12]])
    if config.side < config.image_size:
        words.append(f"translated{config.side}px")
    if config.repeated:
        words.append("repeated")
    if config.pairings > 1:
        words.append(f"{config.pairings}pairings")
    words.append(f"seed{config.seed}")
    paths = []
    if config.digits == "mnist" and config.digits_dir:
        found = digits.find_files(config.digits_dir)
        paths += [path for split in SPLITS for path in found[split]]
    if config.backgrounds_dir:
        num = 1 if config.repeated else config.num_modalities
        paths += backgrounds.list_folder(config.backgrounds_dir)[:num]
    for path in paths:
        foreign.update(hashlib.sha256(path.read_bytes()).digest())
    if paths:
        kinds = "d" * bool(config.digits_dir) + "b" * bool(config.backgrounds_dir)
        words.append(kinds + foreign.hexdigest()[:12])
    return "-".join(words)


class Builder(tfds.core.GeneratorBasedBuilder):
    """PolyMNIST (Sutter et al., 2021), Translated-PolyMNIST, repeated modalities.

    One record holds a block of up to 1,000 examples, features [n, H, W, 3] and
    labels [n]. TFDS encodes and decodes record by record in Python, at some 0.1 ms
    each way for five images; blocks of raw bytes make that cost vanish, so that a
    training run starts in seconds. `mmvae_jax.data.load` joins the blocks.

    The metadata hold the names of the `modalities` in order, `num_examples` of each
    split, and a `fingerprint`: the sha256 over all images and labels, that tells
    equal data from different data.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self):
        """Describes the features: one modality each, and the labels."""
        config = self.builder_config
        shape = (None, config.image_size, config.image_size, 3)
        features = {
            f"m{m}": tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
            for m in range(config.num_modalities)
        }
        features["label"] = tfds.features.Tensor(
            shape=(None,), dtype=np.uint8, encoding="bytes"
        )
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            # The order of features is not kept by TFDS, hence `modalities`.
            metadata=tfds.core.MetadataDict(
                modalities=[name for name in features if name != "label"],
                num_examples={},
                fingerprint="",
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        """Opens the sources of both splits, so that every error comes early."""
        sources = self._open_sources(dl_manager)
        self._digests = {}
        return {
            split: self._generate_examples(split, source)
            for split, source in sources.items()
        }

    def _open_sources(self, dl_manager):
        """split -> recipe.SplitSource."""
        config = self.builder_config
        if config.digits == "published":
            return {
                split: published.open_split(
                    config.published_dir,
                    split,
                    config.num_modalities,
                    config.image_size,
                )
                for split in SPLITS
            }
        if config.digits == "sklearn":
            images = digits.load_sklearn(config.image_size)
        else:
            images = digits.load_mnist(self._mnist_files(dl_manager), config.image_size)
        num = 1 if config.repeated else config.num_modalities
        scenes = backgrounds.load(config.backgrounds_dir, num, config.image_size)
        return {
            split: recipe.open_split(
                images[split],
                scenes,
                split=split,
                num_modalities=config.num_modalities,
                side=config.side,
                repeated=config.repeated,
                pairings=config.pairings,
                seed=config.seed,
            )
            for split in SPLITS
        }

    def _mnist_files(self, dl_manager):
        """The four idx files, from the user's folder or downloaded."""
        config = self.builder_config
        if config.digits_dir:
            return digits.find_files(config.digits_dir)
        names = [name for pair in digits.FILES.values() for name in pair]
        urls = {name: f"{digits.MNIST_URL}{name}.gz" for name in names}
        try:
            for name in names:
                if not list(dl_manager.download_dir.glob(f"*{name}*.gz")):
                    # TFDS tries for minutes before it says that a host is away.
                    digits.check_reachable(urls[name])
            paths = dl_manager.download(urls)
        except Exception as error:  # Of the network, of the disk, of the checksum.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DatasetError(
                f"MNIST cannot be downloaded ({reason[:120]}): put its four idx files "
                "into a folder and set config.data.digits_dir to it"
            ) from error
        return {
            split: tuple(Path(paths[name]) for name in pair)
            for split, pair in digits.FILES.items()
        }

    def _generate_examples(self, split, source):
        """Yields numbered blocks and keeps the digest of what it yields."""
        config = self.builder_config
        example_bytes = 3 * config.image_size**2 * config.num_modalities
        block = max(1, min(1000, BLOCK_BYTES // example_bytes))
        hashes = {}
        # disable=None: silent where standard error is no terminal.
        with tqdm(
            total=source.num_examples, desc=split, unit="ex", disable=None
        ) as bar:
            for start in range(0, source.num_examples, block):
                modalities, labels = source.read(
                    start, min(start + block, source.num_examples)
                )
                record = {**modalities, "label": labels}
                for name, values in record.items():
                    hashes.setdefault(name, hashlib.sha256()).update(values.tobytes())
                yield start // block, record
                bar.update(len(labels))
        self._record_digest(split, source.num_examples, hashes)

    def _record_digest(self, split, num_examples, hashes):
        """Adds a finished split to the metadata, which TFDS writes at the end."""
        self._digests[split] = "".join(
            f"{split}/{name}:{num_examples}:{hashes[name].hexdigest()};"
            for name in sorted(hashes)
        )
        text = "".join(self._digests[name] for name in sorted(self._digests))
        metadata = self.info.metadata
        metadata["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
        metadata["num_examples"] = {**metadata["num_examples"], split: num_examples}
