"""Methods compared on the same problems: paired differences, and why answers are lost."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

import numpy as np
import pandas as pd

from tokenskip_lib.core.records import InputError, Prediction
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.evaluation.tables import row_table
from tokenskip_lib.problems.arithmetic import check_equations

ORIGINAL = ("original", 1.0)


@dataclass(frozen=True)
class ComparisonRow:
    """One method and ratio against another, the base, on the same problems.

    Attributes:
        ratio: the method's level: for a method that scales the adapter, the strength.
        n: problems.
        difference: in accuracy (a fraction), with its 95% paired bootstrap interval over problems.
        gained: problems that this method solves and the base does not.
        lost: problems that the base solves and this method does not.
        p_value: McNemar's exact test; missing if several seeds are pooled.
        actual_ratio: chain tokens divided by the original's (without an original, the base's), with its 95%
            bootstrap interval.
    """

    method: str
    ratio: float
    n: int
    difference: float
    difference_low: float
    difference_high: float
    gained: int
    lost: int
    p_value: float | None
    actual_ratio: float
    actual_ratio_low: float
    actual_ratio_high: float


@dataclass(frozen=True)
class LossRow:
    """Why one method at one ratio loses answers.

    Attributes:
        gained: problems that the method solves and the original does not.
        lost: problems that the original solves and the method does not; the four causes below add up to it.
        cut_off: lost, and the budget ended the answer.
        wrong_equation: of the others, those with a false equation in the chain.
        uncheckable: of the others, those without an equation that can be checked.
        equations_hold: of the others, those where all equations hold, so that something else is wrong.
    """

    method: str
    ratio: float
    gained: int
    lost: int
    cut_off: int
    wrong_equation: int
    uncheckable: int
    equations_hold: int


class Outcome(Protocol):
    """What a comparison reads of an answer; a Prediction is one."""

    @property
    def id(self) -> str: ...

    @property
    def method(self) -> str: ...

    @property
    def ratio(self) -> float: ...

    @property
    def is_correct(self) -> bool: ...

    @property
    def chain_tokens(self) -> int: ...


class PairedOutcomes(NamedTuple):
    """The outcomes of M (method, ratio) pairs on the same P problems.

    Attributes:
        correct: P x M, 1.0 for a right answer; the mean over seeds if several are pooled.
        tokens: P x M, chain tokens; the mean over seeds as well.
        seeds: how many seeds are pooled.
    """

    correct: pd.DataFrame
    tokens: pd.DataFrame
    seeds: int

    @property
    def pairs(self) -> list[tuple[str, float]]:
        """The (method, ratio) of each column."""
        return cast(list[tuple[str, float]], list(self.correct.columns))

    def resampled(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """DRAWS x M sums of correct and of tokens, over the same resampled problems.

        They are sums because sums of whole numbers are exact: equal answers then differ by 0 and not by 1e-16.
        """
        drawn = resample(len(self.correct), seed)
        return drawn @ self.correct.to_numpy(), drawn @ self.tokens.to_numpy()


def pair_outcomes(runs: Sequence[Iterable[Outcome]], *, base: tuple[str, float] = ORIGINAL) -> PairedOutcomes:
    """Put the predictions of one run, or of several seeds on the same problems, side by side.

    A problem that several seeds answer counts as one observation. So the intervals, which resample problems,
    do not get narrower when the same problems are answered again.

    Args:
        base: (method, ratio) that the others will be compared with.

    Raises:
        InputError: there are no answers of the base, or a problem lacks an answer by some method or seed.
    """
    tables = []
    for number, predictions in enumerate(runs):
        rows = [(p.id, p.method, p.ratio, p.is_correct, p.chain_tokens) for p in predictions]
        table = pd.DataFrame(rows, columns=["id", "method", "ratio", "correct", "tokens"])
        tables.append(table.assign(seed=number))
    table = pd.concat(tables)
    keys = ["id", "method", "ratio"]
    counts = table.groupby(keys, sort=False).size().unstack(["method", "ratio"])
    if base not in counts.columns:
        raise InputError(f"no predictions of '{base[0]}': methods are compared with it")
    missing = counts[counts.lt(len(tables)).any(axis=1) | counts.isna().any(axis=1)]
    if len(missing):
        raise InputError(
            f"problem '{missing.index[0]}' was not answered by every method and seed; finish the run first"
        )
    means = table.groupby(keys, sort=False)[["correct", "tokens"]].mean().unstack(["method", "ratio"])
    correct, tokens = (cast(pd.DataFrame, means[name]).astype(float) for name in ("correct", "tokens"))
    return PairedOutcomes(correct, tokens, len(tables))


def compare_methods(answers: PairedOutcomes, *, seed: int = 0, against: tuple[str, float] = ORIGINAL) -> pd.DataFrame:
    """Compare every method and ratio with one of them: the columns of ComparisonRow.

    Args:
        seed: of the bootstrap.
        against: (method, ratio) of the base.

    Raises:
        InputError: there are no answers of the base.

    Source: McNemar (1947), doi:10.1007/BF02295996; Efron and Tibshirani (1993) for the bootstrap.
    """
    from scipy.stats import binomtest

    pairs = answers.pairs
    if against not in pairs:
        raise InputError(f"no predictions of '{against[0]}' at {against[1]:g}: there is nothing to compare with")
    base, original = pairs.index(against), pairs.index(ORIGINAL if ORIGINAL in pairs else against)
    right, lengths = answers.correct.to_numpy(), answers.tokens.to_numpy()
    correct, tokens = answers.resampled(seed)
    rows = []
    for number, (method, ratio) in enumerate(pairs):
        if number == base:
            continue
        ours, theirs = right[:, number], right[:, base]
        gained, lost = int((ours > theirs).sum()), int((ours < theirs).sum())
        p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        low, high = interval((correct[:, number] - correct[:, base]) / len(ours))
        ratio_low, ratio_high = interval(tokens[:, number] / tokens[:, original])
        rows.append(
            ComparisonRow(
                method=method,
                ratio=ratio,
                n=len(ours),
                difference=float(ours.mean() - theirs.mean()),
                difference_low=low,
                difference_high=high,
                gained=gained,
                lost=lost,
                p_value=p_value if answers.seeds == 1 else None,
                actual_ratio=float(lengths[:, number].mean() / lengths[:, original].mean()),
                actual_ratio_low=ratio_low,
                actual_ratio_high=ratio_high,
            )
        )
    return row_table(rows, ComparisonRow)


def explain_losses(predictions: Sequence[Prediction]) -> pd.DataFrame:
    """Why each method and ratio loses answers that the original gets right: the columns of LossRow.

    Raises:
        InputError: the original did not answer a problem that another method answered.
    """
    causes = {"wrong equation": "wrong_equation", "uncheckable equation": "uncheckable", "clean": "equations_hold"}
    solved = {p.id: p.is_correct for p in predictions if p.method == "original"}
    counts: dict[tuple[str, float], Counter[str]] = {}
    for p in predictions:
        if p.method == "original":
            continue
        if p.id not in solved:
            raise InputError(f"problem '{p.id}' was not answered by 'original'; finish the run first")
        count = counts.setdefault((p.method, p.ratio), Counter())
        count["gained"] += p.is_correct and not solved[p.id]
        if solved[p.id] and not p.is_correct:
            count["lost"] += 1
            count["cut_off" if p.cut_off else causes[check_equations(p.chain)]] += 1
    names = ("gained", "lost", "cut_off", *causes.values())
    rows = [LossRow(method, ratio, *(count[name] for name in names)) for (method, ratio), count in counts.items()]
    return row_table(rows, LossRow)
