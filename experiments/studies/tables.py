"""Tables of studies: one line per run, with means and deviations over seeds."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmvae_jax.errors import UsageError
from mmvae_jax.files import write_whole


def row(summary: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Number, means and standard deviations of the finite members.

    Values that were not measured, or are undefined for a seed, are NaN.

    Args:
      summary: content of summary.json.
      columns: tags without "eval/".
    """
    members = [m["metrics"] for m in summary["members"] if m["finite"]]
    values: dict[str, Any] = {"num_seeds": len(members)}
    for tag in columns:
        # None is NaN in summary.json.
        found = [metrics.get(f"eval/{tag}") for metrics in members]
        each = [np.nan if value is None else value for value in found]
        spread = np.std(each, ddof=1) if len(each) > 1 else np.nan
        values[f"{tag} mean"] = round(float(np.mean(each)), 4)
        values[f"{tag} std"] = round(float(spread), 4)
    return values


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the table as CSV, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def read(path: Path, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """The lines of a table that `write` has written: run -> title -> value as text.

    Args:
      path: the CSV file.
      columns: the tags of the table.

    Raises:
      UsageError: the file cannot be read, or has other columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {row.get("run", ""): row for row in csv.DictReader(file)}
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"the table {path} cannot be read: {error}") from error
    titles = {f"{tag} mean" for tag in columns}
    for row in rows.values() or [{}]:
        if {title for title in row if title and title.endswith(" mean")} != titles:
            raise UsageError(f"{path} is not a table of this study: other columns")
    return rows
