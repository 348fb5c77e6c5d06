"""Schedules of a training run: factors of beta and of the learning rate.

They are functions of the step in the compiled train step, so that a resumed run is
bit-identical to an uninterrupted one and nothing is compiled again.
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from mmvae_jax.errors import ArgumentError
from mmvae_jax.types import Array

LEARNING_RATES = ("constant", "cosine")


class Factors(NamedTuple):
    """Factors of the members' beta and learning rate; None: constant.

    Attributes:
      beta: number of steps taken, int [] -> float [].
      learning_rate: number of steps taken, int [] -> float [].
      words: descriptions of the factors that are not constant, for the log.
    """

    beta: Callable[[Array], Array] | None = None
    learning_rate: Callable[[Array], Array] | None = None
    words: tuple[str, ...] = ()


def make_factors(
    num_steps: int,
    *,
    beta_warmup_steps: int = 0,
    learning_rate_schedule: str = "constant",
    learning_rate_warmup_steps: int = 0,
    learning_rate_final: float = 0.0,
) -> Factors:
    """Builds the factors from the settings of a run.

    Args:
      num_steps: steps of the whole run.
      beta_warmup_steps: steps in which the factor of beta rises linearly from 0 to 1.
      learning_rate_schedule: one of LEARNING_RATES, after the warm-up.
      learning_rate_warmup_steps: steps in which the factor of the learning rate rises
        linearly from 0 to 1.
      learning_rate_final: for cosine, the factor after `num_steps` steps, in [0, 1].

    Raises:
      ArgumentError: an argument is invalid or would have no effect.
    """
    warmup, final = learning_rate_warmup_steps, learning_rate_final
    if not 0 <= beta_warmup_steps < num_steps:
        raise ArgumentError(
            "{beta_warmup_steps} must be in [0, {num_steps}), which is {}, got {}",
            num_steps,
            beta_warmup_steps,
        )
    if not 0 <= warmup < num_steps:
        raise ArgumentError(
            "{learning_rate_warmup_steps} must be in [0, {num_steps}), which is {}, "
            "got {}",
            num_steps,
            warmup,
        )
    if learning_rate_schedule not in LEARNING_RATES:
        raise ArgumentError(
            "unknown {learning_rate_schedule} {!r}; choose one of {}",
            learning_rate_schedule,
            ", ".join(LEARNING_RATES),
        )
    if not 0 <= final <= 1:
        raise ArgumentError("{learning_rate_final} must be in [0, 1], got {}", final)
    is_cosine = learning_rate_schedule == "cosine"
    if final and not is_cosine:
        raise ArgumentError(
            "{learning_rate_final}={} is read by {learning_rate_schedule}='cosine' "
            "alone: set that, or leave it 0",
            final,
        )
    beta = rate = None
    words = []
    if beta_warmup_steps:
        beta = optax.linear_schedule(0.0, 1.0, beta_warmup_steps)
        words.append(f"beta rises from 0 over {beta_warmup_steps:,} steps")
    if warmup:
        rate = optax.linear_schedule(0.0, 1.0, warmup)
        words.append(f"the learning rate rises from 0 over {warmup:,} steps")
    if is_cosine:
        cosine = optax.cosine_decay_schedule(1.0, num_steps - warmup, final)
        rate = optax.join_schedules([rate, cosine], [warmup]) if rate else cosine
        words.append(
            f"the learning rate falls by a cosine to {final:g} of its peak at step "
            f"{num_steps:,}"
        )
    return Factors(beta, rate, tuple(words))
