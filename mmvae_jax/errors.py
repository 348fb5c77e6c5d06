"""The one exception that users are meant to see."""


class UsageError(ValueError):
    """A mistake in a config, a flag, data or a working directory.

    The message is one line that says what is wrong, where, and what to do. The
    entry points in ``experiments/`` print it without a traceback and exit with
    code 2.
    """
