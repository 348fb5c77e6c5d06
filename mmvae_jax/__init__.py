"""Multimodal variational autoencoders in JAX, as data plus pure functions.

The basis is types (array aliases, NamedTuples, the legend of axis letters), errors (the
one exception that users see as a single line), tokens (captions as integers) and files
(written whole or not at all). Everything else is in a room. A room imports from itself,
from the basis, and from the rooms on its right (tests/test_architecture.py reads these
rows):

mathematics  <-
networks     <-
data         <-
models       <-  mathematics networks
training     <-  mathematics data
evaluation   <-  mathematics networks data models training

mathematics  distributions, subsets, products and mixtures of experts, Eq. 2 and its KL
networks     Linen encoders, decoders and classifiers, and how a convolution is executed
data         data sets in memory, what is missing of them, the order of batches
models       a model is a NamedTuple of pure functions; one table; one file a kind
training     the pure train step, the one train loop, sweeps, devices, checkpoints, log
evaluation   metrics (one table), the judges they need, samples and pictures

Read first: types, mathematics/subsets, mathematics/elbo (Eq. 2), models/mixtures,
training/step, evaluation/metrics/coherence. docs/architecture.md follows a batch
through all of them.
"""

__version__ = "0.1.0"
