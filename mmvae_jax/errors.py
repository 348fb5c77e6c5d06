"""Exceptions that users are meant to see, as one line."""

import contextlib
import string
from collections.abc import Iterator
from typing import Any


class UsageError(ValueError):
    """A mistake in a config, a flag, data or a working directory.

    The message is one line that says what is wrong, where, and what to do. The
    entry points in ``experiments/`` print it without a traceback and exit with
    code 2. What a name holds that cannot be shown, as the end of a line, is escaped.
    """

    def __str__(self) -> str:
        """The message, in one line whatever names it has."""
        return _in_one_line(super().__str__())


class ArgumentError(UsageError):
    """A value that an argument of a function may not have.

    Functions do not know which setting of the user an argument comes from. They write
    the name of an argument in braces, as in "{scale} must be > 0, got {}", and whoever
    read the settings says what it is called there (`fields_of`).

    Args:
      words: the line, with a place {name} for every name of an argument and a place {}
        or {!r} for every value.
      *values: in the order of their places.
    """

    def __str__(self) -> str:
        """The line, with the names that arguments have in the function."""
        return self.named("")

    def named(self, prefix: str) -> str:
        """The line; `prefix` goes before the names of arguments."""
        words, *values = self.args
        return _in_one_line(_Names().vformat(words, values, {"prefix": prefix}))


def _in_one_line(words: str) -> str:
    """Words in which characters that cannot be printed are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in words
    )


class _Names(string.Formatter):
    """Format strings in which a name stands for itself, after a prefix."""

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        return args[key] if isinstance(key, int) else kwargs["prefix"] + key


@contextlib.contextmanager
def fields_of(section: str) -> Iterator[None]:
    """Calls arguments by the settings that they come from, in errors raised within.

    Args:
      section: whose fields are handed to arguments of the same names, for instance
        "config.train".

    Raises:
      UsageError: instead of an ArgumentError.
    """
    try:
        yield
    except ArgumentError as error:
        raise UsageError(error.named(f"{section}.")) from error
