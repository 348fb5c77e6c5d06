"""Exports a member of a run as a folder to share, and optionally uploads it.

    python -m experiments.export --workdir=runs/tp --member=beta=1 --out=DIR
    python -m experiments.export --workdir=runs/tp --member=beta=1 --out=DIR \\
        --push=USER/NAME
    python -m experiments.export --out=DIR --push=USER/NAME  # an existing export

The folder holds config.json, description.json, params.safetensors and a model card
README.md with the numbers of summary.json: no code, no pickle, no data.
`mmvae_jax.load` reads it. --step exports an earlier checkpoint, if it still exists,
with the numbers that experiments.evaluate computed for it.
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
    """Loads a member, writes its export, and uploads it if requested."""
    given = flags.FLAGS
    if not given.out or not (given.workdir or given.push):
        raise UsageError("give --workdir of a run and --out=DIR, the folder to write")
    if not given.workdir and (given.member or given.step is not None):
        raise UsageError("--member and --step choose from a run: give its --workdir")
    folder = Path(given.out).expanduser()
    if given.push:
        exports.require_pushable(given.push)
    if given.workdir:
        command.require_new("--out", folder)
        workdir = Path(given.workdir).expanduser()
        model = trained.load(workdir, **member_of(given.member), step=given.step)
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
    """The values of the member at its step in summary.json, if any.

    Returns:
      (tag -> value, settings of the evaluation, with a line per later evaluation).
    """
    summary = workdirs.read_summary(workdir)
    wanted = model.member._asdict()
    found = summary["members"] if summary else []
    places = [
        k
        for k, member in enumerate(found)
        if all(member[field] == value for field, value in wanted.items())
    ]
    if summary is None or not places:
        return {}, ""
    config, (k,) = workdirs.resolved(model.config), places
    added = workdirs.additions(config, summary, model.step)
    lines = [f"{', '.join(f'`{tag}`' for tag in tags)}: {how}." for how, tags in added]
    if summary["num_steps"] == model.step:
        own = model.config.eval
        lines.append(
            f"On {own.num_examples or 'all'} test examples of {summary['dataset']}"
            f", evaluation seed {own.seed}, {own.importance_samples} importance "
            f"samples ({own.proposal}); tags as in summary.json:"
        )
        return found[k]["metrics"], "\n\n".join(lines)
    results: dict[str, Any] = {}
    for made in summary.get("evaluations", ()):
        if made["step"] == model.step:
            results |= made["members"][k]
    return results, "\n\n".join(lines)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "", "folder of a run")
    flags.DEFINE_string("member", "", "of a sweep, for instance beta=1,seed=0")
    flags.DEFINE_integer("step", None, "of the checkpoint; default: the last")
    flags.DEFINE_string("out", "", "the folder to write; must not exist")
    flags.DEFINE_string("push", "", "USER/NAME on the hub (extra `hub`, HF_TOKEN)")
    command.run(main)
