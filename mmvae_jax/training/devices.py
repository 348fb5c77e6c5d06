"""Placement of the members of a sweep and of the examples of a batch on devices.

A layout is a pair: the number of devices over which members are distributed, and the
number over which the examples of each batch are. Members are independent, so that the
first axis needs no communication; along the second, gradients are summed at every step.
Both are axes of a JAX mesh, but they are applied differently (`shard_members`,
`take_batch`):

"sweep"  by shard_map, so that members on a device are mapped as without a mesh.
"data"   by sharding constraints on the batch, which XLA's partitioner propagates. A
         loss remains a function of the whole batch and one key: draws and means over
         the batch do not depend on the layout.

On one device, layout (1, 1), neither is applied.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmvae_jax.errors import ArgumentError, UsageError
from mmvae_jax.types import Array, Batch

Layout = tuple[int, int]

SWEEP, DATA = "sweep", "data"
ONE_DEVICE: Layout = (1, 1)
# What JAX raises without a device: with JAX_PLATFORMS=cuda and no GPU an
# AssertionError; under python -O it uses None as a device.
MISSING = (AssertionError, AttributeError, RuntimeError)


def require_devices() -> None:
    """Looks for devices, at the first use of JAX that needs one.

    Raises:
      UsageError: there are none of those that JAX_PLATFORMS asks for, or none at all.
    """
    try:
        jax.devices()
    except MISSING as error:
        said = "" if isinstance(error, AttributeError) else str(error)
        reason = " ".join(said.partition(" (set JAX")[0].split()).rstrip(".")
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        if not asked:
            raise UsageError(f"JAX finds no device: {reason}") from error
        raise UsageError(
            f"JAX_PLATFORMS={asked} asks for devices that JAX does not find "
            f"({reason or 'there is no such GPU'}); unset it, and JAX takes what is "
            "here, or set JAX_PLATFORMS=cpu"
        ) from error


def choose_layout(
    mesh: Layout,
    num_members: int,
    batch_size: int,
    num_devices: int,
    num_processes: int = 1,
) -> Layout:
    """The layout that uses the most devices, and among these the most for members.

    Args:
      mesh: devices for the members and for a batch; 0 = automatic.
      num_members: K.
      batch_size: B.
      num_devices: number of devices of all processes.
      num_processes: number of processes; with several, all devices must be used.

    Returns:
      (devices along "sweep", a divisor of K; devices along "data", a divisor of B).

    Raises:
      ArgumentError: no layout is possible.
    """
    if len(mesh) != 2 or min(mesh) < 0:
        raise ArgumentError(
            "{mesh} must be two numbers >= 0, devices for the members and devices for "
            "a batch (0: automatic), got {}",
            mesh,
        )
    over_members, over_batch = (max(number, 1) for number in mesh)
    if over_members * over_batch > num_devices:
        raise ArgumentError(
            "{mesh}={} asks for {} devices, there are {}",
            mesh,
            over_members * over_batch,
            num_devices,
        )
    if num_members % over_members:
        raise ArgumentError(
            "{mesh}={}: {} members cannot be divided evenly over {} devices",
            mesh,
            num_members,
            over_members,
        )
    if batch_size % over_batch:
        raise ArgumentError(
            "{mesh}={}: {batch_size}={} cannot be divided evenly over {} devices",
            mesh,
            batch_size,
            over_batch,
        )
    fitting = [
        (members, batch)
        for members in range(1, num_devices + 1)
        for batch in range(1, num_devices // members + 1)
        if num_members % members == 0
        and batch_size % batch == 0
        and mesh[0] in (0, members)
        and mesh[1] in (0, batch)
    ]
    layout = max(fitting, key=lambda pair: (pair[0] * pair[1], pair[0]))
    if num_processes > 1 and layout[0] * layout[1] < num_devices:
        raise ArgumentError(
            "{mesh}={}: {} members and batches of {} fit {} x {} devices, but {} "
            "processes must use all of their {}: change the sweep, the batch size or "
            "the number of devices",
            *(mesh, num_members, batch_size, *layout, num_processes, num_devices),
        )
    return layout


@functools.cache
def _make_mesh(layout: Layout) -> Mesh:
    """The mesh of a layout, from the first devices; "data" stays within a host."""
    devices = jax.devices()[: layout[0] * layout[1]]
    # Auto: the partitioner places arrays; programs are written as for one device.
    return jax.make_mesh(
        layout, (SWEEP, DATA), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def _sharding(layout: Layout, *spec: str | None) -> NamedSharding:
    """The sharding of an array whose leading axes are those of the mesh."""
    return NamedSharding(_make_mesh(layout), PartitionSpec(*spec))


def shard_members(fn: Callable, layout: Layout, num_shared: int) -> Callable:
    """Distributes a function of all members over devices.

    Args:
      fn: result of `sweep.map_members`. Its outputs, and its arguments except the last
        `num_shared`, have a leading axis of K.
      layout: the numbers of devices.
      num_shared: number of trailing arguments that all members share.

    Returns:
      A function like `fn`; if members are not distributed, it uses only the axis "data"
      of the mesh.
    """
    if layout == ONE_DEVICE:
        return fn

    def on_mesh(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(_make_mesh(layout).abstract_mesh):
            return fn(*args)

    if layout[0] == 1:
        return on_mesh

    def sharded(*args: Any) -> Any:
        own = (PartitionSpec(SWEEP),) * (len(args) - num_shared)
        return jax.shard_map(
            fn,
            mesh=_make_mesh(layout),
            in_specs=own + (PartitionSpec(),) * num_shared,
            out_specs=PartitionSpec(SWEEP),
            axis_names={SWEEP},  # the partitioner handles "data"
            check_vma=False,
        )(*args)

    return sharded


def jit_options(layout: Layout) -> dict[str, Any]:
    """Options of `jax.jit` for a program whose outputs have an axis of K."""
    return {} if layout == ONE_DEVICE else {"out_shardings": _sharding(layout, SWEEP)}


def take_batch(data: Batch, rows: Array, layout: Layout) -> Batch:
    """Gathers the examples of a batch; each device gathers its own part.

    Args:
      data: modality -> [num_examples, ...].
      rows: int32 [B].
      layout: the numbers of devices.

    Returns:
      modality -> [B, ...].
    """
    if layout[1] == 1:
        return jax.tree.map(lambda leaf: leaf[rows], data)
    split = functools.partial(
        jax.lax.with_sharding_constraint, shardings=PartitionSpec(DATA)
    )
    rows = split(rows)
    return jax.tree.map(lambda leaf: split(leaf[rows]), data)


def put_members(tree: Any, layout: Layout) -> Any:
    """Places arrays with a leading axis of K on the devices of their members."""
    if layout == ONE_DEVICE:
        return tree
    return jax.tree.map(lambda leaf: _put(leaf, _sharding(layout, SWEEP)), tree)


def put_shared(tree: Any, layout: Layout) -> Any:
    """Replicates arrays that all members share on every device."""
    if layout == ONE_DEVICE:
        return jax.device_put(tree)
    return jax.tree.map(lambda leaf: _put(leaf, _sharding(layout)), tree)


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    """Places an array that every process has on the devices of a mesh."""
    if isinstance(leaf, Array) and leaf.sharding == sharding:
        return leaf
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    # Each device takes its part; a process cannot access the devices of others.
    return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)


def stack_members(make: Callable[[int], Any], num: int, layout: Layout) -> Any:
    """Makes members one by one and places them on their devices.

    Args:
      make: index of a member -> its tree of arrays.
      num: K.
      layout: the numbers of devices; each process makes the members of its own devices.

    Returns:
      The tree, leaves [K, ...].
    """
    if layout == ONE_DEVICE:
        members = [make(k) for k in range(num)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    sharding = _sharding(layout, SWEEP)
    spans = sharding.addressable_devices_indices_map((num,)).values()
    held = sorted({k for span in spans if span for k in range(num)[span[0]]})
    made = {k: jax.device_get(make(k)) for k in held}

    def stack(*leaves: np.ndarray) -> Array:
        of = dict(zip(held, leaves, strict=True))

        def part(index: Any) -> np.ndarray:
            return np.stack([of[k] for k in range(num)[index[0]]])

        shape = (num, *np.shape(leaves[0]))
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(stack, *made.values())


def member_device(k: int, num: int, layout: Layout) -> jax.Device | None:
    """A device that has member k of `num`, for its evaluation.

    None for a layout of one device, where JAX decides.
    """
    if layout == ONE_DEVICE:
        return None
    a_device = num // layout[0]  # members per device
    row, place = divmod(k, a_device)
    return _make_mesh(layout).devices[row, place % layout[1]]


def member_on(tree: Any, k: int, device: jax.Device | None) -> Any:
    """Member k of a tree with leaves [K, ...], on a device that has it.

    Args:
      tree: result of `stack_members`, or of a program with that input.
      k: index of the member.
      device: result of `member_device`, a device of this process.

    Returns:
      The tree, leaves [...].
    """
    if device is None:
        return jax.tree.map(lambda leaf: leaf[k], tree)

    def take(leaf: Array) -> Array:
        (shard,) = (s for s in leaf.addressable_shards if s.device == device)
        return shard.data[k - (shard.index[0].start or 0)]

    return jax.tree.map(take, tree)


@functools.cache
def _copier(layout: Layout) -> Callable:
    """A program that replicates a tree on all devices."""
    copy = functools.partial(jax.tree.map, jnp.copy)
    return jax.jit(copy, out_shardings=_sharding(layout))


def gather(tree: Any, layout: Layout) -> Any:
    """A copy of small arrays [K] that every process can read, for instance for logs."""
    if layout == ONE_DEVICE:
        return jax.tree.map(jnp.copy, tree)
    return _copier(layout)(tree)


def first(x: Array) -> Any:
    """The value of an array [K] with equal elements, as a NumPy scalar."""
    return np.asarray(x.addressable_shards[0].data)[0]


def agree(is_stopping: bool, longest: int, layout: Layout) -> tuple[bool, int]:
    """Agrees between processes on the next call; otherwise they would wait forever.

    Args:
      is_stopping: whether this process wants to stop.
      longest: number of steps that this process wants in a call.
      layout: the numbers of devices.

    Returns:
      (whether any process wants to stop, the smallest number of steps).
    """
    if layout == ONE_DEVICE or jax.process_count() == 1:
        return is_stopping, longest
    wishes = multihost_utils.process_allgather(np.array([is_stopping, longest]))
    return bool(wishes[:, 0].any()), int(wishes[:, 1].min())


def describe(layout: Layout, num_devices: int) -> str:
    """A layout as text: "4 devices: 4 x 1", "4 of 8 devices: 2 x 2"."""
    used = layout[0] * layout[1]
    of = "" if used == num_devices else f" of {num_devices}"
    return f"{used}{of} devices: {layout[0]} x {layout[1]}"
