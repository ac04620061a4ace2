"""Predictions -> metrics, with intervals, and the table of them for readers."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import cast

import pandas as pd

from tokenskip_lib.core.records import InputError, Prediction
from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.evaluation.statistics import interval, resample, wilson
from tokenskip_lib.evaluation.tables import column_names, row_table
from tokenskip_lib.problems.grading import is_correct_by_reference


@dataclass(frozen=True)
class MetricRow:
    """One method at one level: a row of metrics.csv.

    Attributes:
        method: its name.
        ratio: the requested one; 1.0 if the method takes none. For a method that scales the adapter, the strength.
        scorer: whose importance the adapter's training chains were pruned by; "" if the method uses no adapter.
        n: problems answered.
        accuracy: fraction right, graded strictly, with its 95% Wilson interval.
        accuracy_by_reference: fraction right by the more lenient rule of the authors' code, same answers.
        chain_tokens: mean over problems; of a method that calls twice, the first call's tokens are among them.
        actual_ratio: chain tokens divided by the original's, with its 95% bootstrap interval over problems.
        answer_tokens: mean number of tokens from the stated answer on.
        cut_off: answers that the budget ended.
        seconds_per_problem: wall time at the evaluation's batch size.
        seed: of the bootstrap.
    """

    method: str
    ratio: float
    scorer: str
    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    accuracy_by_reference: float
    chain_tokens: float
    actual_ratio: float
    actual_ratio_low: float
    actual_ratio_high: float
    answer_tokens: float
    cut_off: int
    seconds_per_problem: float
    seed: int


METRIC_COLUMNS = column_names(MetricRow)


def compute_metrics(predictions: Iterable[Prediction], *, scorer: str, seed: int) -> pd.DataFrame:
    """The metrics of every method and ratio: the columns of MetricRow.

    Methods come in the order of METHODS, those it does not know last; ratios descend.

    Args:
        predictions: of every method on the same problems, the original among them.
        scorer: whose importance the adapter's training chains were pruned by.
        seed: of the bootstrap, and of the rows' column `seed`.

    Raises:
        InputError: there is no `original`, its chains are empty, or it did not answer every problem.
    """
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
    for pair, group in table.groupby(["method", "ratio"], sort=False):
        method, ratio = cast(tuple[str, float], pair)
        correct, n = int(group["is_correct"].sum()), len(group)
        accuracy_low, accuracy_high = wilson(correct, n)
        # In the order of ids, as in `compare_methods`: the order of answers must not change the interval.
        lengths, drawn = group.set_index("id")["chain_tokens"].sort_index(), resample(n, seed)
        whole = original_tokens[lengths.index]
        low, high = interval((drawn @ lengths.to_numpy()) / (drawn @ whole.to_numpy()))
        rows.append(
            MetricRow(
                method=method,
                ratio=ratio,
                scorer=scorer if method in METHODS and METHODS[method].uses_adapter else "",
                n=n,
                accuracy=round(correct / n, 4),
                accuracy_low=round(accuracy_low, 4),
                accuracy_high=round(accuracy_high, 4),
                accuracy_by_reference=round(group["by_reference"].mean(), 4),
                chain_tokens=round(lengths.mean(), 2),
                actual_ratio=round(lengths.mean() / whole.mean(), 4),
                actual_ratio_low=round(low, 4),
                actual_ratio_high=round(high, 4),
                answer_tokens=round(group["answer_tokens"].mean(), 2),
                cut_off=int(group["cut_off"].sum()),
                seconds_per_problem=round(group["seconds"].mean(), 4),
                seed=seed,
            )
        )
    order = list(dict.fromkeys([*METHODS, *(row.method for row in rows)]))
    rows.sort(key=lambda row: (order.index(row.method), -row.ratio))
    return row_table(rows, MetricRow)


def markdown_table(metrics: pd.DataFrame) -> str:
    """The metrics as the Markdown table of notebook 05 and the README.

    It is written here because `DataFrame.to_markdown` needs another package, tabulate.

    Args:
        metrics: the columns of MetricRow.
    """
    columns = ["method", "ratio", "n", "accuracy % (95% interval)", "by the authors' rule", "chain tokens"]
    columns += ["actual ratio", "answer tokens", "cut off", "seconds a problem"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in metrics.to_dict("records"):
        name = row["method"]
        known = METHODS.get(name)
        level = known.say_level(row["ratio"]) if known else str(row["ratio"]) if row["ratio"] != 1 else ""
        low, middle, high = (100 * row[column] for column in ("accuracy_low", "accuracy", "accuracy_high"))
        cells = [
            escape(name).replace("|", r"\|"),
            level,
            str(row["n"]),
            f"{middle:.1f} ({low:.1f}-{high:.1f})",
            f"{100 * row['accuracy_by_reference']:.1f}",
            f"{row['chain_tokens']:.1f}",
            f"{row['actual_ratio']:.2f}",
            f"{row['answer_tokens']:.1f}",
            str(row["cut_off"]),
            f"{row['seconds_per_problem']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
