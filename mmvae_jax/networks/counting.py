"""The number of evaluations of networks in a call."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def evaluations(call: Callable[..., Any], *arguments: Any) -> int:
    """Number of evaluations of networks (whole Linen modules) in a call.

    The call is not compiled, so that every turn of a loop, and only the taken branch of
    a condition, counts. Networks are not computed: they return zeros in the shape of
    their outputs, on which the number of turns must not depend. A network mapped over K
    parameters or inputs by `vmap` counts K times, and the gradient of a network once.
    """
    num, depth = 0, 0

    def add(_: Any) -> None:
        nonlocal num
        num += 1

    def intercept(
        method: Callable[..., Any],
        given: tuple[Any, ...],
        options: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        nonlocal depth
        if depth:  # a part of a network
            return method(*given, **options)
        module, variables = context.module.unbind()
        # A callback is called for each network that `vmap` maps, and needs a value
        # that is mapped: parameters may be, or what they are applied to.
        leaves = jax.tree.leaves(given)[:1] + jax.tree.leaves(variables)[:1]
        jax.debug.callback(add, [jnp.ravel(leaf)[0] for leaf in leaves])
        apply = partial(module.apply, **options, method=context.method_name)
        depth += 1
        try:
            shapes = jax.eval_shape(apply, variables, *given)
        finally:
            depth -= 1
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    with jax.disable_jit(), nn.intercept_methods(intercept):
        call(*arguments)
    jax.effects_barrier()
    return num
