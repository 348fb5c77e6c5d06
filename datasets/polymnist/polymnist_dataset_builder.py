"""TFDS builder of PolyMNIST and its variants; needs no TensorFlow."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from dataset_errors import DatasetError
from tensorflow_datasets.core import shuffle
from tqdm import tqdm

from polymnist import backgrounds, digits, labels, published, recipe
from polymnist.options import SPLITS

BLOCK_BYTES = 16 << 20


class Builder(tfds.core.GeneratorBasedBuilder):
    """PolyMNIST (Sutter et al., 2021) and its variants, see README.md.

    A record is a block of up to 1,000 examples: features [n, H, W, 3], labels [n] and
    the features of `labels`, for `mmvae_jax.data.prepared.load`. With the usual one
    example per record, the files of 60,000 + 10,000 examples were 2.2 times as large
    (records are compressed separately) and took 1.5 times as long to write and to read.

    The metadata hold the names of the `modalities` in order, `num_examples` of each
    split, and a `fingerprint`, the sha256 of all images and labels.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def download_and_prepare(self, **kwargs: Any) -> None:
        """As in TFDS, but keeps records in memory until they are written.

        For splits above 1 GB, TFDS would use temporary files, which need TensorFlow.
        Training needs the data in memory anyway.
        """
        limit = shuffle.MAX_MEM_BUFFER_SIZE
        shuffle.MAX_MEM_BUFFER_SIZE = 1 << 60
        try:
            super().download_and_prepare(**kwargs)
        finally:
            shuffle.MAX_MEM_BUFFER_SIZE = limit

    def _info(self) -> Any:
        """Describes the features: one modality each, labels and attributes."""
        config = self.builder_config
        shape = (config.image_size, config.image_size, 3)
        images = [f"m{m}" for m in range(config.num_modalities)]

        def tensor(dtype: type, *shape: int) -> Any:
            return tfds.features.Tensor(
                shape=(None, *shape), dtype=dtype, encoding="bytes"
            )

        features = {m: tensor(np.uint8, *shape) for m in images}
        features |= {m: tensor(np.int32, 1) for m in config.label_modalities}
        modalities = list(features)
        features["label"] = tensor(np.uint8)
        others = images, config.label_modalities, config.quadrant
        for name in labels.shown_by(*others):
            features[f"attribute/{name}"] = tensor(np.int32)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            # TFDS does not keep the order of features, hence `modalities`.
            metadata=tfds.core.MetadataDict(
                modalities=modalities,
                num_examples={},
                fingerprint="",
                **labels.describe(*others),
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Opens the sources of both splits first, so that errors occur early."""
        sources = self._open_sources(dl_manager)
        self._digests: dict[str, str] = {}
        return {
            split: self._generate_examples(split, source)
            for split, source in sources.items()
        }

    def _open_sources(self, dl_manager: Any) -> dict[str, recipe.SplitSource]:
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
        # Translated digits are scaled down from the size of the image.
        size = config.side if config.quadrant else config.image_size
        if config.digits == "sklearn":
            images = digits.load_sklearn(size)
        else:
            images = digits.load_mnist(self._mnist_files(dl_manager), size)
        if config.validation:
            images = digits.for_validation(images, config.validation)
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
                image_size=config.image_size,
                quadrant=config.quadrant,
            )
            for split in SPLITS
        }

    def _mnist_files(self, dl_manager: Any) -> digits.Files:
        """The four idx files, from the user's folder or downloaded."""
        config = self.builder_config
        if config.digits_dir:
            return digits.find_files(config.digits_dir)
        names = [name for pair in digits.FILES.values() for name in pair]
        urls = {name: f"{digits.MNIST_URL}{name}.gz" for name in names}
        try:
            for name in names:
                if not list(Path(dl_manager.download_dir).rglob(f"*{name}*.gz")):
                    # TFDS would try for minutes to reach a missing host.
                    digits.check_reachable(urls[name])
            paths = dl_manager.download(urls)
        except Exception as error:  # Network, disk and checksum raise many types.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DatasetError(
                f"MNIST cannot be downloaded ({reason[:120]}): put its four idx files "
                "into a folder and set config.data.digits_dir to it"
            ) from error
        return {
            split: (Path(paths[images]), Path(paths[labels]))
            for split, (images, labels) in digits.FILES.items()
        }

    def _generate_examples(
        self, split: str, source: recipe.SplitSource
    ) -> Iterator[tuple[int, dict]]:
        """Yields numbered blocks and stores their digest."""
        config = self.builder_config
        example_bytes = 3 * config.image_size**2 * config.num_modalities
        block = max(1, min(1000, BLOCK_BYTES // example_bytes))
        hashes: dict[str, Any] = {}
        # disable=None: silent if standard error is not a terminal.
        with tqdm(
            total=source.num_examples, desc=split, unit="ex", disable=None
        ) as bar:
            for start in range(0, source.num_examples, block):
                stop = min(start + block, source.num_examples)
                modalities, digit = source.read(start, stop)
                own = source.quadrants
                record = {
                    **modalities,
                    "label": digit,
                    **labels.features(
                        digit,
                        None if own is None else own[:, start:stop],
                        config.label_modalities,
                        config.quadrant,
                    ),
                }
                for name, values in record.items():
                    hashes.setdefault(name, hashlib.sha256()).update(values.tobytes())
                yield start // block, record
                bar.update(stop - start)
        self._record_digest(split, source.num_examples, hashes)

    def _record_digest(
        self, split: str, num_examples: int, hashes: Mapping[str, Any]
    ) -> None:
        """Adds a finished split to the metadata, which TFDS writes at the end."""
        self._digests[split] = "".join(
            f"{split}/{name}:{num_examples}:{hashes[name].hexdigest()};"
            for name in sorted(hashes)
        )
        text = "".join(self._digests[name] for name in sorted(self._digests))
        metadata = self.info.metadata
        metadata["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
        metadata["num_examples"] = {**metadata["num_examples"], split: num_examples}
