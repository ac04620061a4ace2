"""The ledger of published rows: the paper's own, those of reproductions and of other methods. Each names its source.

`published_results.csv` has accuracies and tokens. `published_changes.csv` has what a source states only as a change
against its own original: it cannot be drawn on the same axes.
"""

from importlib import resources

import numpy as np
import pandas as pd

from tokenskip_lib.core.profiles import Profile, load_profile, names_profile
from tokenskip_lib.core.records import InputError

THE_PAPER = "TokenSkip paper"  # the publication that profiles repeat


def short_name(model: str) -> str:
    """The last part of a hub name or of a folder's path.

    Example:
        >>> short_name("Qwen/Qwen2.5-7B-Instruct")
        'Qwen2.5-7B-Instruct'
    """
    return model.rstrip("/").rpartition("/")[2]


def find_published(model: str, tested_on: str, trained_on: str | None = None) -> pd.DataFrame:
    """The ledger's rows of one model on one problem set, by any publication.

    Args:
        model: a hub name or a folder. Its last part decides, and case does not matter.
        tested_on: a problem set by our name.
        trained_on: the problem set of the adapter; a row that states none matches any. None: any row.

    Returns:
        The columns of published_results.csv, with accuracy as a fraction and `tokens` called chain_tokens as
        elsewhere; then publication, and label, the name of the row's curve in a figure.
    """
    rows = read_published()
    own = rows["model"].map(short_name).str.lower() == short_name(model).lower()
    rows = rows[own & (rows["tested_on"] == tested_on)]
    if trained_on is not None:
        rows = rows[rows["trained_on"].isin([trained_on, ""])]
    several = rows.loc[rows["trained_on"] != "", "trained_on"].nunique() > 1
    labels = [_label(row["method"], row["publication"], row["trained_on"] * several) for _, row in rows.iterrows()]
    labelled = rows.assign(label=pd.Series(labels, index=rows.index, dtype=object))
    # Two tables of the paper may state the same original.
    return labelled.drop_duplicates(["label", "ratio"]).reset_index(drop=True)


def published_rows(profile: Profile) -> pd.DataFrame:
    """The paper's rows for a profile's model, training and test problems; none if it repeats no published run.

    Returns:
        The columns of `find_published`.
    """
    rows = find_published(profile.target.model, profile.problems.test, profile.problems.train)
    judged = profile.evaluation.split == "test"
    return rows[(rows["publication"] == THE_PAPER) & judged].reset_index(drop=True)


def choose_published(against: str) -> tuple[pd.DataFrame, str, str]:
    """The ledger's rows by a profile's name or as MODEL/SET, with the model and the problem set they are of.

    Args:
        against: "qwen2.5-7b-gsm8k", "Qwen/Qwen2.5-7B-Instruct/gsm8k" or "Qwen2.5-7B-Instruct/gsm8k".

    Raises:
        InputError: nothing is published for it; the message lists what there is.

    Example:
        >>> rows, model, tested_on = choose_published("qwen3-1.7b/math500")
        >>> model, tested_on, sorted(rows["method"])
        ('Qwen/Qwen3-1.7B', 'math500', ['extra_cot', 'tokenskip'])
    """
    if names_profile(against):
        profile = load_profile(against)
        model, tested_on = profile.target.model, profile.problems.test
        rows = find_published(model, tested_on, profile.problems.train)
    else:
        model, _, tested_on = against.rpartition("/")
        tested_on = tested_on.lower()
        rows = find_published(model, tested_on)
        model = next(iter(rows["model"]), model)
    if rows.empty:
        known = read_published()[["model", "tested_on"]].drop_duplicates()
        names = [f"{short_name(model)}/{tested_on}" for model, tested_on in known.itertuples(index=False)]
        raise InputError(
            f"--against {against}: nothing is published for it; there is {', '.join(names)}, or a profile that repeats "
            "a published run"
        )
    return rows, model, tested_on


def published_changes(model: str, tested_on: str) -> pd.DataFrame:
    """What sources state of a model on a problem set only as changes against their own original.

    Sources name a model loosely: a row counts if `model` begins with the row's name.

    Returns:
        Columns model (as the source has it), tested_on, method, points (of accuracy), tokens_saved_percent, source.
    """
    rows = _read("published_changes.csv")
    own = [name != "" and short_name(model).lower().startswith(name.lower()) for name in rows["model"]]
    return rows[np.array(own) & (rows["tested_on"] == tested_on)].reset_index(drop=True)


def published_speedups() -> pd.DataFrame:
    """How much faster TokenSkip answered than the original, for all runs whose latencies the paper states.

    Returns:
        Columns run (model and problems, as one label), ratio, and speedup (the original's seconds divided by the
        row's).
    """
    rows = read_published().dropna(subset="latency_seconds")
    rows = rows.assign(run=rows["model"].map(short_name) + ", " + rows["tested_on"])
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


def read_published() -> pd.DataFrame:
    """The whole ledger: the columns of `find_published` without the label.

    A source begins with the publication's name; what and where it is follows in brackets.
    """
    rows = _read("published_results.csv").rename(columns={"tokens": "chain_tokens"})
    return rows.assign(accuracy=rows["accuracy"] / 100, publication=rows["source"].str.partition(" (")[0])


def _read(name: str) -> pd.DataFrame:
    file = resources.files("tokenskip_lib.evaluation") / name
    if not file.is_file():
        raise InputError(f"{file}: the published results are missing; restore them from the repository")
    numbers = ("ratio", "n", "actual_ratio", "latency_seconds", "tokens_saved_percent")
    with file.open(encoding="utf-8") as rows:
        return pd.read_csv(rows, keep_default_na=False, na_values={number: [""] for number in numbers})


def _label(method: str, publication: str, trained_on: str) -> str:
    trained = f" trained on {trained_on}" if trained_on and method == "tokenskip" else ""
    return f"{method}{trained}, {publication}"
