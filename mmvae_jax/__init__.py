"""Multimodal variational autoencoders in JAX, as data plus pure functions.

The basis is types (array aliases, NamedTuples, the legend of axis letters), errors (the
one exception that users see as a single line), tokens (captions as integers) and files
(atomic writes). Everything else is in a subpackage, called a room. A room imports from
itself, from the basis, and from the rooms in its row (tests/test_architecture.py reads
these rows):

mathematics  <-
networks     <-
data         <-
models       <-  mathematics networks
training     <-  mathematics data
evaluation   <-  mathematics networks data models training
interface    <-  mathematics networks data models training evaluation

mathematics  distributions, subsets, products and mixtures of experts, Eq. 2, flows
networks     Linen encoders, decoders, classifiers, flows; how a convolution is executed
data         data sets in memory, missing modalities, the order of batches
models       a model is a NamedTuple of pure functions; one table; one file per kind
training     the pure train step, the one train loop, sweeps, devices, checkpoints, log
evaluation   metrics (one table), the judges they need, samples and pictures
interface    the public functions: fit, load, embed, impute, generate, score, export

Read first: types, mathematics/subsets, mathematics/elbo (Eq. 2), models/mixtures,
training/step, evaluation/metrics/coherence. docs/architecture.md follows a batch
through all of them.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Functions of the room `interface`, by file.
_CALLS = {
    "fit": "fitting",
    "load": "trained",
    "Trained": "trained",
    "embed": "applying",
    "generate": "applying",
    "impute": "applying",
    "reconstruct": "applying",
    "score": "applying",
    "export": "sharing",
}
__all__ = list(_CALLS)


def __getattr__(name: str) -> Any:
    """Imports a function of `interface` at its first use, to keep imports fast."""
    if name not in _CALLS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.interface.{_CALLS[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    """Names for tab completion."""
    return sorted([*globals(), *_CALLS])
