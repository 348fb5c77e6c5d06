"""`export`: a trained model as a folder for others, with a model card."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmvae_jax import models
from mmvae_jax.interface import description, exports, references
from mmvae_jax.interface.trained import Trained, diverged
from mmvae_jax.training import sweep
from mmvae_jax.training.log import jsonable, member_name

_CARD = """\
---
library_name: mmvae_jax
tags: [multimodal, vae, jax]
---

# {label} on {data}

{label} of {citation}, a multimodal variational autoencoder, trained with mmvae_jax.

## Data

{modalities}

## Settings

beta = {beta:g}, learning rate {learning_rate:g}, seed {seed:g}, {step:,} steps of
{batch_size} examples, {latent_dim} latent dimensions, {num_params:,} parameters.
`config.json` has all of them.
{warning}
## Numbers

{numbers}

## Use

```python
import mmvae_jax

trained = mmvae_jax.load("{folder}")
z = mmvae_jax.embed(trained, data)
filled = mmvae_jax.impute(trained, data, num_draws=20)
```

`data` maps the names above to arrays; what is left out is missing.

## Cite

```bibtex
{cite}
```

## Limits

The model knows what its training data show, in the units that they have. What it
generates for a modality that is missing is one of many possibilities; the spread over
draws says how many. Numbers above are of the data and the settings named with them.
"""


def export(
    trained: Trained,
    directory: str | Path,
    *,
    results: Mapping[str, float] | None = None,
    settings: str = "",
) -> Path:
    """Writes parameters, config, description of the data, and a card to a folder.

    `load` reads the folder. It contains no code, no pickle and no data.

    Args:
      trained: from `fit` or `load`.
      directory: new folder; must not exist.
      results: tag -> value of metrics, for the card.
      settings: one line on the settings of these metrics, for the card.

    Returns:
      The folder.

    Warns:
      UserWarning: training diverged; the export and its card say so.

    Raises:
      UsageError: the folder exists, or cannot be created.
    """
    folder = Path(directory).expanduser()
    params = exports.flatten(trained.params)
    content = exports.Export(
        jsonable(trained.config.to_dict()),
        description.to_json(trained.description),
        params,
        trained.member,
        trained.step,
        trained.is_finite,
    )
    name = member_name(trained.member, sweep.grid(trained.config.sweep))
    warning = "" if trained.is_finite else diverged(name)
    model = models.MODELS[trained.config.model.name]
    used = references.uses(trained.config.model.name, ())
    entries = references.entries()
    card = _CARD.format(
        label=model.label,
        citation=model.citation.text,
        data=trained.description.name,
        modalities="\n".join(_line(m) for m in trained.description.modalities),
        step=trained.step,
        batch_size=trained.config.train.batch_size,
        latent_dim=trained.config.model.latent_dim,
        num_params=sum(math.prod(x.shape) for x in params.values()),
        warning=f"\n**Warning:** {warning}.\n" if warning else "",
        numbers=_numbers(results or {}, settings),
        folder=folder.name,
        cite="\n\n".join(entries[key] for keys in used.values() for key in keys),
        **trained.member._asdict(),
    )
    exports.write(folder, content, card)
    if warning:
        warnings.warn(f"{folder}: {warning}", stacklevel=2)
    return folder


def _line(modality: description.Modality) -> str:
    """One modality of the card."""
    shape = " x ".join(str(n) for n in modality.shape)
    words = f", {len(modality.words)} words" if modality.words else ""
    return f"* `{modality.name}`: {modality.kind}, {shape}{words}"


def _numbers(results: Mapping[str, Any], settings: str) -> str:
    """The table of the card."""
    shown = {tag: x for tag, x in results.items() if x is not None and math.isfinite(x)}
    if not shown:
        return "None were computed."
    rows = "\n".join(f"| {tag} | {x:.4g} |" for tag, x in shown.items())
    return f"{settings}\n\n| metric | value |\n|---|---|\n{rows}".strip()
