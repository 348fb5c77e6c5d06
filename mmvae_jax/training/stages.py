"""`fit`: the train loop, called once per stage of a model's training.

A model without stages has one stage. The begin of a stage and its steps are functions
of the state, so that a resumed run needs only a state, in any stage.
"""

from typing import Any

import jax

from mmvae_jax.training import devices, examples, loop
from mmvae_jax.training.execution import compile_begin
from mmvae_jax.training.mapping import Prepared
from mmvae_jax.training.step import StageTask, Task, TrainState, tags
from mmvae_jax.types import MultimodalVAE, PRNGKey


def fit(
    task: Task,
    prepared: Prepared,
    state: TrainState,
    hyper: Any,
    keys: PRNGKey,
    *,
    num_steps: int,
    batch_size: int,
    data_seed: int,
    events: loop.Events,
) -> TrainState:
    """Trains all members up to step `num_steps`, through the remaining stages.

    Args:
      task: the training of one member.
      prepared: result of `mapping.prepare` for this task.
      state: fields [K], at any step; donated.
      hyper: fields [K].
      keys: PRNG keys [K].
      num_steps: the step at which to stop, in any stage.
      batch_size: as in `loop.fit`.
      data_seed: as in `loop.fit`.
      events: as in `loop.fit`; the last step of a stage is logged, without tags of
        other stages.

    Returns:
      The state after `num_steps` steps, or earlier if `events.is_stopping` returned
      True.
    """
    execution = prepared.execution
    data = examples.put(prepared.data, execution.window, execution.layout)
    whole = StageTask("", 0, num_steps, None, task)
    stages = task.stages or (whole,)
    for stage, program in zip(stages, prepared.programs, strict=True):
        step, end = int(devices.first(state.step)), min(stage.end, num_steps)
        if step >= end:
            continue
        own = events
        if task.stages:
            own = _of_stage(events, stage, (state, hyper, keys, data), batch_size)
            if step == stage.start:
                begin = compile_begin(stage, execution, batch_size, data)
                state = begin(devices.put_members(state, execution.layout))
        state = loop.fit(
            program,
            state,
            hyper,
            keys,
            data,
            num_steps=end,
            batch_size=batch_size,
            data_seed=data_seed,
            execution=execution,
            events=own,
        )
        if int(devices.first(state.step)) < stage.end:
            break
    return state


def _of_stage(
    events: loop.Events, stage: StageTask, arguments: tuple, batch_size: int
) -> loop.Events:
    """The events, with a `log` that gets only the metrics of one stage."""
    state, hyper, keys, data = arguments

    def shapes(tree: Any, *leading: int) -> Any:
        """Shapes and types of one member or of a batch."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype), tree
        )

    named = tags(
        stage.task,
        shapes(state.params),
        shapes(hyper),
        shapes(keys),
        shapes(data, batch_size),
    )

    def log(step: int, metrics: Any, finite: Any) -> None:
        events.log(step, {tag: metrics[tag] for tag in named}, finite)

    return events._replace(log=log)


def words(task: Task) -> str:
    """The stages as text, "code 101 to 200; ..."; "" without stages."""
    return "; ".join(f"{s.name} {s.start + 1:,} to {s.end:,}" for s in task.stages)


def untrained(task: Task, eval_every_steps: int) -> str:
    """A line on evaluations before the last stage; "" if there are none."""
    if not (task.stages and 0 < eval_every_steps <= task.stages[-1].start):
        return ""
    last = task.stages[-1]
    return (
        f"evaluations up to step {last.start:,} are of a model of which the stage "
        f"{last.name!r} has trained nothing yet"
    )


def is_lengthened(model: MultimodalVAE, before: int, now: int) -> bool:
    """Whether a larger number of steps of the run would change earlier steps.

    Args:
      model: the model, with or without stages.
      before: number of steps with which the run was started.
      now: requested number of steps.
    """
    return before != now and any(
        stage.learning_rate is not None or stage.end(before) != stage.end(now)
        for stage in model.stages
        if stage.learning_rate is not None or stage is not model.stages[-1]
    )
