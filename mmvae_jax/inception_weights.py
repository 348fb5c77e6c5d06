"""The published weights of the Inception network: where they are, how to read them.

The file is a state dict that `torch.save` wrote in its format from before PyTorch
1.6: five pickles, then the bytes of the storages. No reader of that format other
than PyTorch is well kept, and PyTorch is much to install for one file. Hence
`read_state_dict`, which unpickles nothing: it walks through the opcodes, knows the few
that a state dict needs and builds dicts, lists, tuples, numbers and descriptions of
arrays from them. The unpickler of the standard library would not do: even one that
refuses all names can be made to hash tuples of tuples for hours. Besides, only bytes of
the known hash get that far.

Not supported: the zip format of PyTorch 1.6 and later (a file saved anew has another
hash anyway), and other dtypes than float32 and int64.
"""

import contextlib
import hashlib
import http.client
import io
import math
import os
import pickletools
import stat
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmvae_jax.errors import UsageError

ADDRESS = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
# The name of the file carries the first eight digits, as PyTorch's hub has it.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# Limits of what is read: the published file has 95 MB, and 16,000 opcodes in a pickle.
MAX_FILE_BYTES = 256 << 20
MAX_OPCODES = 1 << 18
MAX_TIMES = 4  # the arrays together, in multiples of the file

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
        content = _read(source)
    except OSError as error:
        raise UsageError(
            f"cannot read the Inception weights {source} ({error.strerror or error}): "
            f"set config.eval.inception_weights to a copy of {ADDRESS}"
        ) from error
    _check(content, str(source), f"replace it by {ADDRESS}")
    return read_state_dict(content)


def _read(path: Path) -> bytes:
    """The bytes of a regular file of at most MAX_FILE_BYTES."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no file")
    if found.st_size > MAX_FILE_BYTES:
        raise OSError(f"more than {MAX_FILE_BYTES} bytes")
    return path.read_bytes()


def read_state_dict(content: bytes) -> dict[str, np.ndarray]:
    """Reads what `torch.save` wrote of a state dict, without running any of it.

    Args:
      content: of the file (module docstring: of which formats).

    Returns:
      Name -> float32 or int64 array; copies, contiguous.

    Raises:
      UsageError: anything but such a file, more than MAX_OPCODES in a pickle, or
        arrays of more than MAX_TIMES the bytes of the file.
    """
    stream = io.BytesIO(content)
    try:
        magic, protocol, system, tensors, keys = (_parse(stream) for _ in range(5))
        if (magic, protocol) != (_MAGIC, _PROTOCOL) or not system["little_endian"]:
            raise ValueError("another format")
        _check_tensors(tensors, MAX_TIMES * len(content))
        if type(keys) is not list or any(type(key) is not str for key in keys):
            raise ValueError("it has no list of storages")
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
            f"not a state dict in PyTorch's format from before 1.6 ({reason[:200]})"
        ) from error


def _parse(stream: io.BytesIO) -> Any:
    """The next pickle of a stream, of plain values, _Storage and _Tensor."""
    stack: list[list] = [[]]  # one list more for every MARK
    memo: dict[int, Any] = {}
    opcodes = pickletools.genops(stream)
    for number, (opcode, argument, _) in enumerate(opcodes):
        top, name = stack[-1], opcode.name
        if number >= MAX_OPCODES:
            raise ValueError(f"more than {MAX_OPCODES} opcodes")
        if name in _VALUES:
            top.append(argument if _VALUES[name] is _ARGUMENT else _VALUES[name]())
        elif name == "MARK":
            stack.append([])
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            _end(name, stack[-2], stack.pop())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            num = int(name[-1])
            top[-num:] = [tuple(top[i] for i in range(-num, 0))]
        elif name == "APPEND":
            _end("APPENDS", top, [top.pop()])
        elif name == "SETITEM":
            _end("SETITEMS", top, [top.pop(-2), top.pop()])
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = top[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            top.append(memo[argument])
        elif name == "GLOBAL":
            if argument not in _NAMES:
                raise ValueError(f"it names {argument.replace(' ', '.')}")
            top.append(_NAMES[argument])
        elif name == "BINPERSID":
            top.append(_storage(*top.pop()))
        elif name == "REDUCE":
            arguments, function = top.pop(), top.pop()
            # Of one long tuple a file could make as many copies as it likes.
            if len(arguments) > _MAX_ITEMS:
                raise ValueError("it calls with too many arguments")
            top.append(function(*arguments))
        elif name == "BUILD":
            top.pop()  # the metadata of a state dict, which no array needs
        elif name == "STOP":
            (value,) = top
            return value
        elif name != "PROTO" or argument != 2:
            raise ValueError(f"it has an unexpected {name}")
    raise ValueError("it has no end")


def _end(name: str, stack: list, items: list) -> None:
    """What is done with the items since a MARK, or with those of one opcode."""
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "APPENDS" and type(stack[-1]) is list:
        stack[-1].extend(items)
    elif type(stack[-1]) is dict and all(type(key) is str for key in items[::2]):
        stack[-1].update(zip(items[::2], items[1::2], strict=True))
    else:
        raise ValueError("it adds to what is no list and no dict of names")


def _storage(kind: Any, dtype: Any, key: Any, _: Any, size: Any, view: Any) -> _Storage:
    """A storage, from what identifies it in the file."""
    if kind != "storage" or view is not None:
        raise ValueError("it has views of storages")
    if not callable(dtype) or type(key) is not str or type(size) is not int:
        raise ValueError("it has storages of another kind")
    return _Storage(key, dtype(), size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stands in for the function that builds a tensor."""
    if max(len(shape), len(strides)) > _MAX_ITEMS:
        raise ValueError("it has tensors of too many axes")
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, _Storage) or any(type(n) is not int for n in numbers):
        raise ValueError("it has tensors of another kind")
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    """Stands in for the function that makes a tensor a parameter."""
    return tensor


def _check_tensors(tensors: Any, max_bytes: int) -> None:
    """Raises ValueError where this is no state dict, or one of too large arrays."""
    if type(tensors) is not dict or any(
        not isinstance(tensor, _Tensor) for tensor in tensors.values()
    ):
        raise ValueError("it is no dict of tensors")
    sizes = [
        math.prod(t.shape) * np.dtype(t.storage.dtype).itemsize
        for t in tensors.values()
    ]
    if sum(sizes) > max_bytes:
        raise ValueError(f"its arrays are larger than {MAX_TIMES} times the file")


_MAX_ITEMS = 16  # of a tuple that is looked into
_ARGUMENT = object()
# Opcodes that add one value: their argument, or what the function makes.
_VALUES = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _ARGUMENT),
    "BINUNICODE": _ARGUMENT,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_NAMES = {
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "torch FloatStorage": lambda: "<f4",
    "torch LongStorage": lambda: "<i8",
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
            content = response.read(MAX_FILE_BYTES)
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
