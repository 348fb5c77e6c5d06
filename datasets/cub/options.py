"""The options of the recipe: checks, and a name that is unique for the data."""

import dataclasses
import hashlib
from pathlib import Path

import tensorflow_datasets as tfds
from dataset_errors import DatasetError, check_limits

from cub import birds, official, packed

CROPS = ("auto", "whole", "box")
SPLITS = ("classes", "original")


@dataclasses.dataclass(eq=False, kw_only=True)
class Options(tfds.core.BuilderConfig):
    """The options of the recipe; see README.md.

    Attributes:
      name: set from the other fields, so that different data never share a folder.
      cub_dir: folder with photographs and captions.
      image_size: side of the images, in pixels.
      crop: "whole", or "box" for the bird's bounding box; "auto" becomes "whole" if the
        folder has photographs, else "box".
      split: "classes" (150 to train, 50 others to test) or "original".
      captions_per_image: number of captions, the first ones; each gives one example.
      caption_length: T, in tokens.
      min_count: smallest count of a word in the training captions.
    """

    name: str = ""
    cub_dir: str = ""
    image_size: int = 64
    crop: str = "auto"
    split: str = "classes"
    captions_per_image: int = 10
    caption_length: int = 32
    min_count: int = 4

    def __post_init__(self) -> None:
        """Checks the options and names the config after them."""
        _check_options(self)
        if self.crop == "auto":
            self.crop = "box" if self.is_packed else "whole"
        layout = packed if self.is_packed else official
        foreign = hashlib.sha256(layout.describe(self.cub_dir)).hexdigest()
        self.name = (
            f"{self.split}-{self.crop}-{self.image_size}px"
            f"-{self.captions_per_image}captions-{self.caption_length}tokens"
            f"-min{self.min_count}-{foreign[:12]}"
        )

    @property
    def is_packed(self) -> bool:
        """Whether the folder has the packed layout."""
        return packed.is_packed(self.cub_dir)


def _check_options(config: Options) -> None:
    """Raises DatasetError for the first invalid option."""
    check_limits(
        config,
        {
            "image_size": (8, 256),
            "captions_per_image": (1, birds.CAPTIONS),
            "caption_length": (1, 256),
            "min_count": (1, 1 << 20),
        },
    )
    for field, known in (("crop", CROPS), ("split", SPLITS)):
        value = getattr(config, field)
        if value not in known:
            raise DatasetError(
                f"config.data.{field}={value!r} must be one of {', '.join(known)}"
            )
    if not config.cub_dir or not Path(config.cub_dir).expanduser().is_dir():
        raise DatasetError(
            f"config.data.cub_dir={config.cub_dir!r} is not a folder: set it to one "
            "with the photographs and captions of CUB, see datasets/cub/README.md"
        )
    if not config.is_packed:
        return
    if config.crop == "whole" or config.image_size > packed.IMAGE_SIZE:
        raise DatasetError(
            f"{config.cub_dir} has crops to the bounding box of {packed.IMAGE_SIZE} "
            'pixels only: set config.data.crop="box" and config.data.image_size to at '
            f"most {packed.IMAGE_SIZE}"
        )
