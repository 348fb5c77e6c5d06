"""The exception raised for a mistake in options or in input files."""


class DatasetError(ValueError):
    """An option or an input file that cannot be used.

    The message is one line that says what is wrong, where, and what to do.
    """
