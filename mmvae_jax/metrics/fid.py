"""Frechet inception distance of generated to real images.

Heusel et al. (2017), "GANs trained by a two time-scale update rule converge to a
local Nash equilibrium": the Frechet distance between Gaussians fitted to features
of the Inception network. Reference implementations read images from 8-bit files;
hence the rounding here.

The value depends on the number of images (its bias is positive and falls with it):
compare only what was computed with as many. With fewer than 2048 the covariances
are singular, which the distance bears, and the bias is large.
"""

import hashlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from mmvae_jax.data import Split
from mmvae_jax.metrics.frechet import (
    Moments,
    frechet_distance,
    mean_and_covariance,
    update_moments,
)
from mmvae_jax.metrics.inputs import batches, prior_examples, to_eight_bits
from mmvae_jax.metrics.metric import EvaluationData, inception_images_of
from mmvae_jax.types import Array, MultimodalVAE, Params, PRNGKey

# The widest layer of the network takes 5.5 MB an image.
MAX_BATCH = 50


def fid(
    model: MultimodalVAE,
    params: Params,
    data: EvaluationData,
    key: PRNGKey,
    *,
    extractor: Callable[[Array], Array],
    cache_dir: str | Path | None = None,
    num_samples: int | None = None,
) -> dict[str, float]:
    """FID of prior samples to real test images.

    Generated images are likelihood means, clipped and rounded to 8 bits as real
    ones are. Grey images count as three equal channels.

    Args:
      model: for one sweep member.
      params: its parameters.
      data: test split.
      key: of the prior samples.
      extractor: images, float [B, H, W, 1 or 3] in [0, 1] -> features [B, F];
        inception.make_extractor for what is called FID.
      cache_dir: folder of this extractor's moments of real images, one file for
        each distinct set of images (34 MB for F = 2048); None: nothing is kept.
      num_samples: generated examples; None: as many as test examples.

    Returns:
      fid/m0, ..., and fid, their mean: squared distances >= 0, lower is better;
      nan where a parameter is not finite.

    Raises:
      UsageError: no modality is of images, or of other images than these.
    """
    real_images = {
        name: data.test.modalities[name][data.test.is_observed(name)]
        for name in inception_images_of(data.test, "fid")
    }
    num_samples = data.test.num_examples if num_samples is None else num_samples
    data = data._replace(batch_size=min(data.batch_size, MAX_BATCH))
    generated = defaultdict(Moments)
    for batch, num_valid in prior_examples(model, params, data, key, num_samples):
        found = {m: extractor(to_eight_bits(batch[m])) for m in real_images}
        for name, features in jax.device_get(found).items():
            generated[name] = update_moments(generated[name], features[:num_valid])
    tags = {}
    for name, images in real_images.items():
        real = real_moments(extractor, images, data.batch_size, cache_dir)
        tags[f"fid/{name}"] = frechet_distance(
            *mean_and_covariance(real), *mean_and_covariance(generated[name])
        )
    return {"fid": float(np.mean(list(tags.values()))), **tags}


def real_moments(
    extractor: Callable[[Array], Array],
    images: np.ndarray,
    batch_size: int,
    cache_dir: str | Path | None,
) -> Moments:
    """Moments of the features of real images, from the cache if they are there.

    Args:
      extractor: as of `fid`.
      images: uint8 [N, H, W, C].
      batch_size: B, of every call to the extractor.
      cache_dir: as of `fid`.

    Returns:
      Moments of all N.
    """
    path = None
    if cache_dir is not None:
        digest = hashlib.sha256(f"{images.shape} ".encode() + images.tobytes())
        path = Path(cache_dir).expanduser() / f"{digest.hexdigest()[:32]}.npz"
        kept = _load(path)
        if kept is not None:
            return kept
    moments = Moments()
    for batch, num_valid in batches(Split({"": images}), batch_size):
        features = jax.device_get(extractor(to_eight_bits(batch[""])))
        moments = update_moments(moments, features[:num_valid])
    if path is not None:
        _save(path, moments)
    return moments


def _save(path: Path, moments: Moments) -> None:
    """Writes a file at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Members on several devices are evaluated by threads.
    partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    with open(partial, "wb") as file:
        np.savez(file, **moments._asdict())
    partial.replace(path)


def _load(path: Path) -> Moments | None:
    """What a file holds; None if there is none or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Moments(int(arrays["count"]), arrays["mean"], arrays["scatter"])
    except Exception:  # NumPy and zipfile raise many kinds.
        return None  # computed again, and overwritten
