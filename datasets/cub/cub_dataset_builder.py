"""TFDS builder of CUB with captions; needs no TensorFlow."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from dataset_errors import DatasetError
from pairs import records
from polymnist import exact

from cub import birds, official, packed
from mmvae_jax import tokens

# Seed of the random order of the images.
ORDER = 2011


class Builder(tfds.core.GeneratorBasedBuilder):
    """Photographs of birds (Wah et al., 2011) with captions (Reed et al., 2016).

    Records, features and metadata are those of `pairs.records`; `label` is the class
    0..199. Each caption gives one example. The examples of an image are consecutive, so
    that its copies compress well on disk; they are made one record at a time.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def download_and_prepare(self, **kwargs: Any) -> None:
        """As in TFDS, with records in memory."""
        with records.in_memory():
            super().download_and_prepare(**kwargs)

    def _info(self) -> Any:
        """Describes features and metadata."""
        config = self.builder_config
        return records.describe(self, config.image_size, config.caption_length)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Reads all files first, so that errors occur early."""
        del dl_manager  # nothing is downloaded
        config = self.builder_config
        layout = packed if config.is_packed else official
        source = layout.open_birds(config.cub_dir, config.captions_per_image)
        rows = self._split_rows(source)
        texts = {
            split: [source.captions[row][: config.captions_per_image] for row in own]
            for split, own in rows.items()
        }
        words = tokens.build_vocabulary(
            (text for own in texts["train"] for text in own), config.min_count
        )
        images = source.read_images(
            np.concatenate(list(rows.values())), config.image_size, config.crop
        )
        parts = np.split(images, [len(rows["train"])])
        splits = {
            split: self._make(part, texts[split], words, source.classes[rows[split]])
            for split, part in zip(rows, parts, strict=True)
        }
        records.add_metadata(self.info, splits, words)
        return {name: self._generate_examples(split) for name, split in splits.items()}

    def _split_rows(self, source: birds.Birds) -> dict[str, np.ndarray]:
        """split -> rows of its images in random order."""
        config = self.builder_config
        is_train = source.is_train
        if config.split == "classes":
            is_train = ~np.isin(source.classes, birds.TEST_CLASSES)
        order = exact.random_order((ORDER,), len(is_train))
        rows = {"train": order[is_train[order]], "test": order[~is_train[order]]}
        for split, own in rows.items():
            if not len(own):
                raise DatasetError(
                    f"{config.cub_dir}: config.data.split={config.split!r} leaves no "
                    f"image to {split}"
                )
        return rows

    def _make(
        self,
        images: np.ndarray,
        texts: Sequence[Sequence[str]],
        words: Sequence[str],
        classes: np.ndarray,
    ) -> records.Split:
        """The examples of one split: records.Split."""
        config = self.builder_config
        captions = records.encode(texts, words, config.caption_length)
        labels = classes.astype(np.int32) - 1

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            image, own = divmod(np.arange(start, stop), config.captions_per_image)
            return {
                "image": images[image],
                "caption": captions[image, own],
                "label": labels[image],
            }

        return records.Split(
            num_examples=len(images) * config.captions_per_image,
            read=read,
            digest=records.digest(image=images, caption=captions, label=labels),
        )

    def _generate_examples(self, split: records.Split) -> Iterator[tuple[int, dict]]:
        """Yields numbered blocks."""
        yield from records.blocks(split, self.builder_config.image_size)
