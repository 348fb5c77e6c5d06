"""The options of the recipe: checks, and a name that is unique for the data."""

import dataclasses

import tensorflow_datasets as tfds
from dataset_errors import DatasetError, check_limits

from shapes import captions

NUM_SHAPES, NUM_COLOURS = len(captions.SHAPES), len(captions.COLOURS)
NUM_COMBINATIONS = NUM_SHAPES * NUM_COLOURS
MAX_EXAMPLES = 1 << 20


@dataclasses.dataclass(eq=False, kw_only=True)
class Options(tfds.core.BuilderConfig):
    """The options of the recipe; see README.md.

    Attributes:
      name: set from the other fields, so that different data never share a folder.
      image_size: side of the images, in pixels.
      num_train: pairs of the training split.
      num_test: pairs of the test split.
      held_out: number of combinations of shape and colour only in the test split.
      caption_length: T, in tokens.
      seed: int, at least 0.
    """

    name: str = ""
    image_size: int = 32
    num_train: int = 12_000
    num_test: int = 2_400
    held_out: int = 0
    caption_length: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the options and names the config after them."""
        _check_options(self)
        self.name = (
            f"{self.image_size}px-{self.num_train}train-{self.num_test}test"
            f"-{self.held_out}heldout-{self.caption_length}tokens-seed{self.seed}"
        )


def _check_options(config: Options) -> None:
    """Raises DatasetError for the first invalid option."""
    check_limits(
        config,
        {
            "image_size": (16, 256),
            "num_train": (1, MAX_EXAMPLES),
            "num_test": (1, MAX_EXAMPLES),
            "held_out": (0, NUM_COMBINATIONS // 2),
            "caption_length": (1, 64),
            "seed": (0, 2**63),
        },
    )
    longest = captions.most_words() + 1
    if config.caption_length < longest:
        raise DatasetError(
            f"config.data.caption_length={config.caption_length} would cut what a "
            f"caption says: the longest needs {longest} tokens"
        )
