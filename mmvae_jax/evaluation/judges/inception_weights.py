"""Finds and reads the published weights of the Inception network.

The file is a state dict in the format of `torch.save` before PyTorch 1.6: five pickles,
then the bytes of the storages. This reader avoids a dependency on PyTorch. It unpickles
only bytes with the known hash, and builds only the objects in `_NAMES`. Formats and
dtypes that are not in this file are not supported.
"""

import collections
import hashlib
import http.client
import io
import pickle
import stat
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.evaluation.metric import is_writable, keep

ADDRESS = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
# The file name contains the first eight digits, as in PyTorch's hub.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

_MAX_FILE_BYTES = 256 << 20  # The published file has 95 MB.
_TIMEOUT = 60  # Seconds without an answer.


def load(path: str, data_dir: str) -> dict[str, np.ndarray]:
    """Loads the published weights; downloads them if necessary.

    Args:
      path: path of the file; "" = data_dir/weights/, where a download is stored if the
        folder can be written.
      data_dir: folder of data sets.

    Returns:
      Name -> float32 or int64 array, the state dict of the port to PyTorch.

    Raises:
      UsageError: there is neither the file nor a network, or the file has another hash.
    """
    kept = Path(data_dir).expanduser() / "weights" / ADDRESS.rpartition("/")[2]
    source = Path(path).expanduser() if path else kept
    if not path and not kept.exists():
        return _state_dict(_download(kept))
    try:
        content = _read(source)
    except OSError as error:
        raise ArgumentError(
            "cannot read the Inception weights {} ({}): set {inception_weights} to a "
            "copy of {}",
            *(str(source), error.strerror or str(error), ADDRESS),
        ) from error
    if wrong := _difference(content):
        raise UsageError(f"{source} {wrong}: replace it by {ADDRESS}")
    return _state_dict(content)


def _read(path: Path) -> bytes:
    """The bytes of a regular file of at most _MAX_FILE_BYTES."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no file")
    if found.st_size > _MAX_FILE_BYTES:
        raise OSError(f"more than {_MAX_FILE_BYTES} bytes")
    return path.read_bytes()


def _difference(content: bytes) -> str:
    """Part of the error message for other bytes; "" for the published ones."""
    digest = hashlib.sha256(content).hexdigest()
    if digest == SHA256:
        return ""
    return (
        f"is not the published Inception weights (its sha256 begins with {digest[:8]}, "
        f"not {SHA256[:8]})"
    )


def _download(path: Path) -> bytes:
    """Downloads the weights and stores them at `path`, if it can be written."""
    remedy = "put a copy of {} at {}, or leave fid and conditional_fid out of {metrics}"
    try:
        with urllib.request.urlopen(ADDRESS, timeout=_TIMEOUT) as response:
            content = response.read(_MAX_FILE_BYTES)
        if wrong := _difference(content):
            words = f"what came from the network {wrong}: {remedy}"
            raise ArgumentError(words, ADDRESS, str(path))
        if is_writable(path.parent):  # else `needs.check` has warned
            keep(path, content)
    except (OSError, http.client.HTTPException) as error:
        words = f"cannot fetch the Inception weights ({{}}): {remedy}"
        raise ArgumentError(words, str(error), ADDRESS, str(path)) from error
    return content


def _state_dict(content: bytes) -> dict[str, np.ndarray]:
    """Name -> array, from bytes whose hash has been checked."""
    stream = io.BytesIO(content)
    storages: dict[str, np.ndarray] = {}
    try:
        *_, tensors, keys = (_Unpickler(stream, storages).load() for _ in range(5))
    except pickle.UnpicklingError as error:
        raise UsageError(f"cannot read the Inception weights ({error})") from error
    position = stream.tell()
    # The tensors are views of the storages, whose bytes come after the pickles.
    for key in keys:
        storage = storages[key]
        position += 8  # skip the repeated number of elements
        storage[:] = np.frombuffer(content, storage.dtype, storage.size, position)
        position += storage.nbytes
    return {name: tensor.copy() for name, tensor in tensors.items()}


def _tensor(
    storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any
) -> np.ndarray:
    """A view of a storage; offset and strides are in elements, as in PyTorch."""
    size = storage.itemsize
    byte_strides = [size * stride for stride in strides]
    return np.ndarray(shape, storage.dtype, storage, size * offset, byte_strides)


# Names in the pickle of a state dict -> their replacements.
_NAMES = {
    "collections.OrderedDict": collections.OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.LongStorage": np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    """Unpickles only the names in `_NAMES`; storages are left empty."""

    def __init__(self, stream: io.BytesIO, storages: dict[str, np.ndarray]):
        super().__init__(stream)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a name in the pickle."""
        if f"{module}.{name}" not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _NAMES[f"{module}.{name}"]

    def persistent_load(self, identity: tuple) -> np.ndarray:
        """The storage for (type, dtype, key, device, number of elements, view)."""
        _, dtype, key, _, size, _ = identity
        return self._storages.setdefault(key, np.empty(size, dtype))
