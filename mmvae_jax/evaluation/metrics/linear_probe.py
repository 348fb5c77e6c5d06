"""Linear classification of the label from the latent representation."""

import warnings
from typing import Any

import jax
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from mmvae_jax.data.dataset import Split
from mmvae_jax.evaluation.generate import batches, observed_subset
from mmvae_jax.evaluation.metric import EvaluationData, require_labels
from mmvae_jax.types import MultimodalVAE, Params, PRNGKey


def linear_probe(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    num_train: int = 500,
) -> dict[str, float]:
    """Test accuracy of a linear classifier on posterior means.

    Daunhawer et al. (2022), App. C.2 and Fig. 6, with the settings of Sutter et al.
    (2021): logistic regression on 500 training embeddings given all modalities, here
    drawn without replacement.

    Args:
      model: for one sweep member.
      params: parameters.
      data: both splits.
      key: random key of the training examples and, if the posterior is a mixture, of
        the component whose mean embeds an example.
      num_train: training embeddings; all, if the split has fewer.

    Returns:
      linear_probe, fraction in [0, 1]; NaN if a parameter is not finite.
    """
    row_key, train_key, test_key = jax.random.split(key, 3)
    test_labels = require_labels(data.test, "linear_probe")
    train_labels = require_labels(data.train, "linear_probe")
    num = len(train_labels)
    size = min(num_train, num)
    rows = np.asarray(jax.random.choice(row_key, num, (size,), replace=False))
    train = data.train.take(rows)
    accuracy = probe_accuracy(
        embed(model, params, train, train_key, data.batch_size),
        train_labels[rows],
        embed(model, params, data.test, test_key, data.batch_size),
        test_labels,
    )
    return {"linear_probe": accuracy}


def embed(
    model: MultimodalVAE, params: Params, split: Split, key: PRNGKey, batch_size: int
) -> np.ndarray:
    """Posterior means given all observed modalities.

    Args:
      model: for one sweep member.
      params: parameters.
      split: N examples.
      key: random key of the components, if the posterior is a mixture.
      batch_size: B.

    Returns:
      float [N, D].
    """
    means = []
    for index, (batch, num_valid) in enumerate(batches(split, batch_size)):
        experts = model.encode(params, batch)
        own_key = jax.random.fold_in(key, index)
        subset = observed_subset(model, batch)
        posterior = model.posterior(params, experts, subset, own_key)
        means.append(np.asarray(posterior.mean)[:num_valid])
    return np.concatenate(means)


def probe_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    max_iter: int = 1000,
) -> float:
    """Test accuracy of logistic regression.

    Args:
      train_features: float [N, D].
      train_labels: int [N], at least two different ones.
      test_features: float [T, D].
      test_labels: int [T].
      max_iter: largest number of L-BFGS iterations; the fit needs not converge.

    Returns:
      A fraction in [0, 1]; NaN if a feature is not finite.
    """
    probe = LogisticRegression(C=1.0, solver="lbfgs", max_iter=max_iter, random_state=0)
    return fitted_accuracy(
        probe, train_features, train_labels, test_features, test_labels
    )


def fitted_accuracy(
    probe: Any,
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """`probe_accuracy` of another scikit-learn classifier."""
    if not (np.isfinite(train_features).all() and np.isfinite(test_features).all()):
        return float("nan")
    classes = np.unique(train_labels)
    if len(classes) == 1:  # nothing to fit
        return float(np.mean(test_labels == classes[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # scikit-learn warns of many classes with one example each.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        probe.fit(train_features, train_labels)
    return float(probe.score(test_features, test_labels))
