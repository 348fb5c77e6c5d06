"""The aims of this project beside what was measured: one table of result files.

python -m benchmarks.targets [--results results]

Reads what the other benchmarks have written (`make bench`, `make bench-gpu`), and says
of every aim whether it is met. What no file holds is "not measured".
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate


class Target(NamedTuple):
    """An aim.

    Attributes:
      what: is measured, in words.
      least: what it should be at least, or None.
      most: what it should be at most, or None.
      unit: of the number.
      measure: results -> the number; LookupError where it is not there.
    """

    what: str
    least: float | None
    most: float | None
    unit: str
    measure: Callable[["Results"], float]


class Results:
    """The result files of a folder, read when they are asked for."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __getitem__(self, name: str) -> dict[str, Any]:
        path = self._folder / f"bench_{name}.json"
        if not path.exists():
            raise LookupError(name)
        return json.loads(path.read_text())

    def row(self, name: str, **values: Any) -> dict[str, Any]:
        """The first row of a file that has these values."""
        for row in self[name]["rows"]:
            if all(row.get(key) == value for key, value in values.items()):
                return row
        raise LookupError(f"{name}: {values}")


def number(row: dict[str, Any], name: str) -> float:
    """A number of a row; without the peer there is none, or a reason in its place."""
    if not isinstance(row.get(name), (int, float)):
        raise LookupError(name)
    return row[name]


def step_of(model: str, name: str = "step") -> Callable[[Results], float]:
    """How many times as fast as MultiVae's a step is."""
    return lambda results: number(results.row(name, model=model), "times as fast")


def sweep_of_peers(results: Results) -> float:
    """Eight of the peer's runs over a sweep of eight, by their times a step."""
    sweep = results["gpu_sweep"]
    steps = int(sweep["command"].split("--steps ")[1].split()[0])
    (row,) = (r for r in sweep["rows"] if r["mapping"] == "auto")
    peer = number(results.row("gpu_step", model="mopoe"), "peer")
    return 8 * peer / (row["seconds"] / steps)


def memory_of(count: int) -> Callable[[Results], float]:
    """What K members need beside the data, in times of K single ones."""
    return lambda results: results["growth"]["memory_of_members"][str(count)]


def linear(results: Results) -> float:
    """The share of the variance that lines explain, of what they explain least."""
    return min(line["explained"] for line in results["growth"]["lines"].values())


TARGETS = (
    Target("step, MoPoE-VAE, against MultiVae", 1.5, None, "x", step_of("mopoe")),
    Target("step, MVAE, against MultiVae", 1.0, None, "x", step_of("mvae")),
    Target("step, MVTCAE, against MultiVae", 1.0, None, "x", step_of("mvtcae")),
    Target("step, JMVAE-kl, against MultiVae", 1.0, None, "x", step_of("jmvae_kl")),
    Target("step, CRMVAE, against MultiVae", 1.0, None, "x", step_of("crmvae")),
    Target(
        "step, MoPoE-VAE over MVAE",
        None,
        1.05,
        "x",
        lambda results: number(results["step"]["mopoe_over_mvae"] or {}, "median"),
    ),
    *(
        Target(
            f"sweep of 8 ({setting}), with compilation, over 8 runs",
            None,
            1.0,
            "x",
            lambda results, setting=setting: results.row(
                f"sweep_{setting}", mapping="auto"
            )["with compilation"],
        )
        for setting in ("polydigits", "polymnist")
    ),
    *(
        Target(
            f"memory of a sweep of {k}, over {k} members",
            None,
            1.0,
            "x",
            memory_of(k),
        )
        for k in (2, 4, 8)
    ),
    *(
        Target(
            f"memory of a sweep of 8 ({where}), over 8 members",
            None,
            1.0,
            "x",
            lambda results, name=name, mapping=mapping: results.row(
                name, mapping=mapping
            )["memory of single ones"],
        )
        for where, name, mapping in (
            ("PolyMNIST", "sweep_polymnist", "auto"),
            ("vmap", "sweep_vmap", "vmap"),
        )
    ),
    Target(
        "first call of 8 members at once, over that of one",
        None,
        3.0,
        "x",
        lambda results: results.row("sweep_vmap", mapping="vmap")[
            "first call of a single one's"
        ],
    ),
    Target("lines in M, K and B, of the variance", 0.95, None, "x", linear),
    Target(
        "PolyMNIST prepared",
        None,
        90,
        "s",
        lambda results: results["data"]["rows"][0]["prepare_s"],
    ),
    Target(
        "first step of a later start",
        None,
        20,
        "s",
        lambda results: results["startup"]["rows"][-1]["all"],
    ),
    Target(
        "all coherences (500 tuples), over MultiVae's evaluator",
        None,
        0.5,
        "x",
        lambda results: number(results.row("evaluation"), "of the peer's time"),
    ),
    Target(
        "all coherences (10,000 tuples), over MultiVae's evaluator",
        None,
        0.5,
        "x",
        lambda results: number(results.row("evaluation_10000"), "of the peer's time"),
    ),
    Target(
        "GPU: step, MoPoE-VAE",
        None,
        0.6,
        "ms",
        lambda results: 1e3 * results.row("gpu_step", model="mopoe")["seconds"],
    ),
    Target(
        "GPU: 70,200 steps of it (300 epochs), by one",
        None,
        90,
        "s",
        lambda results: 70_200 * results.row("gpu_step", model="mopoe")["seconds"],
    ),
    Target("GPU: sweep of 8, against 8 PyTorch runs", 4.0, None, "x", sweep_of_peers),
    Target(
        "GPU: ResNets, of the matrix rate",
        0.4,
        None,
        "x",
        lambda results: results["gpu_rate"]["rows"][0]["of the matrix rate"],
    ),
)


def judge(target: Target, results: Results) -> tuple[str, str]:
    """(what was measured, whether it is met), as text."""
    try:
        value = target.measure(results)
    except LookupError:
        return "-", "not measured"
    least = -math.inf if target.least is None else target.least
    most = math.inf if target.most is None else target.most
    return f"{value:.3g} {target.unit}", "yes" if least <= value <= most else "NO"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    results = Results(options.results)
    rows = []
    for target in TARGETS:
        sign, bound = (
            ("<=", target.most) if target.least is None else (">=", target.least)
        )
        measured, met = judge(target, results)
        rows.append([target.what, f"{sign} {bound:g} {target.unit}", measured, met])
    print(tabulate(rows, ["", "aim", "measured", "met"], disable_numparse=True))


if __name__ == "__main__":
    main()
