"""Judges whether the papers' claims hold, on finished runs.

    python -m experiments.claims runs/figures_demo
    python -m experiments.claims runs/figures_demo --before=old/claims.json

Every claim of `experiments.judging.paper` is judged on the finished runs of a plan's
folder: "holds", "fails" or "not measured", with the numbers, the difference in units of
its standard error, and the scale. The command prints a table for each claim, and writes
DIR/claims.json and DIR/claims.md. A claim that fails is a result: the exit code is 0. A
claim that holds by fewer than three standard errors is marked as fragile. --before
names an earlier claims.json; verdicts that changed show the earlier one.

Means and standard deviations s are over the n seeds of a beta that did not diverge.
Differences and slopes are sums of c_i mean_i over models or betas. Their standard error
is the root of the sum of c_i^2 e_i^2, with e_i = s_i / sqrt(n_i) at one beta. As in the
paper (Sec. 5.1), each model is judged at its best beta for the metric. For each seed,
the mean over the other seeds selects this beta, and e_i is the jackknife's standard
error (`experiments.plans.choice`). The selection needs three seeds; with fewer, claims
that use it are not measured.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from experiments.judging.paper import FRAGILE
from experiments.judging.verdicts import (
    Verdict,
    changed,
    evaluate,
    found_claims,
    markdown,
    read_claims,
    table,
)
from experiments.plans import plan, tables
from experiments.running import command, terminal
from mmvae_jax.errors import UsageError
from mmvae_jax.files import write_whole
from mmvae_jax.training import log


def report(evidence: plan.Evidence, before: Mapping | None = None) -> list[Verdict]:
    """Prints the verdicts and writes claims.json and claims.md beside the plan.

    Args:
      evidence: the runs.
      before: the content of an earlier claims.json.
    """
    verdicts = evaluate(evidence)
    path = evidence.directory / "claims.json"
    found = found_claims(evidence, verdicts, before)
    log.write_json(path, found)
    write_whole(path.with_suffix(".md"), markdown(found))
    counts = Counter(verdict.holds for verdict in verdicts)
    others = "".join(
        f"{row['name']}, {row['dataset']}, {row['model']}, {row['metric']}: "
        f"{row['verdict']}{' (fragile)' if row['fragile'] else ''}; "
        f"before: {row['before']}\n"
        for row in changed(found)
    )
    terminal.say(
        f"{table(verdicts)}\n\n{others}"
        f"{tables.description(evidence)}; {len(evidence.runs)} runs.\n"
        f"Of {len(verdicts)} verdicts {counts[True]} hold, of these "
        f"{sum(row['fragile'] for row in found['claims'])} by fewer than "
        f"{FRAGILE:g} standard errors, {counts[False]} fail and "
        f"{counts[None]} are not measured. Differences are written so that the claim "
        f"has them positive.\n{path}"
    )
    return verdicts


def main() -> None:
    """Judges the claims on the runs in a folder."""
    if not flags.FLAGS.directory:
        raise UsageError(
            "name the folder of the runs: python -m experiments.claims DIR"
        )
    before = None
    if flags.FLAGS.before:
        before = read_claims(Path(flags.FLAGS.before).expanduser())
    report(plan.read(Path(flags.FLAGS.directory).expanduser()), before)


if __name__ == "__main__":
    flags.DEFINE_string("directory", "", "folder of the plan; its name alone will do")
    flags.DEFINE_string("before", "", "an earlier claims.json, to compare with")
    command.run(main, argument="directory")
