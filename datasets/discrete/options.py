"""The options of the recipe: checks, and a name that is unique for the data."""

import dataclasses

import tensorflow_datasets as tfds
from dataset_errors import DatasetError, check_limits

MAX_CELLS = MAX_EXAMPLES = 1 << 20


@dataclasses.dataclass(eq=False, kw_only=True)
class Options(tfds.core.BuilderConfig):
    """The options of the recipe; see README.md.

    Attributes:
      name: set from the other fields, so that different data never share a folder.
      num_modalities: M, at least 1.
      shared_bits: bits of the class, which every modality shows.
      specific_bits: private bits of each modality.
      one_in: a private bit is 1 with probability 1 / one_in.
      patch: side of the square that shows a bit, in pixels.
      repeats: copies of the smallest exact set.
    """

    name: str = ""
    num_modalities: int = 3
    shared_bits: int = 2
    specific_bits: int = 2
    one_in: int = 2
    patch: int = 1
    repeats: int = 16

    def __post_init__(self) -> None:
        """Checks the options and names the config after them."""
        _check_options(self)
        self.name = (
            f"m{self.num_modalities}-{self.shared_bits}shared"
            f"-{self.specific_bits}specific-1in{self.one_in}-{self.patch}px"
            f"-{self.repeats}repeats"
        )

    @property
    def num_bits(self) -> int:
        """Number of bits of one value."""
        return self.shared_bits + self.specific_bits

    @property
    def pmf_options(self) -> dict[str, int]:
        """The arguments of `pmf.joint_counts`."""
        names = ("num_modalities", "shared_bits", "specific_bits", "one_in")
        return {name: getattr(self, name) for name in names}


def _check_options(config: Options) -> None:
    """Raises DatasetError for the first invalid option."""
    check_limits(
        config,
        {
            "num_modalities": (1, 20),
            "shared_bits": (0, 8),
            "specific_bits": (0, 20),
            "one_in": (1, 16),
            "patch": (1, 16),
            "repeats": (1, 1 << 20),
        },
    )
    if not config.num_bits:
        raise DatasetError(
            "config.data.shared_bits=0 and config.data.specific_bits=0 leave no bit to "
            "show; raise one of them"
        )
    cells = 1 << config.num_modalities * config.num_bits
    if cells > MAX_CELLS:
        raise DatasetError(
            f"{config.num_modalities} modalities of {config.num_bits} bits make "
            f"{cells} cells of a table, {MAX_CELLS} is the limit; lower "
            "config.data.num_modalities or config.data.specific_bits"
        )
    words = config.num_modalities * config.specific_bits
    num = config.repeats * (1 << config.shared_bits) * config.one_in**words
    if num > MAX_EXAMPLES:
        raise DatasetError(
            f"{num} examples are more than the {MAX_EXAMPLES} that are made; lower "
            "config.data.repeats or config.data.one_in"
        )
