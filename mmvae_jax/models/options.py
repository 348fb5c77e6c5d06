"""Options: the settings of a single model, `config.model.options`.

Each model's file has a table of its options, name -> Option.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One setting of a model.

    Attributes:
      default: default value; its type is the type of the setting.
      rule: value -> whether it is valid.
      words: error message for an invalid value, with {} for name and value.
    """

    default: Any
    rule: Callable[[Any], bool] = lambda value: True
    words: str = ""


Options = Mapping[str, Option]


def one_of(*choices: str) -> Option:
    """A choice of words; the first is the default."""
    words = f"unknown {{}} {{!r}}; choose one of {', '.join(choices)}"
    return Option(choices[0], lambda value: value in choices, words)


def number(default: float, least: float, most: float = math.inf) -> Option:
    """A number in [least, most], of the type of the default."""
    limits = f">= {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
    words = f"{{}} must be {limits}, got {{}}"
    return Option(default, lambda value: least <= value <= most, words)


def share(default: float) -> Option:
    """A fraction of the run's steps, below 1; 0 (none) only if that is the default."""
    words = f"{{}} must be in {'(' if default else '['}0, 1), got {{}}"
    return Option(default, lambda value: 0 < value < 1 or value == default, words)


def mistakes(options: Options, given: Mapping[str, Any], section: str) -> list[str]:
    """Error messages for invalid values; `section` is a prefix of names."""
    return [
        option.words.format(f"{section}.{name}", given[name])
        for name, option in options.items()
        if name in given and not option.rule(given[name])
    ]
