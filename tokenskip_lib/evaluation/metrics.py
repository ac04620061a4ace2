"""Predictions -> metrics with intervals, and comparisons between methods; all from records on disk."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from tokenskip_lib.core.records import InputError, Prediction
from tokenskip_lib.evaluation.methods import METHODS, RATIO_METHODS
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.problems.grading import is_correct_by_reference

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


def ratio_control(rows: pd.DataFrame) -> float:
    """How much of a change in the request an adapter follows: 1 is full control, 0 a marker that nobody reads.

    The slope of the straight line through actual against requested ratios below 1.0, since a request
    for 1.0 has no marker: what the marker alone brings about is no control.

    Args:
        rows: columns ratio and actual_ratio, one adapter; NaN where fewer than two requests are below 1.0.
    """
    asked = rows[rows["ratio"] < 1]
    return float(np.polyfit(asked["ratio"], asked["actual_ratio"], 1)[0]) if asked["ratio"].nunique() > 1 else np.nan
