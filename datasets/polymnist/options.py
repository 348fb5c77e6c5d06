"""The options of the recipe: checks, and a name that is unique for the data."""

import dataclasses
import hashlib
import math
from pathlib import Path

import dataset_images
import tensorflow_datasets as tfds
from dataset_errors import DatasetError, check_limits

from polymnist import backgrounds, digits, labels, published

SPLITS = ("train", "test")
SOURCES = ("mnist", "sklearn", "published")
QUADRANTS = ("", labels.SHARED, labels.PRIVATE)


@dataclasses.dataclass(eq=False, kw_only=True)
class Options(tfds.core.BuilderConfig):
    """The options of the recipe; see README.md.

    Attributes:
      name: set from the other fields, so that different data never share a folder.
      digits: "mnist", "sklearn" or "published".
      digits_dir: folder with the four MNIST idx files; "" downloads them.
      backgrounds_dir: folder with one image per modality; "" for built-in textures.
      published_dir: folder in the published layout, for digits="published".
      num_modalities: M, at least 1.
      image_size: side of the images, in pixels.
      translate_scale: side of the digit relative to the image; 1.0 does not move it.
      quadrant: digits of half the image's side in one of its quarters, the same quarter
        in all modalities ("shared") or one for each ("private"); "": no quarters.
      label_modalities: additional modalities that show an attribute, "digit" or
        "quadrant".
      repeated: every modality uses the first background.
      pairings: number of tuples with each digit image, per modality.
      validation: percentage of the training digits of each class that is held out and
        replaces the test split, for selections without test digits; 0: the test split
        is the test digits.
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
    quadrant: str = ""
    label_modalities: tuple[str, ...] = ()
    repeated: bool = False
    pairings: int = 1
    validation: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the options and names the config after them."""
        self.label_modalities = tuple(self.label_modalities)
        _check_options(self)
        self.name = _config_name(self)

    @property
    def side(self) -> int:
        """Side of the digit in the image, in pixels."""
        if self.quadrant:
            return self.image_size // 2
        return math.floor(self.image_size * self.translate_scale + 0.5)


def _check_options(config: Options) -> None:
    """Raises DatasetError for the first invalid option."""
    check_limits(
        config,
        {
            "num_modalities": (1, 1000),
            "image_size": (8, 512),
            "pairings": (1, 10_000),
            "validation": (0, 90),
            "seed": (0, 2**63),
        },
    )
    if config.digits not in SOURCES:
        raise DatasetError(
            f"config.data.digits={config.digits!r} must be one of {', '.join(SOURCES)}"
        )
    if not 0.25 <= config.translate_scale <= 1.0:
        raise DatasetError(
            f"config.data.translate_scale={config.translate_scale} must be in "
            "0.25..1.0 (1.0: no translation)"
        )
    _check_quadrant(config)
    for field, source in (("digits_dir", "mnist"), ("published_dir", "published")):
        if getattr(config, field) and config.digits != source:
            raise DatasetError(
                f'config.data.{field} is for config.data.digits="{source}", but that '
                f'is "{config.digits}": set it, or leave {field} empty'
            )
    if config.digits != "published":
        return
    if not config.published_dir:
        raise DatasetError(
            'config.data.digits="published" needs config.data.published_dir, a folder '
            "with {train,test}/m{i}/{n}.{digit}.png"
        )
    changes = (config.translate_scale, config.repeated, config.pairings)
    others = (config.validation, config.quadrant, *config.label_modalities)
    if changes != (1.0, False, 1) or any(others):
        raise DatasetError(
            'config.data.digits="published" takes the images as they are: leave '
            "translate_scale=1.0, repeated=False, pairings=1, validation=0, "
            'quadrant="" and label_modalities=()'
        )


def _check_quadrant(config: Options) -> None:
    """Raises DatasetError for invalid options of quarters or label modalities."""
    if config.quadrant not in QUADRANTS:
        raise DatasetError(
            f"config.data.quadrant={config.quadrant!r} must be one of "
            f"{', '.join(map(repr, QUADRANTS))}"
        )
    if config.quadrant and config.image_size % 2:
        raise DatasetError(
            f"config.data.quadrant={config.quadrant!r} needs an even "
            f"config.data.image_size, got {config.image_size}"
        )
    if config.quadrant and config.translate_scale != 1.0:
        raise DatasetError(
            f"config.data.quadrant={config.quadrant!r} halves the digit and places it: "
            f"leave config.data.translate_scale=1.0, got {config.translate_scale}"
        )
    names = config.label_modalities
    unknown = [name for name in names if name not in labels.VALUES]
    if unknown or len(set(names)) < len(names):
        raise DatasetError(
            f"config.data.label_modalities={names} must be some of "
            f"{', '.join(map(repr, labels.VALUES))}, each once"
        )
    if labels.QUADRANT in names and config.quadrant != labels.SHARED:
        raise DatasetError(
            f"config.data.label_modalities={names} needs one quarter for all "
            'modalities: set config.data.quadrant="shared", or leave out "quadrant"'
        )


def _sha256(path: Path) -> bytes:
    """The sha256 of a file, without reading it into memory at once."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def _config_name(config: Options) -> str:
    """All options in one word, with a hash of the user's files."""
    words = [config.digits, f"m{config.num_modalities}", f"{config.image_size}px"]
    foreign = hashlib.sha256()
    if config.digits == "published":
        # Only names and sizes, because reading 350,000 small files at the start of
        # every run would take too long.
        for piece in published.describe(config.published_dir, config.num_modalities):
            foreign.update(piece)
        return "-".join([*words, foreign.hexdigest()[:12]])
    if config.quadrant:
        words.append(f"{config.quadrant}quadrant")
    elif config.side < config.image_size:
        words.append(f"translated{config.side}px")
    words += [f"{name}label" for name in config.label_modalities]
    if config.repeated:
        words.append("repeated")
    if config.pairings > 1:
        words.append(f"{config.pairings}pairings")
    if config.validation:
        words.append(f"{config.validation}validation")
    words.append(f"seed{config.seed}")
    paths = []
    if config.digits == "mnist" and config.digits_dir:
        found = digits.find_files(config.digits_dir)
        paths += [path for split in SPLITS for path in found[split]]
    if config.backgrounds_dir:
        num = 1 if config.repeated else config.num_modalities
        images = backgrounds.list_folder(config.backgrounds_dir)[:num]
        if any(map(dataset_images.was_decoded_otherwise, images)):
            foreign.update(dataset_images.DECODED_ANEW)
        paths += images
    for path in paths:
        foreign.update(_sha256(path))
    if paths:
        words.append(foreign.hexdigest()[:12])
    return "-".join(words)
