"""The member axis of a sweep: the grid, and the mapping of members.

A sweep is K runs of one model with different `Hyper` and seeds. Their states are
stacked on a leading axis of K and trained in one program.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmvae_jax.types import Array, Hyper, PRNGKey

MAPPINGS = ("vmap", "map", "unroll")


class Member(NamedTuple):
    """One run of a sweep.

    Attributes:
      beta: weight of the KL terms, >= 0.
      learning_rate: step size of Adam, > 0.
      seed: seed of the initialisation and of all sampling in training.
    """

    beta: float
    learning_rate: float
    seed: int


def grid(sweep: Any) -> list[Member]:
    """The members of a sweep: beta x learning_rate x seed, seeds innermost.

    Args:
      sweep: with tuples `beta`, `learning_rate` and `seed`.
    """
    return [
        Member(float(beta), float(rate), int(seed))
        for beta, rate, seed in itertools.product(
            sweep.beta, sweep.learning_rate, sweep.seed
        )
    ]


def stack_hyper(members: list[Member]) -> Hyper:
    """The swept hyper-parameters of all members, fields float32 [K]."""
    return Hyper(
        beta=jnp.array([m.beta for m in members], jnp.float32),
        learning_rate=jnp.array([m.learning_rate for m in members], jnp.float32),
    )


def stack_keys(members: list[Member]) -> PRNGKey:
    """One PRNG key per member, from its seed; [K]."""
    return jax.vmap(jax.random.key)(jnp.array([m.seed for m in members], jnp.uint32))


def member(tree: Any, index: int | Array) -> Any:
    """Member `index` of a tree whose leaves have a leading axis of K."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def map_members(
    fn: Callable, mapping: str, num_shared: int, at_once: int = 0
) -> Callable:
    """Maps a function of one member over the leading axis of K.

    The last `num_shared` arguments are shared by all members (data, batches). If
    members or chunks are executed one after the other, a first output with the shape of
    the first argument overwrites it in memory.

    Args:
      fn: function of one member.
      mapping: "vmap" (members in parallel, rounded differently than alone: for GPUs),
        "map" (members one after another in the program: for CPUs, saves memory and
        keeps caches warm) or "unroll" (a copy of the program per member: for CPUs, if
        XLA's convolutions are slow with the other two).
      num_shared: number of trailing arguments without a member axis.
      at_once: with "vmap", members per chunk, a divisor of K; 0 = all.

    Returns:
      The mapped function; its outputs have a leading axis of K.

    Raises:
      ValueError: the mapping is unknown.
    """
    if mapping not in MAPPINGS:
        raise ValueError(f"mapping must be one of {MAPPINGS}, got {mapping!r}")

    def mapped(*args: Any) -> Any:
        split = len(args) - num_shared
        own, shared = args[:split], args[split:]
        num_members = jax.tree.leaves(own)[0].shape[0]
        if mapping == "vmap":
            axes = (0,) * len(own) + (None,) * len(shared)
            parallel = jax.vmap(fn, in_axes=axes)
            if at_once in (0, num_members):
                return parallel(*own, *shared)
            shape = (num_members // at_once, at_once)
            chunks = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), own)
            outputs = _one_by_one(parallel, chunks, shared)
            return jax.tree.map(lambda x: x.reshape(num_members, *x.shape[2:]), outputs)
        if mapping == "map":
            return _one_by_one(fn, own, shared)
        outputs = [fn(*member(own, k), *shared) for k in range(num_members)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    return mapped


def _one_by_one(fn: Callable, own: tuple, shared: tuple) -> Any:
    """`jax.lax.map` with less memory: new states overwrite the old ones.

    The bits are the same, but `jax.lax.map`, with or without its batch_size, stores the
    states of all members twice (docs/performance.md, "How members are mapped").
    """
    first = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), own
    )
    outputs = jax.eval_shape(fn, *first, *shared)
    num_members = jax.tree.leaves(own)[0].shape[0]
    results = jax.tree.map(
        lambda leaf: jnp.zeros((num_members, *leaf.shape), leaf.dtype), outputs
    )
    is_replaced = isinstance(outputs, tuple) and outputs[0] == first[0]
    if is_replaced:
        results = (own[0], *results[1:])

    def body(k: Array, results: Any) -> Any:
        arguments = (results[0], *own[1:]) if is_replaced else own
        one = member(arguments, k)
        return jax.tree.map(
            lambda all_members, new: all_members.at[k].set(new),
            results,
            fn(*one, *shared),
        )

    return jax.lax.fori_loop(0, num_members, body, results)
