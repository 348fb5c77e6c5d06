"""TFDS builder of drawings with captions; needs no TensorFlow."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from pairs import records

from mmvae_jax import tokens
from shapes import captions, drawing, recipe


class Builder(tfds.core.GeneratorBasedBuilder):
    """Drawings of coloured shapes with captions, which share shape and colour.

    Records, features and metadata are those of `pairs.records`; `label` is shape *
    number of colours + colour; shape and colour are also attributes.
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
        return records.describe(
            self,
            config.image_size,
            config.caption_length,
            attributes={"shape": captions.SHAPES, "colour": captions.COLOURS},
            meanings=captions.MEANINGS,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Draws both splits."""
        del dl_manager  # nothing is downloaded
        config = self.builder_config
        numbers = {"train": config.num_train, "test": config.num_test}
        pairs = {
            split: recipe.make_pairs(
                split, numbers[split], config.held_out, config.seed
            )
            for split in recipe.SPLITS
        }
        words = tokens.build_vocabulary(pairs["train"].captions)
        splits = {name: self._make(own, words) for name, own in pairs.items()}
        records.add_metadata(self.info, splits, words)
        return {name: self._generate_examples(split) for name, split in splits.items()}

    def _make(self, pairs: recipe.Pairs, words: Sequence[str]) -> records.Split:
        """The examples of one split: records.Split."""
        config = self.builder_config
        arrays = {
            "image": drawing.draw(pairs.plan, config.image_size),
            "caption": tokens.encode(pairs.captions, words, config.caption_length),
            "label": pairs.labels.astype(np.int32),
            "attribute/shape": pairs.plan.shape.astype(np.int32),
            "attribute/colour": pairs.plan.colour.astype(np.int32),
        }

        def read(start: int, stop: int) -> dict[str, np.ndarray]:
            return {name: array[start:stop] for name, array in arrays.items()}

        return records.Split(len(pairs.labels), read, records.digest(**arrays))

    def _generate_examples(self, split: records.Split) -> Iterator[tuple[int, dict]]:
        """Yields numbered blocks."""
        yield from records.blocks(split, self.builder_config.image_size)
