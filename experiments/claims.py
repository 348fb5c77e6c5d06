"""Whether the papers' claims hold, on the runs that are there.

    python -m experiments.claims runs/figures_demo

Judges every claim of `experiments.judging.paper` on the finished runs of a plan's
folder: "holds", "fails" or "not measured", with the numbers, the difference in units of
its standard error, and the scale; prints a table a claim, and writes DIR/claims.json
and DIR/claims.md. A claim that fails is a result, and the exit code is 0.

Means and standard deviations s are over the n seeds of a beta that did not diverge.
Differences and slopes are sums of c_i mean_i over models or betas, their standard
errors the root of the sum of c_i^2 s_i^2 / n_i. As in the paper (Sec. 5.1) each model
is taken at its own best beta for the metric, by the mean over seeds.
"""

from collections import Counter
from pathlib import Path

from absl import flags

from experiments.judging.verdicts import (
    Verdict,
    evaluate,
    found_claims,
    markdown,
    table,
)
from experiments.plans import plan, tables
from experiments.running import command, terminal
from mmvae_jax.errors import UsageError
from mmvae_jax.files import write_whole
from mmvae_jax.training import log


def report(evidence: plan.Evidence) -> list[Verdict]:
    """Prints the verdicts and writes claims.json and claims.md beside the plan."""
    verdicts = evaluate(evidence)
    path = evidence.directory / "claims.json"
    found = found_claims(evidence, verdicts)
    log.write_json(path, found)
    write_whole(path.with_suffix(".md"), markdown(found))
    counts = Counter(verdict.holds for verdict in verdicts)
    terminal.say(
        f"{table(verdicts)}\n\n"
        f"{tables.description(evidence)}; {len(evidence.runs)} runs.\n"
        f"Of {len(verdicts)} verdicts {counts[True]} hold, {counts[False]} fail and "
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
    report(plan.read(Path(flags.FLAGS.directory).expanduser()))


if __name__ == "__main__":
    flags.DEFINE_string("directory", "", "folder of the plan; its name alone will do")
    command.run(main, argument="directory")
