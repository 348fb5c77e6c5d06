"""The exception of all data sets for a mistake in options or in input files."""

from collections.abc import Mapping
from typing import Any


class DatasetError(ValueError):
    """An option or an input file that cannot be used.

    The message is one line: what is wrong, where, and what to do.
    """


def check_limits(options: Any, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raises DatasetError for the first number that is out of its limits.

    Args:
      options: dataclass of a data set's options.
      limits: field -> (lowest, highest).
    """
    for field, (low, high) in limits.items():
        value = getattr(options, field)
        if not low <= value <= high:
            raise DatasetError(f"config.data.{field}={value} must be in {low}..{high}")
