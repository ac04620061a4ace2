"""A run beside the published one of the same settings: the differences, and whether rounding explains them.

Processors round differently, so the same weights write some answers differently. On 150 problems a processor with
matrix units for bfloat16 and one without differed by up to 2.7 points of accuracy and 0.006 of the actual ratio, over
the 15 rows that the demo then had.
"""

from dataclasses import dataclass
from math import sqrt

import pandas as pd

from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.evaluation.tables import row_table

SEEN_ON = 150  # problems
SEEN = {"accuracy": 0.027, "actual_ratio": 0.006}  # the largest difference of 15 rows between two processors
# The largest of 15 normal numbers is two standard deviations away in the mean, and the limit is three.
ALLOWED = 1.5


@dataclass(frozen=True)
class BesideRow:
    """One method at one level, in a run and as published.

    Attributes:
        method: its name.
        level: what was asked of it, as the tables say it.
        n: problems answered, the fewer of the two runs.
        accuracy, published_accuracy: fractions right.
        accuracy_difference: the first minus the second.
        actual_ratio, published_ratio: chain tokens divided by the original's.
        ratio_difference: the first minus the second.
        rounding: whether both differences are within what rounding explains; None if an adapter that the run trained
            answered, because another training differs by more than rounding.
    """

    method: str
    level: str
    n: int
    accuracy: float
    published_accuracy: float
    accuracy_difference: float
    actual_ratio: float
    published_ratio: float
    ratio_difference: float
    rounding: bool | None


def allowed(column: str, n: int) -> float:
    """The largest difference that rounding explains on n problems; it falls with the root of n.

    Args:
        column: accuracy or actual_ratio.

    Example:
        >>> round(allowed("accuracy", 150), 4), round(allowed("accuracy", 600), 4)
        (0.0405, 0.0203)
    """
    return ALLOWED * SEEN[column] * sqrt(SEEN_ON / n)


def beside_published(metrics: pd.DataFrame, published: pd.DataFrame, *, trained: bool) -> pd.DataFrame:
    """The rows that a run and the published run both have: the columns of BesideRow.

    Args:
        metrics: of the run, the columns of MetricRow.
        published: of the published run, the same columns.
        trained: whether the run's own adapter answered, and not one that both runs have.
    """
    own, theirs = (table.set_index(["method", "ratio"]) for table in (metrics, published))
    rows = []
    for method, ratio in (key for key in own.index if key in theirs.index):
        here, there = own.loc[(method, ratio)], theirs.loc[(method, ratio)]
        away = {column: round(here[column] - there[column], 4) for column in SEEN}
        n = min(here["n"], there["n"])
        within = all(abs(difference) <= allowed(column, n) for column, difference in away.items())
        rows.append(
            BesideRow(
                method=method,
                level=METHODS[method].say_level(ratio) if method in METHODS else f"{ratio:g}",
                n=int(n),
                accuracy=here["accuracy"],
                published_accuracy=there["accuracy"],
                accuracy_difference=away["accuracy"],
                actual_ratio=here["actual_ratio"],
                published_ratio=there["actual_ratio"],
                ratio_difference=away["actual_ratio"],
                rounding=None if trained and method in METHODS and METHODS[method].uses_adapter else within,
            )
        )
    return row_table(rows, BesideRow)


def beside_lines(beside: pd.DataFrame) -> list[str]:
    """The table for a terminal, and a sentence that says what rounding explains.

    Args:
        beside: the columns of BesideRow.
    """
    form = "{:16} {:13} {:>10} {:>9} {:>6}  {:>6} {:>9} {:>7}  {}"
    lines = [form.format("", "", "accuracy %", "published", "", "ratio", "published", "", "within rounding").rstrip()]
    for row in beside.to_dict("records"):
        shares = f"{100 * row['accuracy']:.1f}", f"{100 * row['published_accuracy']:.1f}"
        ratios = f"{row['actual_ratio']:.3f}", f"{row['published_ratio']:.3f}"
        differences = f"{100 * row['accuracy_difference']:+.1f}", f"{row['ratio_difference']:+.3f}"
        said = "trained anew" if row["rounding"] is None else "yes" if row["rounding"] else "no"
        lines.append(form.format(row["method"], row["level"], *shares, differences[0], *ratios, differences[1], said))
    n = int(beside["n"].min())
    points, ratio = 100 * allowed("accuracy", n), allowed("actual_ratio", n)
    strange = sum(value is False for value in beside["rounding"])
    found = f"{strange} of {len(beside)} rows differ by more" if strange else "no row differs by more"
    lines.append(
        f"On {n} problems another processor's rounding explains up to {points:.1f} points of accuracy and {ratio:.3f} "
        f"of the ratio: {found}."
    )
    return lines
