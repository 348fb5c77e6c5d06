"""The exception raised for a mistake in options or in input files."""


class DatasetError(ValueError):
    """An option or an input file that cannot be used.

    The message is one line that says what is wrong, where, and what to do.
    """


def check_limits(config, limits):
    """Raises DatasetError for the first number that is out of its limits.

    Args:
      config: the options.
      limits: field -> (lowest, highest).
    """
    for field, (low, high) in limits.items():
        value = getattr(config, field)
        if not low <= value <= high:
            raise DatasetError(f"config.data.{field}={value} must be in {low}..{high}")
