"""The paper's own numbers, to compare a run with. Each row says where it was published.

Source: TokenSkip (arXiv:2502.12067); tokenskip_lib/evaluation/paper_results.csv.
"""

from importlib import resources

import numpy as np
import pandas as pd

from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.records import InputError

# Problems behind each of the paper's accuracies; its tables give no intervals.
PROBLEMS = {"gsm8k": 1319, "math500": 500, "mmlu-stem": 3018, "commonsense-qa": 1221}


def published_rows(profile: Profile) -> pd.DataFrame:
    """The paper's rows for a profile's model, training and test problems; none if it repeats no published run.

    Returns:
        source, method, ratio, n, accuracy (a fraction), chain_tokens, actual_ratio, latency_seconds.
    """
    rows = _read_results()
    wanted = {"model": profile.target.model, "trained_on": profile.problems.train, "problems": profile.problems.test}
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    if profile.evaluation.split != "test":
        rows = rows.iloc[:0]
    rows = rows.assign(accuracy=rows["accuracy"] / 100, n=rows["problems"].map(PROBLEMS))
    columns = ["source", "method", "ratio", "n", "accuracy", "chain_tokens", "actual_ratio", "latency_seconds"]
    return rows[columns].reset_index(drop=True)


def published_speedups() -> pd.DataFrame:
    """How much faster TokenSkip answered than the original, for all runs whose latencies the paper states.

    Returns:
        Columns run (model and problems, as one label), ratio, and speedup (the original's seconds divided by the
        row's).
    """
    rows = _read_results().dropna(subset="latency_seconds")
    rows = rows.assign(run=rows["model"].str.split("/").str[-1] + ", " + rows["problems"])
    original = rows[rows["method"] == "original"].set_index("run")["latency_seconds"]
    tokenskip = rows[rows["method"] == "tokenskip"]
    speedup = tokenskip["run"].map(original) / tokenskip["latency_seconds"]
    return tokenskip.assign(speedup=speedup)[["run", "ratio", "speedup"]].reset_index(drop=True)


def beside_the_paper(metrics: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """A run's metrics next to the published rows of the same method and ratio.

    Accuracy is graded by the rule of the authors' code on both sides, as the published numbers are.

    Returns:
        Columns method, ratio, accuracy and chain_tokens of both (`_here`, `_paper`); points (difference in
        accuracy, in percentage points); tokens (difference in chain tokens, as a fraction of the paper's);
        and out_of_noise: whether the accuracies differ by more than 95% of pairs of independent samples of
        their sizes would.
    """
    columns = ["method", "ratio", "n", "accuracy", "chain_tokens"]
    here = metrics.assign(accuracy=metrics["accuracy_by_reference"])
    both = here[columns].merge(published[columns], on=["method", "ratio"], suffixes=("_here", "_paper"))
    variance = sum(
        both[f"accuracy_{side}"] * (1 - both[f"accuracy_{side}"]) / both[f"n_{side}"] for side in ("here", "paper")
    )
    difference = both["accuracy_here"] - both["accuracy_paper"]
    return both.drop(columns=["n_here", "n_paper"]).assign(
        points=100 * difference,
        tokens=both["chain_tokens_here"] / both["chain_tokens_paper"] - 1,
        out_of_noise=difference.abs() > 1.96 * np.sqrt(variance),
    )


def _read_results() -> pd.DataFrame:
    file = resources.files("tokenskip_lib.evaluation") / "paper_results.csv"
    if not file.is_file():
        raise InputError(f"{file}: the paper's results are missing; restore them from the repository")
    with file.open(encoding="utf-8") as rows:
        return pd.read_csv(rows, keep_default_na=False, na_values={"actual_ratio": [""], "latency_seconds": [""]})
