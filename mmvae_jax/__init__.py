"""Multimodal variational autoencoders in JAX, as data plus pure functions.

Where things are, from the mathematics outwards (each module imports only from
those above it; ``tests/test_architecture.py`` checks that):

types          array aliases, NamedTuples, the legend of axis letters
errors         the one exception that users see as a single line
files          files that are written whole or not at all
tokens         captions as integers, and the way back
distributions  log-densities, KL divergences and sampling
subsets        a model of the family as data: subset masks and weights
theory         entropies and the generative discrepancy of a known joint pmf
posteriors     products and mixtures of Gaussian experts
objectives     terms in nats and the loss; Eq. 2, Eq. 84, the unimodal ELBOs
importance     the objective with beta inside of a logarithm
layers         how a convolution is executed
text_networks  Linen layers for captions
networks       Linen encoders, decoders and classifiers
models/        a model: a NamedTuple of pure functions; a file has its own equation,
               options and builder, and one table says everything of all of them
data           prepared data sets, what is missing of them, batches
arrays         your own data, from a .npz file
sweeps         the member axis of a sweep
meshes         where members and batches are, on several devices
train          the train step and the only train loop
tuning         how members are mapped: by rule, and by memory
checkpoints    orbax behind four functions
writers        metrics.jsonl, TensorBoard, samples
pictures       samples as pictures and text
inception      the network behind FID
inception_weights  its published weights: fetched, checked, read without PyTorch
metrics/       one file per metric, and the table of all of them
classifiers    networks that tell which label or attribute an example shows
readers        attributes read off examples: by parsers and classifiers
matchers       networks that tell matching examples from others, without labels
judges         all three: trained, or found where they are kept
needs          what each metric needs of data and config, checked before training
evaluate       runs the metrics of every member
"""

__version__ = "0.1.0"
