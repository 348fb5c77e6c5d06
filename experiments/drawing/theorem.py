"""Theory and measurements: upper bounds (ceilings) and the generative discrepancy.

The functions take finished runs and return a figure and the plotted values. As
docs/theory.md explains, the bound on L_S in Eq. 4 is drawn as in the paper but does not
hold; the ceiling of the reconstruction term holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from ml_collections import ConfigDict

from experiments.plans import plan
from experiments.plans.names import model_colour, model_label, model_rank
from experiments.plans.runs import RunRecord, read_log
from experiments.running import datasets
from mmvae_jax.data import prepared
from mmvae_jax.errors import UsageError
from mmvae_jax.mathematics import theory
from mmvae_jax.models import MODELS

# The models of the theorem, and their subsets of M modalities.
MIXTURES = {name: MODELS[name].build.keywords["mixture"] for name in plan.MULTIMODAL}
_PANEL_SIZE = (4.3, 3.4)  # inches
# The first tenth of training does not affect the limits of the axis.
_SHOWN_FROM = 0.1


class _Ceilings(NamedTuple):
    """Ceilings of one model on a known joint distribution; nats.

    Attributes:
      log_p: E[log p(x)] = -H(X), the ceiling of L_S for every model.
      eq_4: E[log p(x)] - Delta(X, S), the ceiling of L_S in Theorem 1.
      reconstruction: -Delta(X, S), the ceiling of the reconstruction term.
    """

    log_p: float
    eq_4: float
    reconstruction: float


class _Curve(NamedTuple):
    """The logged training of the members of one beta, without diverged members.

    Attributes:
      steps: int [T].
      elbo: L_S, float [seeds, T]; nats per example.
      reconstruction: the reconstruction term of L_S, float [seeds, T]; nats.
    """

    steps: np.ndarray
    elbo: np.ndarray
    reconstruction: np.ndarray


def discrete_pmf(data_config: Mapping[str, Any]) -> np.ndarray:
    """The joint pmf of the data set "discrete", for `mathematics.theory`.

    Args:
      data_config: `config.data`; with `use_modalities`, the pmf of the first ones.

    Returns:
      float64 [n, ...], axis m is modality m, summing to 1.

    Raises:
      UsageError: an option is invalid.
    """
    options = datasets.options_of(data_config)
    from discrete import pmf

    table = pmf.joint_pmf(**options.pmf_options)
    used = data_config.get("use_modalities", 0) or table.ndim
    return table.sum(axis=tuple(range(used, table.ndim)))


def polymnist_process(data_config: ConfigDict) -> tuple[np.ndarray, list[int]]:
    """The generating process of PolyMNIST, for `theory.polymnist_discrepancy`.

    Args:
      data_config: `config.data` of "polymnist", which is prepared if necessary.

    Returns:
      int [num_classes], digit images of each class in the training split; and for each
      modality the number of crop positions times the number of digit positions.

    Raises:
      UsageError: the generating process of the data is unknown.
    """
    if data_config.name != "polymnist" or data_config.digits == "published":
        raise UsageError(
            "the generating process is known only for config.data.name='polymnist' "
            "without config.data.digits='published'"
        )
    directory = datasets.prepare(data_config)
    from polymnist import backgrounds

    options = datasets.options_of(data_config)
    num = 1 if options.repeated else options.num_modalities
    scenes = backgrounds.load(options.backgrounds_dir, num, options.image_size)
    size = options.image_size
    digit_places = (size - options.side + 1) ** 2
    places = [
        (scene.shape[0] - size + 1) * (scene.shape[1] - size + 1) * digit_places
        for scene in scenes
    ]
    labels = prepared.load(directory).train.labels
    counts = np.bincount(labels) // options.pairings
    return counts, places * (options.num_modalities // num)


def ceilings(pmf: np.ndarray, model: str) -> _Ceilings:
    """The ceilings of one of MIXTURES on a joint pmf, float64 [n_1, ..., n_M]."""
    log_p = -theory.entropy(pmf)
    highest = theory.reconstruction_ceiling(pmf, MIXTURES[model](pmf.ndim))
    # Without sub-sampling the ceiling is 0, without rounding errors.
    highest = 0.0 if abs(highest) < 1e-12 else highest
    return _Ceilings(log_p, log_p + highest, highest)


def _curves(record: RunRecord) -> dict[float, _Curve]:
    """The training of a run: beta -> _Curve.

    Raises:
      UsageError: metrics.jsonl has no training of a finite member.
    """
    path = record.workdir / "metrics.jsonl"
    finite = [member["finite"] for member in record.summary["members"]]
    points: dict[float, dict[int, dict[int, tuple]]] = {}
    for line in read_log(record):
        # Skip lines of evaluations and diverged members.
        if line.get("train/elbo") is not None and finite[line["member"]]:
            members = points.setdefault(line["beta"], {})
            gain = _reconstruction(line)
            log = members.setdefault(line["member"], {})
            log[line["step"]] = (line["train/elbo"], gain)
    if not points:
        raise UsageError(
            f"{path}: all members diverged; delete the run's folder and train it again"
        )
    found = {}
    for beta, members in points.items():
        steps = sorted(set.intersection(*(set(log) for log in members.values())))
        values = np.array([[log[s] for s in steps] for log in members.values()])
        found[beta] = _Curve(np.array(steps), values[..., 0], values[..., 1])
    return found


def _reconstruction(line: Mapping[str, Any]) -> float:
    """The sum of the modalities' reconstruction terms in a line of the log."""
    prefix = "train/log_likelihood/"
    return sum(value for tag, value in line.items() if tag.startswith(prefix))


def draw_ceilings(records: Mapping[str, RunRecord]) -> tuple[Figure, list[dict]]:
    """Training on a known distribution, with its theoretical ceilings.

    The first panel has L_S at the beta nearest to 1, E[log p(x)], and (dashed) the
    ceiling of Eq. 4 for each model. The next panels, one per beta in decreasing order,
    have the reconstruction term and (dashed) its ceiling -Delta(X, S). Lines are means
    over seeds, bands are one standard deviation.

    Args:
      records: model of MIXTURES -> finished run of configs/discrete.py; models may be
        missing.

    Returns:
      (figure, rows), one row per model, beta and logged step; the standard deviation of
      one seed is None.

    Raises:
      UsageError: no run, a run of another model, or runs on different data.
    """
    pmf = _common_pmf(records)
    bounds = {m: ceilings(pmf, m) for m in MIXTURES if m in records}
    found = {model: _curves(records[model]) for model in bounds}
    betas = sorted({beta for lines in found.values() for beta in lines}, reverse=True)
    unit = min(betas, key=lambda beta: abs(beta - 1))
    figure, axes = _panels(1 + len(betas))
    panels = [("elbo", unit), *(("reconstruction", beta) for beta in betas)]
    for axis, (term, beta) in zip(axes, panels, strict=True):
        shown = {m: lines[beta] for m, lines in found.items() if beta in lines}
        for model, curve in shown.items():
            _draw_curve(axis, model, curve.steps, getattr(curve, term))
        _draw_bounds(axis, term, {model: bounds[model] for model in shown})
        _show_the_end(axis, [getattr(curve, term) for curve in shown.values()])
        name = "$\\mathcal{L}_S$" if term == "elbo" else "reconstruction term"
        axis.set_title(f"{name}, β = {beta:g}")
        axis.set_xlabel("step")
        axis.set_ylabel("nats")
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=(len(handles) + 1) // 2,
        frameon=False,
        fontsize=8,
    )
    return figure, _ceiling_rows(found, bounds)


def _common_pmf(records: Mapping[str, RunRecord]) -> np.ndarray:
    """The joint pmf of the common training data of all runs."""
    for model in records:
        if model not in MIXTURES:
            raise UsageError(
                f"no ceiling is known for model {model!r}; choose from "
                f"{', '.join(MIXTURES)}"
            )
    if not records:
        raise UsageError(
            "no run to draw; train python -m experiments.run "
            "--config=configs/discrete.py:mopoe first"
        )
    tables = {}
    for record in records.values():
        if record.config["data"]["name"] != "discrete":
            raise UsageError(
                f"{record.workdir} is a run on {record.config['data']['name']!r}, "
                "whose joint pmf is not known; use a run of configs/discrete.py"
            )
        tables[record.workdir] = discrete_pmf(record.config["data"])
    (first, table), *others = tables.items()
    for workdir, other in others:
        if other.shape != table.shape or not np.array_equal(other, table):
            raise UsageError(
                f"{workdir} and {first} have different data; draw them separately"
            )
    return table


def _draw_curve(axis: Axes, model: str, steps: np.ndarray, values: np.ndarray) -> None:
    """Draws the mean and, for several seeds, a band of one standard deviation."""
    mean = values.mean(axis=0)
    axis.plot(
        steps, mean, color=model_colour(model), linewidth=1.4, label=model_label(model)
    )
    if len(values) > 1:
        std = values.std(axis=0, ddof=1)
        axis.fill_between(
            steps,
            mean - std,
            mean + std,
            color=model_colour(model),
            alpha=0.25,
            linewidth=0,
        )


def _draw_bounds(axis: Axes, term: str, bounds: Mapping[str, _Ceilings]) -> None:
    """Draws E[log p(x)] for L_S, and the ceiling of each model."""
    if term == "elbo":
        log_p = next(iter(bounds.values())).log_p
        axis.axhline(log_p, color="black", linewidth=1, label="E[log p(x)]")
    for model, bound in bounds.items():
        value = bound.eq_4 if term == "elbo" else bound.reconstruction
        kind = "E[log p(x)] − Δ (Eq. 4)" if term == "elbo" else "−Δ"
        if term == "elbo" and bound.reconstruction == 0:
            continue  # equal to E[log p(x)]
        axis.axhline(
            value,
            color=model_colour(model),
            linestyle=(0, (5, 3)) if term == "elbo" else (0, (1.5, 1.5)),
            linewidth=1.1,
            label=f"{model_label(model)}: {kind}",
        )


def _show_the_end(axis: Axes, values: Sequence[np.ndarray]) -> None:
    """Sets limits for all ceilings, and for the curves without their start."""
    shown = [line.get_ydata()[0] for line in axis.lines if len(line.get_ydata()) == 2]
    for curve in values:
        late = curve[:, int(_SHOWN_FROM * curve.shape[1]) :]
        shown += [late.min(), late.max()]
    low, high = min(shown), max(shown)
    margin = 0.05 * (high - low) or 1.0
    axis.set_ylim(low - margin, high + margin)


def _ceiling_rows(
    found: Mapping[str, Mapping[float, _Curve]], bounds: Mapping[str, _Ceilings]
) -> list[dict]:
    """The values of `draw_ceilings`."""
    rows = []
    for model, lines in found.items():
        for beta, curve in sorted(lines.items()):
            for t, step in enumerate(curve.steps):
                row = {"model": model, "beta": beta, "step": int(step)}
                row["num_seeds"] = len(curve.elbo)
                for term in ("elbo", "reconstruction"):
                    values = getattr(curve, term)[:, t]
                    std = float(values.std(ddof=1)) if len(values) > 1 else None
                    row |= {f"{term}_mean": float(values.mean()), f"{term}_std": std}
                row["expected_log_p"] = bounds[model].log_p
                row["elbo_ceiling_eq_4"] = bounds[model].eq_4
                row["reconstruction_ceiling"] = bounds[model].reconstruction
                rows.append(row)
    return rows


def draw_discrepancy(
    quality: pd.DataFrame,
    class_counts: np.ndarray,
    crop_counts: Sequence[int],
    quality_label: str = "quality",
) -> tuple[Figure, list[dict]]:
    """Delta(X, S) of PolyMNIST's generating process, and a measured quality.

    Args:
      quality: the columns model, num_modalities, mean and std over seeds.
      class_counts: int [num_classes], digit images of each class.
      crop_counts: number of crop positions of each modality, in order; Delta is
        drawn for the first 1, 2, ... of them.
      quality_label: name of the quality, with its unit or direction.

    Returns:
      (figure, rows), one row per model and number of modalities: `discrepancy` in nats,
      mean and standard deviation of the quality; None for missing values.
    """
    discrepancies = _discrepancies(class_counts, crop_counts)
    figure, (left, right) = _panels(2)
    for model, own in discrepancies.groupby("model", sort=False):
        style = {
            "color": model_colour(model),
            "label": model_label(model),
            "markersize": 4,
        }
        left.plot(own["num_modalities"], own["discrepancy"], "o-", **style)
    quality = quality.sort_values("num_modalities")
    for model in sorted(set(quality["model"]), key=model_rank):
        own = quality[quality["model"] == model]
        right.errorbar(
            own["num_modalities"],
            own["mean"],
            yerr=own["std"].fillna(0),  # NaN for one seed
            color=model_colour(model),
            marker="o",
            markersize=4,
            capsize=2,
            label=model_label(model),
        )
    left.set_title("Δ(X, S), closed form")
    left.set_ylabel("nats")
    right.set_title("measured")
    right.set_ylabel(quality_label)
    for axis in (left, right):
        axis.set_xlabel("number of modalities")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    measured = quality.rename(columns={"mean": "quality_mean", "std": "quality_std"})
    rows = discrepancies.merge(measured, "outer", ["model", "num_modalities"])
    order = rows["model"].map(model_rank)
    rows = rows.loc[order.sort_values(kind="stable").index].astype(object)
    return figure, rows.where(rows.notna(), None).to_dict("records")


def _discrepancies(
    class_counts: np.ndarray, crop_counts: Sequence[int]
) -> pd.DataFrame:
    """Delta(X, S) of each of MIXTURES for the first 1, 2, ... modalities; nats."""
    rows = [
        (
            model,
            num,
            abs(  # avoid -0.0
                theory.polymnist_discrepancy(
                    mixture(num), class_counts, list(crop_counts[:num])
                )
            ),
        )
        for model, mixture in MIXTURES.items()
        for num in range(1, len(crop_counts) + 1)
    ]
    return pd.DataFrame(rows, columns=["model", "num_modalities", "discrepancy"])


def _panels(num: int) -> tuple[Figure, np.ndarray]:
    """A figure with `num` panels side by side."""
    width, height = _PANEL_SIZE
    figure = Figure(figsize=(width * num, height), layout="constrained")
    axes = figure.subplots(1, num)
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
