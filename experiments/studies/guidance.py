"""Coherence and quality of one trained run for several strengths of guidance.

    python -m experiments.studies.guidance --workdir=runs/in_place/code_flow \\
        --out=results/guidance.csv

Guidance affects sampling but not training, so that one run of a model with guidance is
enough for all strengths. The command writes one line per strength: means and standard
deviations over the members of the run, on its test examples. It selects nothing and
does not change the run.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.running import command, evaluation, evaluator, terminal
from experiments.studies.tables import row, write
from mmvae_jax.errors import UsageError
from mmvae_jax.models import MODELS

_OPTION = "guidance"
GUIDED = tuple(name for name, model in MODELS.items() if _OPTION in model.options)
METRICS = ("coherence", "conditional_swd", "conditional_frechet", "swd", "frechet")
COLUMNS = (
    "coherence/size_1",
    "coherence/leave_one_out",
    "coherence/joint",
    "conditional_swd/size_1",
    "conditional_swd/leave_one_out",
    "conditional_frechet/leave_one_out",
    "swd",
    "frechet_classifier",
)


def values_at(workdir: Path, strength: float, num_examples: int) -> dict[str, Any]:
    """The line of one strength.

    Args:
      workdir: folder of a run of a model with the option `guidance`.
      strength: g.
      num_examples: number of test examples; 0: as in the run.

    Raises:
      UsageError: the run does not exist, its model has no guidance, or its data have
        changed.
      Stopped: a signal arrived.
    """
    config = guided_config(workdir, strength, num_examples)
    with evaluation.opened(workdir, config) as run:
        evaluate = evaluator.make_evaluator(run.sweep, run.metrics, run.stop, None)
        values = evaluate(run.step, run.state)
        finite = run.state.finite.tolist()
    members = [
        {"finite": is_finite, "metrics": own}
        for is_finite, own in zip(finite, values, strict=True)
    ]
    return {_OPTION: strength, **row({"members": members}, COLUMNS)}


def guided_config(workdir: Path, strength: float, num_examples: int) -> ConfigDict:
    """The config of a run with another strength; arguments as in `values_at`."""
    config = evaluation.config_of(workdir)
    if _OPTION not in config.model.options:
        raise UsageError(
            f"{workdir} is of {config.model.name}, which has no guidance: give a run "
            f"of {' or '.join(GUIDED)}"
        )
    config.model.options[_OPTION] = strength
    config.eval.metrics = METRICS
    config.eval.num_examples = num_examples or config.eval.num_examples
    return config


def strengths_of(text: str) -> list[float]:
    """The numbers in a text, separated by commas.

    Raises:
      UsageError: a part is not a number.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--guidance: {error}; give numbers with commas") from error


def main() -> int:
    """Evaluates the run for each strength and writes the table."""
    given = flags.FLAGS
    if not given.workdir or not given.out:
        raise UsageError("give --workdir=FOLDER of a run, and --out=FILE.csv")
    strengths = strengths_of(given.guidance)
    rows = []
    for strength in strengths:
        terminal.say(f"guidance {strength:g}:")
        rows.append(values_at(Path(given.workdir), strength, given.num_examples))
        write(Path(given.out), rows)
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "", f"folder of a run of {' or '.join(GUIDED)}")
    flags.DEFINE_string("guidance", "1,1.5,2,3,4", "strengths, with commas")
    flags.DEFINE_integer("num_examples", 0, "of the test split; 0: as the run was")
    flags.DEFINE_string("out", "", "CSV file")
    command.run(main)
