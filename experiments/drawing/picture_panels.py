"""Panels that show pictures."""

import itertools
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from experiments.drawing.axes import NOT_MEASURED, make_axes, make_axes_above, say
from experiments.plans import plan, tables
from experiments.plans.names import model_label
from experiments.plans.plan import Evidence, Spec
from experiments.plans.runs import samples_of
from mmvae_jax.errors import UsageError
from mmvae_jax.files import file_name


class Strips(NamedTuple):
    """A picture of samples in the folder of a run.

    Attributes:
      name: file name without the member's prefix.
      labels: text beside each row.
    """

    name: str
    labels: Sequence[str]


class Page(NamedTuple):
    """A picture of samples with captions in the folder of a run.

    Attributes:
      spec: the run.
      name: file name without the member's prefix.
      title: description of the picture.
      part: shown fraction of its height, from the top.
    """

    spec: Spec
    name: str
    title: str
    part: float


def draw_pictures(
    evidence: Evidence,
    models: Sequence[str],
    strips: Mapping[str, Strips],
    num_samples: int,
    num_columns: int,
    pages: Sequence[Page] = (),
    num_pages: int = 1,
) -> Figure:
    """The pictures of one member, one panel per data set and model.

    Args:
      evidence: the runs.
      models: the models, one panel each.
      strips: data set -> its picture.
      num_samples: samples in a row of a picture.
      num_columns: panels in a row.
      pages: pages below the panels.
      num_pages: pages in a row.
    """
    lines = -(-len(models) // num_columns)  # per data set
    most = max((len(picture.labels) for picture in strips.values()), default=0)
    width, above = 7.2 / num_columns, 0.2 if num_columns == 2 else 0.4
    height = (width - 0.05) * most / num_samples + above
    size = lines * len(strips), num_columns, width, height, 0.15
    read = [read_page(evidence, page) for page in pages]
    if pages:
        figure, axes, below = make_axes_above(*size, read, num_pages)
    else:
        figure, axes = make_axes(*size)
    figure.set_dpi(300)  # resolution of pictures in a PDF
    for axis in axes.flat:
        axis.set_axis_off()
    letters = iter(string.ascii_lowercase)
    for i, (dataset, picture) in enumerate(strips.items()):
        beta = evidence.config.datasets[dataset].beta_of_samples
        for k, model in enumerate(models):
            axis = axes[i * lines + k // num_columns, k % num_columns]
            parts = [
                f"({next(letters, '…')}) {model_label(model)}",
                f"{tables.title(evidence, dataset)}, β = {tables.show_beta(beta)}",
            ]
            axis.set_title((", " if num_columns == 2 else ",\n").join(parts), size=8)
            found = _read_picture(evidence, Spec(dataset, model), picture.name)
            if isinstance(found, str):
                axis.set_box_aspect(len(picture.labels) / num_samples)
                say(axis, found)
            else:
                _show_picture(axis, found, picture.labels, num_samples)
    if pages:
        marks = (f"({letter}) " for letter in itertools.chain(letters, "…" * len(read)))
        show_pages(evidence, below, pages, read, marks)
    return figure


def read_page(evidence: Evidence, page: Page) -> np.ndarray | str:
    """The shown part of a page, or the reason for its absence.

    The part ends with a white line, so that no sample is cut.
    """
    found = _read_picture(evidence, page.spec, page.name)
    if isinstance(found, str):
        return found
    part = found[: max(1, round(page.part * len(found)))]
    white = np.flatnonzero((part == 255).all(axis=(1, 2)))
    return part[: white[-1] + 1] if len(white) else part


def show_pages(
    evidence: Evidence,
    axes: Sequence[Axes],
    pages: Sequence[Page],
    read: Sequence[np.ndarray | str],
    marks: Iterable[str],
) -> None:
    """Shows pages, each below its title."""
    for axis, page, found, mark in zip(axes, pages, read, marks, strict=False):
        settings = plan.settings(evidence.config, page.spec.dataset)
        axis.set_title(
            f"{mark}{model_label(page.spec.model)}, {settings.title}, β = "
            f"{tables.show_beta(settings.beta_of_samples)}: {page.title}",
            size=8,
        )
        if isinstance(found, str):
            say(axis, found)
        else:
            _show_picture(axis, found, (), 1)


def _read_picture(evidence: Evidence, spec: Spec, name: str) -> np.ndarray | str:
    """The picture of the shown member of a run, or the reason for its absence."""
    members = tables.members_of(evidence, spec)
    places = samples_of(evidence.runs[spec]) if members else []
    for (folder, prefix), found in zip(places, members, strict=True):
        if tables.is_pictured(evidence, spec, found):
            if not found["finite"]:
                return "diverged"
            path = folder / f"{prefix}_{file_name(name)}.png"
            if path.is_file():
                try:
                    with Image.open(path, formats=("PNG",)) as image:
                        return np.asarray(image.convert("RGB"))
                except Exception as error:  # Pillow raises many types.
                    raise UsageError(
                        f"{path} is not a readable picture: {error}"
                    ) from error
    return NOT_MEASURED


def _show_picture(
    axis: Axes, pixels: np.ndarray, labels: Sequence[str], num_samples: int
) -> None:
    """Shows a picture, with the labels beside its rows if their positions are known."""
    height, width = pixels.shape[:2]
    # Enlarge by a whole factor, so that pixels stay sharp at any resolution.
    factor = max(1, -(-800 // width))
    sharp = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    axis.imshow(sharp, extent=(0, width, height, 0), interpolation="antialiased")
    if not labels or height * num_samples != width * len(labels):
        return  # a page, or modalities of several sizes
    axis.set_axis_on()
    axis.grid(False)
    axis.spines[:].set_visible(False)
    strip = height / len(labels)
    # A label of several rows is in their middle, possibly between two rows.
    places = [
        (i + (0.5 if len(set(labels)) == len(labels) or i == 0 else 0)) * strip
        for i in range(len(labels))
    ]
    axis.set_xticks([])
    axis.set_yticks(places, labels)
    axis.tick_params(left=False, pad=1)
    if "" in labels:
        axis.axhline(strip, color="white", linewidth=1.5)
