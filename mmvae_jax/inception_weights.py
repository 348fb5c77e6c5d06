"""The published weights of the Inception network: where they are, how to read them.

The file is a state dict that `torch.save` wrote in its format from before PyTorch
1.6: five pickles, then the bytes of the storages. No reader of that format other
than PyTorch is well kept, and PyTorch is much to install for one file. Hence
`read_state_dict`: the unpickler of the standard library, which here knows the few
names that a state dict needs, as descriptions of arrays, and refuses all others. It
cannot run foreign code, and besides only bytes of the known hash get that far.

Not supported: the zip format of PyTorch 1.6 and later (a file saved anew has another
hash anyway), and other dtypes than float32 and int64.
"""

import collections
import contextlib
import hashlib
import http.client
import io
import math
import os
import pickle
import pickletools
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmvae_jax.errors import UsageError

ADDRESS = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
# The name of the file carries the first eight digits, as PyTorch's hub has it.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

_TIMEOUT = 60  # seconds without an answer
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save before 1.6


class _Storage(NamedTuple):
    """A flat array in the file: its key, dtype and number of elements."""

    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage: offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(path: str, data_dir: str) -> dict[str, np.ndarray]:
    """The published weights, downloaded if they are not there yet.

    Args:
      path: of the file; "" = data_dir/weights/, where a download is kept.
      data_dir: where data sets are kept.

    Returns:
      Name -> array, the state dict of the port to PyTorch.

    Raises:
      UsageError: there is no such file and no network, or it is another file.
    """
    kept = Path(data_dir).expanduser() / "weights" / ADDRESS.rpartition("/")[2]
    source = Path(path).expanduser() if path else kept
    if not path and not kept.exists():
        return read_state_dict(_download(kept))
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the Inception weights {source} ({error.strerror}): set "
            f"config.eval.inception_weights to a copy of {ADDRESS}"
        ) from error
    _check(content, str(source), f"replace it by {ADDRESS}")
    return read_state_dict(content)


def read_state_dict(content: bytes) -> dict[str, np.ndarray]:
    """Reads what `torch.save` wrote of a state dict, without running any of it.

    Args:
      content: of the file (module docstring: of which formats).

    Returns:
      Name -> float32 or int64 array; copies, contiguous.

    Raises:
      UsageError: anything but such a file.
    """
    stream = io.BytesIO(content)
    try:
        magic, protocol, system, tensors, keys = (
            _unpickle(stream, len(content)) for _ in range(5)
        )
        if (magic, protocol) != (_MAGIC, _PROTOCOL) or not system["little_endian"]:
            raise ValueError("another format")
        storages = {t.storage.key: t.storage for t in tensors.values()}
        arrays, position = {}, stream.tell()
        for key in keys:
            dtype, size = np.dtype(storages[key].dtype), storages[key].size
            if np.frombuffer(content, "<i8", 1, position)[0] != size:
                raise ValueError("storages of other sizes")
            arrays[key] = np.frombuffer(content, dtype, size, position + 8)
            position += 8 + size * dtype.itemsize
        return {name: _view(arrays[t.storage.key], t) for name, t in tensors.items()}
    except Exception as error:  # Foreign bytes show as any kind of exception.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"not a state dict in PyTorch's format from before 1.6 ({reason})"
        ) from error


def _unpickle(stream: io.BytesIO, size: int):
    """The next pickle of a stream of `size` bytes."""
    start = stream.tell()
    for opcode, argument, _ in pickletools.genops(stream):
        # torch.save wrote protocol 2. A large index would make the memo as large.
        is_put = opcode.name in ("PUT", "LONG_BINPUT")
        if opcode.proto > 2 or (is_put and int(argument) > size):
            raise pickle.UnpicklingError(f"it has an unexpected {opcode.name}")
    stream.seek(start)
    return _Unpickler(stream).load()


class _Unpickler(pickle.Unpickler):
    """Knows the names in `_NAMES`; describes storages and does not load them."""

    def find_class(self, module, name):
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _NAMES[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _, size, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError("it has views of storages")
        return _Storage(key, dtype, size)


def _describe(storage, offset, shape, strides, *_):
    """Stands in for the function that builds a tensor."""
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor, *_):
    """Stands in for the function that makes a tensor a parameter."""
    return tensor


_NAMES = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _describe,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


def _view(storage: np.ndarray, tensor: _Tensor) -> np.ndarray:
    """The array that a description means; checked not to leave its storage."""
    _, offset, shape, strides = tensor
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    size = math.prod(shape)
    if min(offset, *shape, *strides, 0) < 0 or size > len(storage):
        raise ValueError("a tensor that is larger than its storage")
    if size and last >= len(storage):
        raise ValueError("a tensor that leaves its storage")
    strides = [s * storage.itemsize for s in strides]
    start = storage[min(offset, len(storage)) :]
    return np.lib.stride_tricks.as_strided(start, shape, strides).copy()


def _check(content: bytes, source: str, remedy: str) -> None:
    """Raises UsageError where these are not the published bytes."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise UsageError(
            f"{source} is not the published Inception weights (its sha256 begins with "
            f"{digest[:8]}, not {SHA256[:8]}): {remedy}"
        )


def _download(path: Path) -> bytes:
    """Fetches the weights and keeps them at `path`, complete or not at all."""
    remedy = (
        f"put a copy of {ADDRESS} at {path}, or leave fid out of config.eval.metrics"
    )
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with urllib.request.urlopen(ADDRESS, timeout=_TIMEOUT) as response:
            content = response.read()
        _check(content, "what came from the network", remedy)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UsageError(
            f"cannot fetch and keep the Inception weights ({error}): {remedy}"
        ) from error
    return content
