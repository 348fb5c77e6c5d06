"""Contents of the parts of the latent code: clusters, and probes of each part.

If modalities share the classes, clusters of the shared part should be the classes. The
shared part should predict the label. The private parts should not: they should predict
modality-specific attributes. A linear probe measures whether information is linearly
readable; a nearest-neighbour probe and a small multilayer perceptron (MLP) measure
whether it is present.
"""

from collections import defaultdict
from collections.abc import Mapping

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmvae_jax.data.dataset import LABEL, Split
from mmvae_jax.evaluation import conditionals
from mmvae_jax.evaluation.generate import part_slices
from mmvae_jax.evaluation.metric import (
    EvaluationData,
    Undefined,
    mean,
    require_labels,
)
from mmvae_jax.evaluation.metrics.linear_probe import (
    embed,
    fitted_accuracy,
    probe_accuracy,
)
from mmvae_jax.files import file_name
from mmvae_jax.types import SHARED, MultimodalVAE, Params, PRNGKey

NUM_NEIGHBOURS = 5
_RESTARTS = 10  # restarts of k-means
# The MLP: units of its hidden layer, and epochs of Adam. Few epochs and a large step
# keep the fit under a second for 2,000 codes.
_UNITS, _EPOCHS, _STEP, _PENALTY = 64, 50, 5e-3, 1e-2


def codes(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_train: int = 2_000,
    num_test: int = 10_000,
) -> dict[str, float]:
    """Clustering of the shared part, and probes of each part, for label and attributes.

    The code of an example is its posterior mean given the observed modalities. The
    private part of a modality is probed in the examples that have the modality.

    Args:
      model: for one sweep member.
      params: parameters.
      data: both splits, with labels.
      key: random key of the examples and of posteriors that draw.
      num_train: training examples of the probes; all, if there are fewer.
      num_test: test examples to cluster and classify; all, if there are fewer.

    Returns:
      clusters/accuracy, clusters/nmi and clusters/ari, of k-means on the shared part
      (or the whole code, without a shared part), with as many clusters as classes;
      probe/shared/label/linear, probe/shared/label/neighbours and
      probe/shared/label/mlp: test accuracies for the label; likewise for each attribute
      ("attribute_" and its name), for the private part of each modality
      (probe/private/m0/label/linear), their mean (probe/private/label/linear), and for
      "all" parts if there are several;
      probe/shared/own/linear, the mean over the attributes that a single modality
      shows, and probe/private/own/linear, the same by the private part of that
      modality; absent without such attributes or parts;
      probe/majority/label, the accuracy of the most frequent class, likewise for
      attributes and "own". In [0, 1], the ARI in [-0.5, 1]; NaN if a code is not
      finite, Undefined for the part of a modality that no example of a split has, and
      for values that training examples never have (with the modality of a private
      part).

    Raises:
      UsageError: there are no labels.
    """
    for split in (data.train, data.test):
        require_labels(split, "codes")
    row_key, train_key, test_key = jax.random.split(key, 3)
    rng = conditionals.numpy_rng(row_key)
    train, test = (
        split.take(np.sort(rng.permutation(split.num_examples)[:num]))
        for split, num in ((data.train, num_train), (data.test, num_test))
    )
    found = [
        embed(model, params, split, own_key, data.batch_size)
        for split, own_key in ((train, train_key), (test, test_key))
    ]
    slices = part_slices(model.latent_parts)
    tags = _clusters(
        found[1][:, slices.get(SHARED, slice(None))], np.asarray(test.labels)
    )
    names = {SHARED: SHARED} | {m: f"private/{file_name(m)}" for m in model.modalities}
    parts = {names[part]: where for part, where in slices.items()}
    kept = {
        names[m]: tuple(split.is_observed(m) for split in (train, test, data.train))
        for m in model.modalities
    }
    known = _targets(data.train, data.test)
    if len(parts) != 1:
        parts["all"] = slice(None)
    for target, (train_values, test_values) in _targets(train, test).items():
        own: dict[str, list[float]] = defaultdict(list)
        for part, where in parts.items():
            rows, test_rows, known_rows = kept.get(part, (slice(None),) * 3)
            pairs = (
                found[0][rows, where],
                train_values[rows],
                found[1][test_rows, where],
                test_values[test_rows],
            )
            unseen = np.setdiff1d(pairs[3], known[target][0][known_rows])
            for kind, probe in PROBES.items():
                value: float
                if not min(len(values) for values in pairs):
                    value = Undefined("no example of a split has the modality")
                elif len(unseen):
                    value = Undefined(
                        f"test examples with this part have values of {target} that no "
                        f"such training example has, as {unseen[0]}"
                    )
                else:
                    value = probe(*pairs)
                tags[f"probe/{part}/{target}/{kind}"] = value
                if part.startswith("private/"):
                    own[kind].append(value)
        for kind, values in own.items():
            tags[f"probe/private/{target}/{kind}"] = mean(values)
        most = np.bincount(train_values).argmax()
        tags[f"probe/majority/{target}"] = float(np.mean(test_values == most))
    return tags | _of_own(tags, _own_attributes(data, model.modalities), names)


def _targets(train: Split, test: Split) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Target of the probes, label or attribute -> its values in both splits."""
    targets = {LABEL: (train.labels, test.labels)}
    for name in train.attributes:
        pair = train.attributes[name], test.attributes[name]
        targets[_target_of(name)] = pair
    return {t: (np.asarray(x), np.asarray(y)) for t, (x, y) in targets.items()}


def _own_attributes(
    data: EvaluationData, modalities: tuple[str, ...]
) -> dict[str, str]:
    """Target of an attribute that a single modality shows -> that modality."""
    showing = {a: data.showing(a, modalities) for a in data.train.attributes}
    return {
        _target_of(a): own[0]
        for a, own in showing.items()
        if len(own) == 1 < len(modalities)
    }


def _of_own(
    tags: Mapping[str, float], own: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, float]:
    """Means over attributes that a single modality shows, by the parts they belong to.

    Args:
      tags: tags and values of single attributes.
      own: target -> the modality that shows it.
      names: SHARED or a modality -> name of its part in tags.
    """
    found = defaultdict(list)
    for target, m in own.items():
        found["majority/own"].append(tags[f"probe/majority/{target}"])
        for kind in PROBES:
            for part, tag in ((SHARED, names[SHARED]), ("private", names[m])):
                if (value := tags.get(f"probe/{tag}/{target}/{kind}")) is not None:
                    found[f"{part}/own/{kind}"].append(value)
    return {f"probe/{tag}": mean(values) for tag, values in found.items()}


def _target_of(attribute: str) -> str:
    """Name of an attribute in tags."""
    return f"attribute_{file_name(attribute)}"


def _clusters(found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The tags and values of the clusters of codes [N, d]."""
    names = ("accuracy", "nmi", "ari")
    if not np.isfinite(found).all():
        return {f"clusters/{name}": float("nan") for name in names}
    num = min(len(np.unique(labels)), len(np.unique(found, axis=0)))
    means = KMeans(num, n_init=_RESTARTS, random_state=0)
    clusters = means.fit_predict(np.asarray(found, np.float64))
    values = (
        cluster_accuracy(labels, clusters),
        float(normalized_mutual_info_score(labels, clusters)),
        float(adjusted_rand_score(labels, clusters)),
    )
    return {f"clusters/{name}": x for name, x in zip(names, values, strict=True)}


def cluster_accuracy(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Fraction of examples in the cluster of their class.

    Classes and clusters have the one-to-one assignment with the largest accuracy (Kuhn,
    1955).

    Args:
      labels: int [N].
      clusters: int [N], in any numbering.
    """
    classes, row = np.unique(labels, return_inverse=True)
    found, column = np.unique(clusters, return_inverse=True)
    counts = np.zeros((len(classes), len(found)), int)
    np.add.at(counts, (row, column), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(labels))


def neighbour_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """Test accuracy of a majority vote of the 5 nearest training examples.

    Args and Returns as in `probe_accuracy`; with fewer examples, fewer neighbours.
    """
    probe = KNeighborsClassifier(min(NUM_NEIGHBOURS, len(train_features)))
    return fitted_accuracy(
        probe, train_features, train_labels, test_features, test_labels
    )


def mlp_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """Test accuracy of an MLP with one hidden layer of 64 rectified units.

    Features are standardised; 50 epochs of Adam from a fixed seed.

    Args and Returns as in `probe_accuracy`.
    """
    network = MLPClassifier(
        (_UNITS,),
        alpha=_PENALTY,
        learning_rate_init=_STEP,
        max_iter=_EPOCHS,
        random_state=0,
    )
    return fitted_accuracy(
        make_pipeline(StandardScaler(), network),
        train_features,
        train_labels,
        test_features,
        test_labels,
    )


# Kind of probe -> its accuracy.
PROBES = {
    "linear": probe_accuracy,
    "neighbours": neighbour_accuracy,
    "mlp": mlp_accuracy,
}
