"""Options: the settings of a single model, `config.model.options`.

The file of a model has their table beside its builder, name -> Option: the default, and
the rule that a value has to follow.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One setting of a model.

    Attributes:
      default: value where a config says nothing; its type is that of the setting.
      rule: value -> whether it is allowed.
      words: the line for a value that is not, with places for its name and itself.
    """

    default: Any
    rule: Callable[[Any], bool] = lambda value: True
    words: str = ""


Options = Mapping[str, Option]


def one_of(*choices: str) -> Option:
    """Choice among some words, of which the first is the default."""
    words = f"unknown {{}} {{!r}}; choose one of {', '.join(choices)}"
    return Option(choices[0], lambda value: value in choices, words)


def number(default: float, least: float, most: float = math.inf) -> Option:
    """Number of the default's type in [least, most]."""
    limits = f">= {least:g}" if most == math.inf else f"in [{least:g}, {most:g}]"
    words = f"{{}} must be {limits}, got {{}}"
    return Option(default, lambda value: least <= value <= most, words)


def mistakes(options: Options, given: Mapping[str, Any], section: str) -> list[str]:
    """Lines on the values given that are not allowed; `section` goes before names."""
    return [
        option.words.format(f"{section}.{name}", given[name])
        for name, option in options.items()
        if name in given and not option.rule(given[name])
    ]
