"""BibTeX entries of the models, metrics and data of a run.

The rows of MODELS, METRICS and SAMPLERS name keys of references.bib in this package.
Each data set has its own file of entries.
"""

import re
from collections.abc import Collection
from pathlib import Path

from mmvae_jax.evaluation.metrics import METRICS
from mmvae_jax.evaluation.samplers import SAMPLERS
from mmvae_jax.models import MODELS

SOFTWARE = "mmvae_jax"  # key of this project
_FILE = Path(__file__).resolve().parents[1] / "references.bib"
_HEAD = re.compile(r"^@\w+\s*\{\s*([^\s,{}]+)\s*,", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    """The entries of a BibTeX file, in order: key -> text of the entry.

    Raises:
      ValueError: an entry does not end, or two have the same key.
    """
    found: dict[str, str] = {}
    for head in _HEAD.finditer(text):
        key, depth = head[1], 0
        for place in range(head.start(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if text[place] == "}" and depth == 0:
                break
        else:
            raise ValueError(f"the BibTeX entry {key} does not end")
        if key in found:
            raise ValueError(f"there are two BibTeX entries {key}")
        found[key] = text[head.start() : place + 1]
    return found


def entries() -> dict[str, str]:
    """The entries of models, metrics, samplers and this project: key -> entry."""
    return parse(_FILE.read_text(encoding="utf-8"))


def uses(
    model: str, metrics: Collection[str], samplers: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """The BibTeX keys for a model, metrics, samplers and this project.

    Args:
      model: key of MODELS, or any other name.
      metrics: keys of METRICS, or any other names.
      samplers: keys of SAMPLERS.

    Returns:
      Description of each item -> keys of `entries`; () if no table has the item.
    """
    citation = MODELS[model].citation if model in MODELS else None
    return {
        "this software": (SOFTWARE,),
        f"model {model}": (citation.key, *citation.also) if citation else (),
        **{
            f"metric {name}": METRICS[name].citations if name in METRICS else ()
            for name in metrics
        },
        **{f"sampler {name}": SAMPLERS[name].citations for name in samplers},
    }
