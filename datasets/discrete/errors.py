"""The exception raised for a mistake in the options."""


class DatasetError(ValueError):
    """An option that cannot be used.

    The message is one line that says what is wrong, where, and what to do.
    """
