"""Writes a member of a run as a folder for others, and uploads it if asked to.

    python -m experiments.export --workdir=runs/tp --member=beta=1 --out=DIR
    python -m experiments.export --workdir=runs/tp --member=beta=1 --out=DIR \\
        --push=USER/NAME
    python -m experiments.export --out=DIR --push=USER/NAME  # one that is there

The folder holds config.json, description.json, params.safetensors and a model card
README.md with the numbers of summary.json: no code, no pickle, no data.
`mmvae_jax.load` reads it.
"""

from pathlib import Path
from typing import Any

from absl import flags

import mmvae_jax
from experiments.apply import member_of
from experiments.running import command, terminal, workdirs
from mmvae_jax.errors import UsageError
from mmvae_jax.interface import exports, trained


def main() -> None:
    """Loads, writes, and uploads."""
    given = flags.FLAGS
    if not given.out or not (given.workdir or given.push):
        raise UsageError("give --workdir of a run and --out=DIR, the folder to write")
    folder = Path(given.out).expanduser()
    if given.push:
        exports.require_pushable(given.push)
    if given.workdir:
        command.require_new("--out", folder)
        workdir = Path(given.workdir).expanduser()
        model = trained.load(workdir, **member_of(given.member))
        results, settings = _results(workdir, model)
        mmvae_jax.export(model, folder, results=results, settings=settings)
        terminal.say(f'{folder}: mmvae_jax.load("{folder}") reads it')
    if given.push:
        try:
            terminal.say(f"pushed: {exports.push(folder, given.push)}")
        except UsageError as error:
            again = f"python -m experiments.export --out={folder} --push={given.push}"
            raise UsageError(f"{error}; again: {again}") from error


def _results(workdir: Path, model: mmvae_jax.Trained) -> tuple[dict[str, Any], str]:
    """The numbers of the member in summary.json, if the run is finished there.

    Returns:
      (tag -> value, what they were computed with; a line for those added later).
    """
    summary = workdirs.read_summary(workdir)
    if summary is None or summary["num_steps"] != model.step:
        return {}, ""
    wanted = model.member._asdict()
    for member in summary["members"]:
        if all(member[field] == value for field, value in wanted.items()):
            own = model.config.eval
            settings = (
                f"On {own.num_examples or 'all'} test examples of {summary['dataset']}"
                f", evaluation seed {own.seed}, {own.importance_samples} importance "
                f"samples ({own.proposal}); tags as in summary.json:"
            )
            config = workdirs.resolved(model.config)
            lines = [
                f"{', '.join(f'`{tag}`' for tag in tags)}: {how}."
                for how, tags in workdirs.additions(config, summary)
            ]
            return member["metrics"], "\n\n".join([*lines, settings])
    return {}, ""


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "", "folder of a run")
    flags.DEFINE_string("member", "", "of a sweep, for instance beta=1,seed=0")
    flags.DEFINE_string("out", "", "the folder to write; must not exist")
    flags.DEFINE_string("push", "", "USER/NAME on the hub (extra `hub`, HF_TOKEN)")
    command.run(main)
