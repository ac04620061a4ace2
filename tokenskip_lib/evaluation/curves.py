"""What ratios buy: accuracy-token curves in two numbers, the Pareto front, and how far an adapter follows a ratio."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tokenskip_lib.evaluation.comparison import ORIGINAL, PairedOutcomes
from tokenskip_lib.evaluation.statistics import interval
from tokenskip_lib.evaluation.tables import row_table

SHORTER = 0.01  # share of the original's tokens that a point must save to count as shorter


@dataclass(frozen=True)
class CurveRow:
    """The accuracy-token curve of one method in two numbers, each with its 95% bootstrap interval.

    Attributes:
        points: ratios that the method has answers for.
        area: mean, over all budgets from 0 to the original's tokens, of the best accuracy that the budget
            pays for. A budget below the shortest point pays for nothing: 0. Points that save less than 1% of
            the original's tokens do not count; without any other point the area is missing.
        within_a_point: the fewest tokens, as a share of the original's, at which the interpolated curve
            stays within a point of the original's accuracy; 1.0 if it never does.
    """

    method: str
    points: int
    area: float
    area_low: float
    area_high: float
    within_a_point: float
    within_low: float
    within_high: float


def summarise_curves(answers: PairedOutcomes, *, seed: int = 0, points: float = 1.0) -> pd.DataFrame:
    """Summarise the accuracy-token curve of each method except the original: the columns of CurveRow.

    Args:
        seed: of the bootstrap.
        points: percentage points below the original's accuracy that `within_a_point` allows.
    """
    pairs = answers.pairs
    original = pairs.index(ORIGINAL)
    drawn_correct, drawn_tokens = answers.resampled(seed)
    drawn_accuracy, drawn_shares = drawn_correct / len(answers.correct), drawn_tokens / drawn_tokens[:, [original]]
    lengths = answers.tokens.mean().to_numpy()
    accuracy, shares = answers.correct.mean().to_numpy()[None], (lengths / lengths[original])[None]
    rows = []
    for method in dict.fromkeys(name for name, _ in pairs):
        if method == "original":
            continue
        own = [number for number, pair in enumerate(pairs) if pair[0] == method]
        # Decided once, on all problems: otherwise each resample would leave out other points.
        shorter = [number for number in own if shares[0, number] <= 1 - SHORTER]
        area_low, area_high = interval(_areas(drawn_accuracy, drawn_shares, shorter))
        within_low, within_high = interval(_within(drawn_accuracy, drawn_shares, own, original, points / 100))
        rows.append(
            CurveRow(
                method=method,
                points=len(own),
                area=float(_areas(accuracy, shares, shorter)[0]),
                area_low=area_low,
                area_high=area_high,
                within_a_point=float(_within(accuracy, shares, own, original, points / 100)[0]),
                within_low=within_low,
                within_high=within_high,
            )
        )
    return row_table(rows, CurveRow)


def _areas(accuracy: np.ndarray, shares: np.ndarray, shorter: Sequence[int]) -> np.ndarray:
    """CurveRow.area of each of D draws.

    Args:
        accuracy: D x M means.
        shares: D x M tokens, as shares of the original's.
        shorter: the columns that are points of the curve.
    """
    if not shorter:
        return np.full(len(accuracy), np.nan)
    areas = []
    for heights, lengths in zip(accuracy[:, shorter], np.minimum(shares[:, shorter], 1), strict=True):
        order = np.argsort(lengths, kind="stable")
        areas.append(np.diff(np.append(lengths[order], 1)) @ np.maximum.accumulate(heights[order]))
    return np.array(areas)


def _within(accuracy: np.ndarray, shares: np.ndarray, own: Sequence[int], original: int, margin: float) -> np.ndarray:
    """CurveRow.within_a_point of each of D draws; `accuracy` and `shares` as in `_areas`."""
    found = []
    for heights, lengths in zip(accuracy, np.minimum(shares, 1), strict=True):
        order = np.argsort(lengths[own], kind="stable")
        found.append(_needed(lengths[own][order], heights[own][order], heights[original] - margin))
    return np.array(found)


def _needed(shares: np.ndarray, heights: np.ndarray, wanted: float) -> float:
    """The fewest tokens (as a share of the original's) at which the interpolated curve still reaches `wanted`.

    The search goes down from the longest point that reaches it, and ends where the curve falls below. 1.0 if
    no point reaches it.

    Args:
        shares: of the curve's points, ascending.
        heights: their accuracies.
    """
    reached = heights >= wanted - 1e-12
    if not reached.any():
        return 1.0
    last = int(np.flatnonzero(reached)[-1])
    below = np.flatnonzero(~reached[:last])
    if not len(below):
        return float(shares[0])
    left = int(below[-1])
    part = (wanted - heights[left]) / (heights[left + 1] - heights[left])
    return float(shares[left] + part * (shares[left + 1] - shares[left]))


def pareto_front(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics that no other row beats, by ascending chain tokens.

    A row beats another if it is at least as accurate with at most as many tokens, and better in one of the
    two. The shortest row is always on the front, even at 0% accuracy.

    Args:
        metrics: columns accuracy and chain_tokens.
    """
    accuracy, tokens = metrics["accuracy"].to_numpy(), metrics["chain_tokens"].to_numpy()
    beaten = [
        ((accuracy >= height) & (tokens <= length) & ((accuracy > height) | (tokens < length))).any()
        for height, length in zip(accuracy, tokens, strict=True)
    ]
    return metrics[~np.array(beaten, dtype=bool)].sort_values("chain_tokens")


def ratio_control(rows: pd.DataFrame) -> float:
    """How much of a change in the requested ratio one adapter follows: 1 is full control, 0 is none.

    It is the slope of the straight line through the actual ratios over the requested ones. Requests for 1.0
    do not count, since their prompt has no marker: shortening whenever any marker is present is not the
    same as reading its number.

    Args:
        rows: columns ratio and actual_ratio, of one adapter.

    Returns:
        The slope; NaN if there are fewer than two different requests below 1.0.

    Example:
        >>> rows = pd.DataFrame({"ratio": [0.5, 0.9, 1.0], "actual_ratio": [0.7, 0.9, 1.0]})
        >>> round(ratio_control(rows), 3)  # asked for 0.4 more, it writes 0.2 more
        0.5
    """
    asked = rows[rows["ratio"] < 1]
    if asked["ratio"].nunique() < 2:
        return float("nan")
    return float(np.polyfit(asked["ratio"], asked["actual_ratio"], 1)[0])
