"""Methods compared on the same problems: paired differences, curves, and why answers are lost."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tokenskip_lib.core.records import InputError, Prediction
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.problems.arithmetic import check_equations

COMPARISON_COLUMNS = ["method", "ratio", "n", "difference", "difference_low", "difference_high", "gained", "lost"]
COMPARISON_COLUMNS += ["p_value", "actual_ratio", "actual_ratio_low", "actual_ratio_high"]
LOSS_COLUMNS = ["method", "ratio", "gained", "lost", "cut_off", "wrong_equation", "uncheckable", "equations_hold"]
CURVE_COLUMNS = ["method", "points", "area", "area_low", "area_high", "within_a_point", "within_low", "within_high"]
ORIGINAL = ("original", 1.0)
SHORTER = 0.01  # of the original's tokens: saving less is saving nothing


class PairedOutcomes(NamedTuple):
    """Who answered what: P problems x M (method, ratio) pairs, each a mean over the seeds that are pooled."""

    correct: pd.DataFrame
    tokens: pd.DataFrame
    seeds: int


def pair_outcomes(runs: Sequence[Iterable[Prediction]]) -> PairedOutcomes:
    """The predictions of one run, or of several seeds on the same problems, side by side.

    A problem that several seeds answer is one observation, not several: resampling problems then gives
    intervals that do not shrink by asking the same problem again.

    Raises:
        InputError: a problem that one method or seed answered and another did not, or no `original`.
    """
    tables = []
    for number, predictions in enumerate(runs):
        rows = [(p.id, p.method, p.ratio, p.is_correct, p.chain_tokens) for p in predictions]
        table = pd.DataFrame(rows, columns=["id", "method", "ratio", "correct", "tokens"])
        tables.append(table.assign(seed=number))
    table = pd.concat(tables)
    keys = ["id", "method", "ratio"]
    counts = table.groupby(keys, sort=False).size().unstack(["method", "ratio"])
    if ORIGINAL not in counts.columns:
        raise InputError("no predictions of 'original': methods are compared with it")
    missing = counts[counts.lt(len(tables)).any(axis=1) | counts.isna().any(axis=1)]
    if len(missing):
        raise InputError(
            f"problem '{missing.index[0]}' was not answered by every method and seed; finish the run first"
        )
    means = table.groupby(keys, sort=False)[["correct", "tokens"]].mean().unstack(["method", "ratio"])
    return PairedOutcomes(means["correct"].astype(float), means["tokens"].astype(float), len(tables))


def compare_methods(answers: PairedOutcomes, *, seed: int = 0, against: tuple[str, float] = ORIGINAL) -> pd.DataFrame:
    """Every method and ratio against one of them, on the same problems; a row each, in COMPARISON_COLUMNS.

    difference is in accuracy (a fraction) with its 95% paired bootstrap interval, problems resampled;
    gained and lost are the problems that one solves and the other does not, p_value McNemar's, exact
    (none where seeds are pooled); actual_ratio is in chain tokens against the original's, with its interval.

    Source: McNemar (1947), doi:10.1007/BF02295996; Efron and Tibshirani (1993) for the bootstrap.
    """
    from scipy.stats import binomtest

    correct, tokens = _resampled(answers, seed)
    base, original = answers.correct.columns.get_loc(against), answers.correct.columns.get_loc(ORIGINAL)
    rows = []
    for number, (method, ratio) in enumerate(answers.correct.columns):
        if (method, ratio) == against:
            continue
        ours, theirs = answers.correct.iloc[:, number], answers.correct.iloc[:, base]
        gained, lost = int((ours > theirs).sum()), int((ours < theirs).sum())
        p_value = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        shares = tokens[:, number] / tokens[:, original]
        share = answers.tokens.iloc[:, number].mean() / answers.tokens.iloc[:, original].mean()
        differences = (correct[:, number] - correct[:, base]) / len(ours)
        row = [method, ratio, len(ours), ours.mean() - theirs.mean(), *interval(differences)]
        row += [gained, lost, p_value if answers.seeds == 1 else None, share, *interval(shares)]
        rows.append(row)
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def summarise_curves(answers: PairedOutcomes, *, seed: int = 0, points: float = 1.0) -> pd.DataFrame:
    """Each method's accuracy-token curve in two numbers with 95% bootstrap intervals; a row a method, in CURVE_COLUMNS.

    area: the mean, over budgets from none to all of the original's tokens, of the accuracy of the best
    point that a budget pays for; below a method's shortest point that is none, so a method that reaches
    further gains, and one that is never right has 0. Points that save less than a hundredth of the
    original's tokens have no part in it; a method with no other has no area (NaN).
    within_a_point: the share of the original's tokens needed to stay at most `points` below the original's
    accuracy, on straight lines between the method's own points, from the longest that is so near down; 1
    where none is, since that takes the original itself.
    """
    columns = answers.correct.columns
    correct, tokens = _resampled(answers, seed)
    original = columns.get_loc(ORIGINAL)
    correct, shares = correct / len(answers.correct), tokens / tokens[:, [original]]
    lengths = answers.tokens.mean().to_numpy()
    means = (answers.correct.mean().to_numpy()[None], (lengths / lengths[original])[None])
    rows = []
    for method in dict.fromkeys(columns.get_level_values("method")):
        if method == "original":
            continue
        own = [number for number, pair in enumerate(columns) if pair[0] == method]
        # Which points are shorter is settled once, or resamples would leave out now one, now another.
        shorter = [number for number in own if means[1][0, number] <= 1 - SHORTER]
        area, areas = (_areas(*each, shorter) for each in (means, (correct, shares)))
        within, withins = (_within(*each, own, original, points / 100) for each in (means, (correct, shares)))
        rows.append([method, len(own), area[0], *interval(areas), within[0], *interval(withins)])
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def _resampled(answers: PairedOutcomes, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """DRAWS x M sums of correct and tokens over problems drawn with replacement, the same ones for all.

    Sums, because those of whole numbers are exact: of one seed's answers a difference of nothing is 0, not 1e-16.
    """
    drawn = resample(len(answers.correct), seed)
    return drawn @ answers.correct.to_numpy(), drawn @ answers.tokens.to_numpy()


def _areas(correct: np.ndarray, shares: np.ndarray, shorter: list[int]) -> np.ndarray:
    """The area of each of D draws, from D x M means of correct and of the original's tokens' shares."""
    if not shorter:
        return np.full(len(correct), np.nan)
    areas = []
    for accuracies, lengths in zip(correct[:, shorter], np.minimum(shares[:, shorter], 1), strict=True):
        order = np.argsort(lengths, kind="stable")
        areas.append(np.diff(np.append(lengths[order], 1)) @ np.maximum.accumulate(accuracies[order]))
    return np.array(areas)


def _within(correct: np.ndarray, shares: np.ndarray, own: list[int], original: int, margin: float) -> np.ndarray:
    """within_a_point of each of D draws, from what `_areas` takes."""
    found = []
    for accuracies, lengths in zip(correct, np.minimum(shares, 1), strict=True):
        order = np.argsort(lengths[own], kind="stable")
        found.append(_needed(lengths[own][order], accuracies[own][order], accuracies[original] - margin))
    return np.array(found)


def _needed(shares: np.ndarray, heights: np.ndarray, wanted: float) -> float:
    """How far left a curve of straight pieces stays at a height, from its last point there; 1 where none is."""
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


def explain_losses(predictions: Sequence[Prediction]) -> pd.DataFrame:
    """What is wrong with the answers that a method loses: problems that the original solves and it does not.

    Returns:
        A row for each method and ratio beside the original, in LOSS_COLUMNS: problems gained and lost, and of the
        lost how many are cut off; of the others how many chains have a false equation, how many none
        that can be checked, and in how many all hold, so that something else went wrong.
    """
    verdicts = {"wrong equation": "wrong_equation", "uncheckable equation": "uncheckable", "clean": "equations_hold"}
    solved = {p.id: p.is_correct for p in predictions if p.method == "original"}
    rows = []
    for p in predictions:
        if p.method == "original":
            continue
        lost, cause = solved[p.id] and not p.is_correct, None
        if lost:
            cause = "cut_off" if p.cut_off else verdicts[check_equations(p.chain)]
        causes = [cause == name for name in ("cut_off", *verdicts.values())]
        rows.append([p.method, p.ratio, p.is_correct and not solved[p.id], lost, *causes])
    table = pd.DataFrame(rows, columns=LOSS_COLUMNS)
    return table.groupby(["method", "ratio"], sort=False, as_index=False).sum()
