"""Predictions -> metrics with intervals, and comparisons between methods; all from records on disk."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tokenskip_lib.grading import is_correct_by_reference
from tokenskip_lib.methods import METHODS, RATIO_METHODS
from tokenskip_lib.problems import check_equations
from tokenskip_lib.records import InputError, Prediction

METRIC_COLUMNS = [
    "method",
    "ratio",
    "scorer",
    "n",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "accuracy_by_reference",
    "chain_tokens",
    "actual_ratio",
    "actual_ratio_low",
    "actual_ratio_high",
    "answer_tokens",
    "cut_off",
    "seconds_per_problem",
    "seed",
]
COMPARISON_COLUMNS = ["method", "ratio", "n", "difference", "difference_low", "difference_high", "gained", "lost"]
COMPARISON_COLUMNS += ["p_value", "actual_ratio", "actual_ratio_low", "actual_ratio_high"]
LOSS_COLUMNS = ["method", "ratio", "gained", "lost", "cut_off", "wrong_equation", "uncheckable", "equations_hold"]
CURVE_COLUMNS = ["method", "points", "area", "area_low", "area_high", "within_a_point", "within_low", "within_high"]
DRAWS = 2000  # resamples of a bootstrap
ORIGINAL = ("original", 1.0)
SHORTER = 0.01  # of the original's tokens: saving less is saving nothing


def compute_metrics(predictions: Iterable[Prediction], *, scorer: str, seed: int) -> pd.DataFrame:
    """One row a method and ratio, in METRIC_COLUMNS, from predictions; methods as METHODS lists them.

    accuracy is a fraction with its 95% Wilson interval, strictly graded; accuracy_by_reference the same
    answers by the reference's more lenient rule; chain_tokens the mean over problems; actual_ratio those
    tokens against the original's, with its 95% bootstrap interval (problems resampled); answer_tokens the
    mean of what was written from the answer on; cut_off the number of answers the budget ended;
    seconds_per_problem wall time at the evaluation's batch size. `scorer` names the importance that the
    adapter's training chains were pruned by, on tokenskip's rows only.

    Raises:
        InputError: no `original`, or one whose chains are empty, or that did not answer every problem.
    """
    from scipy.stats import binomtest

    table = pd.DataFrame(
        prediction.model_dump(exclude={"output", "chain"})
        | {"by_reference": is_correct_by_reference(prediction.output, prediction.answer)}
        for prediction in predictions
    )
    if table.empty or "original" not in set(table["method"]):
        raise InputError("no predictions of 'original': actual ratios are measured against it")
    original_tokens = table[table["method"] == "original"].set_index("id")["chain_tokens"]
    if not original_tokens.any():
        raise InputError("the original's chains are empty: actual ratios are measured against them")
    if strangers := sorted(set(table["id"]) - set(original_tokens.index)):
        raise InputError(f"problem '{strangers[0]}' was not answered by 'original'; finish the run first")
    rows = []
    for (method, ratio), group in table.groupby(["method", "ratio"], sort=False):
        correct, n = int(group["is_correct"].sum()), len(group)
        wilson = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
        # In the order of ids, as in `compare_methods`: whatever order they were answered in.
        lengths, drawn = group.set_index("id")["chain_tokens"].sort_index(), resample(n, seed)
        whole = original_tokens[lengths.index]
        low, high = interval((drawn @ lengths.to_numpy()) / (drawn @ whole.to_numpy()))
        rows.append(
            {
                "method": method,
                "ratio": ratio,
                "scorer": scorer if method == "tokenskip" else "",
                "n": n,
                "accuracy": round(correct / n, 4),
                "accuracy_low": round(wilson.low, 4),
                "accuracy_high": round(wilson.high, 4),
                "accuracy_by_reference": round(group["by_reference"].mean(), 4),
                "chain_tokens": round(lengths.mean(), 2),
                "actual_ratio": round(lengths.mean() / whole.mean(), 4),
                "actual_ratio_low": round(low, 4),
                "actual_ratio_high": round(high, 4),
                "answer_tokens": round(group["answer_tokens"].mean(), 2),
                "cut_off": int(group["cut_off"].sum()),
                "seconds_per_problem": round(group["seconds"].mean(), 4),
                "seed": seed,
            }
        )
    rows.sort(key=lambda row: (METHODS.index(row["method"]), -row["ratio"]))
    return pd.DataFrame(rows, columns=METRIC_COLUMNS)


def markdown_table(metrics: pd.DataFrame) -> str:
    """The metrics as the Markdown table of notebook 05 and the README."""
    columns = ["method", "ratio", "n", "accuracy % (95% interval)", "by the reference's rule", "chain tokens"]
    columns += ["actual ratio", "answer tokens", "cut off", "seconds a problem"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in metrics.itertuples():
        ratio = f"{row.ratio:.1f}" if row.method in RATIO_METHODS else ""
        accuracy = f"{100 * row.accuracy:.1f} ({100 * row.accuracy_low:.1f}-{100 * row.accuracy_high:.1f})"
        lines.append(
            f"| {row.method} | {ratio} | {row.n} | {accuracy} | {100 * row.accuracy_by_reference:.1f} "
            f"| {row.chain_tokens:.1f} | {row.actual_ratio:.2f} | {row.answer_tokens:.1f} | {row.cut_off} "
            f"| {row.seconds_per_problem:.2f} |"
        )
    return "\n".join(lines)


class Answers(NamedTuple):
    """Who answered what: P problems x M (method, ratio) pairs, each a mean over the seeds that are pooled."""

    correct: pd.DataFrame
    tokens: pd.DataFrame
    seeds: int


def pool_answers(runs: Sequence[Iterable[Prediction]]) -> Answers:
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
    return Answers(means["correct"].astype(float), means["tokens"].astype(float), len(tables))


def compare_methods(answers: Answers, *, seed: int = 0, against: tuple[str, float] = ORIGINAL) -> pd.DataFrame:
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


def summarise_curves(answers: Answers, *, seed: int = 0, points: float = 1.0) -> pd.DataFrame:
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


def pareto_front(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics that no other row beats: as accurate with fewer tokens, or more accurate with as many."""
    beaten = [
        (
            (metrics["accuracy"] >= row.accuracy)
            & (metrics["chain_tokens"] <= row.chain_tokens)
            & ((metrics["accuracy"] > row.accuracy) | (metrics["chain_tokens"] < row.chain_tokens))
        ).any()
        for row in metrics.itertuples()
    ]
    return metrics[~np.array(beaten, dtype=bool)].sort_values("chain_tokens")


def _resampled(answers: Answers, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """DRAWS x M sums of correct and tokens over problems drawn with replacement, the same ones for all.

    Sums, because those of whole numbers are exact: of one seed's answers a difference of nothing is 0, not 1e-16.
    """
    drawn = resample(len(answers.correct), seed)
    return drawn @ answers.correct.to_numpy(), drawn @ answers.tokens.to_numpy()


def resample(problems: int, seed: int) -> np.ndarray:
    """DRAWS x P: how often each problem is in a sample of as many, drawn with replacement; rows sum to P."""
    return np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=DRAWS)


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The middle 95% of draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


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


def ratio_control(rows: pd.DataFrame) -> float:
    """How much of a change in the request an adapter follows: 1 is full control, 0 a marker that nobody reads.

    The slope of the straight line through actual against requested ratios below 1.0, since a request
    for 1.0 has no marker: what the marker alone brings about is no control.

    Args:
        rows: columns ratio and actual_ratio, one adapter; NaN where fewer than two requests are below 1.0.
    """
    asked = rows[rows["ratio"] < 1]
    return float(np.polyfit(asked["ratio"], asked["actual_ratio"], 1)[0]) if asked["ratio"].nunique() > 1 else np.nan


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
