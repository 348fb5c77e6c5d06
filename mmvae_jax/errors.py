"""Exceptions that users see as one line."""

import contextlib
import string
from collections.abc import Iterator
from typing import Any


class UsageError(ValueError):
    """A mistake in a config, a flag, data or a working directory.

    The message is one line that says what is wrong, where, and what to do. The
    entry points in ``experiments/`` print it without a traceback and exit with
    code 2. Characters that cannot be printed, such as newlines in names, are escaped.
    """

    def __str__(self) -> str:
        """The message in one line."""
        return _in_one_line(super().__str__())


class ArgumentError(UsageError):
    """An invalid value of an argument of a function.

    A function does not know which setting an argument comes from. Its message has the
    argument's name in braces, as in "{scale} must be > 0, got {}"; the caller that read
    the settings replaces it by the name of the setting (`fields_of`).

    Args:
      words: the message, with {name} for each name of an argument and {} or {!r} for
        each value.
      *values: the values, in order.
    """

    def __str__(self) -> str:
        """The message with the function's names of the arguments."""
        return self.named("")

    def named(self, prefix: str) -> str:
        """The message with `prefix` before the names of the arguments."""
        words, *values = self.args
        return _in_one_line(_Names().vformat(words, values, {"prefix": prefix}))


def first_line(error: BaseException) -> str:
    """The first line of an error of any type, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _in_one_line(words: str) -> str:
    """Escapes characters that cannot be printed."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in words
    )


class _Names(string.Formatter):
    """Formats each name in braces as a prefix and the name."""

    def get_value(self, key: int | str, args: Any, kwargs: Any) -> Any:
        return args[key] if isinstance(key, int) else kwargs["prefix"] + key


@contextlib.contextmanager
def fields_of(section: str) -> Iterator[None]:
    """Names settings instead of arguments in the errors of a `with` block.

    Args:
      section: section of the config whose fields have the names of the arguments, for
        instance "config.train".

    Raises:
      UsageError: instead of an ArgumentError.
    """
    try:
        yield
    except ArgumentError as error:
        raise UsageError(error.named(f"{section}.")) from error
