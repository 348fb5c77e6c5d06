"""TFDS builder of the data set with a known joint pmf; needs no TensorFlow."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from discrete import pmf

SPLITS = ("train", "test")
BLOCK = 1 << 14


class Builder(tfds.core.GeneratorBasedBuilder):
    """Few bits, some of them shared, in the exact proportions of their joint pmf.

    Records, features and metadata are as in `polymnist`: a record is a block of
    examples, with one feature [n, H, W, 1] per modality and `label` [n]; the metadata
    hold `modalities`, `num_examples` and `fingerprint`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> Any:
        """Describes the features: one modality each, and the labels."""
        config = self.builder_config
        shape = (None, config.patch, config.num_bits * config.patch, 1)
        modalities = [f"m{m}" for m in range(config.num_modalities)]
        features = {
            name: tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="bytes")
            for name in modalities
        }
        features["label"] = tfds.features.Tensor(
            shape=(None,), dtype=np.uint8, encoding="bytes"
        )
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            # TFDS does not keep the order of features, hence `modalities`.
            metadata=tfds.core.MetadataDict(
                modalities=modalities, num_examples={}, fingerprint=""
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        """Makes the examples, the same in both splits, and fills in the metadata."""
        del dl_manager  # nothing is downloaded
        arrays = self._make()
        text = "".join(
            f"{name}:{hashlib.sha256(arrays[name].tobytes()).hexdigest()};"
            for name in sorted(arrays)
        )
        metadata = self.info.metadata
        metadata["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
        metadata["num_examples"] = dict.fromkeys(SPLITS, len(arrays["label"]))
        return {split: self._generate_examples(arrays) for split in SPLITS}

    def _make(self) -> dict[str, np.ndarray]:
        """All examples: modality -> uint8 [N, H, W, 1], and label -> uint8 [N]."""
        config = self.builder_config
        counts = pmf.joint_counts(**config.pmf_options)
        values = pmf.examples(counts, config.repeats)
        arrays = {
            f"m{m}": pmf.images(values[:, m], config.num_bits, config.patch)
            for m in range(config.num_modalities)
        }
        return {**arrays, "label": pmf.labels(values, config.specific_bits)}

    def _generate_examples(
        self, arrays: dict[str, np.ndarray]
    ) -> Iterator[tuple[int, dict]]:
        """Yields numbered blocks."""
        for start in range(0, len(arrays["label"]), BLOCK):
            part = slice(start, start + BLOCK)
            yield start // BLOCK, {name: array[part] for name, array in arrays.items()}
