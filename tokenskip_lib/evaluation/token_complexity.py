"""Token complexity: the fewest tokens with which each problem is still solved, and what choosing by it would reach.

The oracle knows the verdict of every answer and picks one answer for each problem. It is an upper bound that no
predictor reaches: it picks with hindsight, so it also collects answers that are right by luck. To show how much that
is, the same oracle picks after each problem's verdicts are shuffled over its ratios. Then no ratio is better for any
problem, and all that the oracle wins over one ratio for all problems is hindsight. Both oracles end at the same
accuracy, since shuffling leaves each problem as many right answers as it had: they can differ in tokens alone.

Source: Lee, Che and Peng (arXiv:2503.01141) for the term and for the oracle. They estimate a threshold for each
problem from many prompts; here it is the shortest right answer.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.comparison import PairedOutcomes
from tokenskip_lib.evaluation.statistics import interval, resample, wilson
from tokenskip_lib.evaluation.tables import row_table

ONE_RATIO, ORACLE, SHUFFLED = "one ratio for all", "oracle", "oracle, verdicts shuffled"
SHUFFLES = 500
POINTS = 12  # of the oracle's curve, beside those at the fixed ratios


@dataclass(frozen=True)
class ComplexityRow:
    """One problem: a row of token_complexity.csv.

    Attributes:
        tokens: chain tokens of its shortest right answer; missing if no answer is right.
        ratio: the ratio of this answer.
        shortest: chain tokens of its shortest answer, right or wrong.
        asked: ratios at which it was answered.
        solved: ratios at which the answer is right.
        longer_wrong: wrong answers that are longer than the shortest right one; 0 if more tokens never hurt.
    """

    id: str
    tokens: float
    ratio: float
    shortest: float
    asked: int
    solved: int
    longer_wrong: int


@dataclass(frozen=True)
class ChoiceRow:
    """What one way to choose ratios reaches with so many tokens: a row of oracle.csv.

    Attributes:
        choice: ONE_RATIO, ORACLE or SHUFFLED.
        ratio: the fixed ratio whose tokens may be spent; missing at the other points of a curve.
        tokens: mean chain tokens that may be spent.
        accuracy: a fraction, with its 95% interval: Wilson's for one ratio, the bootstrap's over problems for the
            oracle. After shuffling it is the mean over shuffles, with the range of their middle 95%.
    """

    choice: str
    ratio: float
    tokens: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def token_complexity(answers: PairedOutcomes, method: str = "tokenskip") -> pd.DataFrame:
    """The fewest tokens with which a method still solves each problem: the columns of ComplexityRow.

    Args:
        answers: of one run.
        method: the one whose ratios are taken.

    Raises:
        InputError: the method has not answered.
    """
    ratios, right, lengths = _answers(answers, method)
    rows = []
    for problem, verdicts, tokens in zip(answers.correct.index, right, lengths, strict=True):
        fewest = tokens[verdicts].min(initial=np.inf)
        at = np.flatnonzero(verdicts & (tokens == fewest))
        rows.append(
            ComplexityRow(
                id=str(problem),
                tokens=float(fewest) if len(at) else float("nan"),
                ratio=ratios[at[0]] if len(at) else float("nan"),
                shortest=float(tokens.min()),
                asked=len(ratios),
                solved=int(verdicts.sum()),
                longer_wrong=int((~verdicts & (tokens > fewest)).sum()),
            )
        )
    return row_table(rows, ComplexityRow)


def compare_with_oracle(answers: PairedOutcomes, *, seed: int = 0, method: str = "tokenskip") -> pd.DataFrame:
    """One ratio for all problems, the oracle, and the oracle after shuffling: the columns of ChoiceRow.

    Args:
        answers: of one run.
        seed: of the bootstrap and of the shuffles.
        method: the one whose ratios are chosen from.

    Raises:
        InputError: the method has not answered.
    """
    ratios, right, lengths = _answers(answers, method)
    problems = len(right)
    counts = np.vstack([np.ones(problems), resample(problems, seed)])
    start, end = _ends(right, lengths, counts)
    along = np.linspace(0, 1, POINTS)
    budgets = np.column_stack([counts @ lengths, start[:, None] + np.outer(end - start, along)])
    reached = oracle_accuracy(right, lengths, counts, budgets)
    generator = np.random.default_rng(seed)
    shuffled = [generator.permuted(right, axis=1) for _ in range(SHUFFLES)]
    by_chance = np.vstack([oracle_accuracy(verdicts, lengths, counts[:1], budgets[:1]) for verdicts in shuffled])
    rows = []
    for number, tokens in enumerate(budgets[0] / problems):
        ratio = float("nan")
        if number < len(ratios):
            ratio, correct = ratios[number], int(right[:, number].sum())
            rows.append(ChoiceRow(ONE_RATIO, ratio, tokens, correct / problems, *wilson(correct, problems)))
        accuracies, chances = reached[:, number], by_chance[:, number]
        rows.append(ChoiceRow(ORACLE, ratio, tokens, accuracies[0], *interval(accuracies[1:])))
        rows.append(ChoiceRow(SHUFFLED, ratio, tokens, chances.mean(), *interval(chances)))
    return row_table(rows, ChoiceRow)


def oracle_accuracy(right: np.ndarray, lengths: np.ndarray, counts: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """The best accuracy that picking one answer for each problem reaches within a budget of tokens.

    Every problem has its shortest answer at least. Where this is wrong, the shortest right one costs some tokens
    more; the cheapest of these exchanges are made first, which is optimal because each wins one problem.

    Args:
        right: P x K verdicts, a column for each ratio.
        lengths: P x K tokens.
        counts: D x P, how often each problem is in a draw.
        budgets: D x B, the tokens of all answers of a draw together.

    Returns:
        D x B accuracies; 0 where the budget does not pay for the shortest answers.

    Example:
        >>> right, lengths = np.array([[True, True], [False, True]]), np.array([[5, 9], [5, 9]])
        >>> oracle_accuracy(right, lengths, np.ones((1, 2)), np.array([[9, 10, 14]])).tolist()
        [[0.0, 0.5, 1.0]]
    """
    solvable, extra = _exchanges(right, lengths)
    shortest = (counts @ lengths.min(axis=1))[:, None]
    spent = shortest + np.cumsum(counts[:, solvable] * extra, axis=1)
    won = np.hstack([np.zeros((len(counts), 1)), np.cumsum(counts[:, solvable], axis=1)])
    limits = budgets + 1e-9
    made = np.array([np.searchsorted(row, limit, side="right") for row, limit in zip(spent, limits, strict=True)])
    return np.take_along_axis(won, made, axis=1) * (limits >= shortest) / counts.sum(axis=1)[:, None]


def _exchanges(right: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The problems that some answer solves, cheapest first, and what each costs above its shortest answer."""
    extra = np.where(right, lengths, np.inf).min(axis=1) - lengths.min(axis=1)
    order = np.argsort(extra, kind="stable")
    solvable = order[np.isfinite(extra[order])]
    return solvable, extra[solvable]


def _ends(right: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a draw with the shortest answers alone, and with the shortest right ones where there are any."""
    solvable, extra = _exchanges(right, lengths)
    start = counts @ lengths.min(axis=1)
    return start, start + counts[:, solvable] @ extra


def _answers(answers: PairedOutcomes, method: str) -> tuple[list[float], np.ndarray, np.ndarray]:
    """A method's K ratios, ascending, and P x K verdicts and chain tokens."""
    ratios = sorted(ratio for name, ratio in answers.pairs if name == method)
    if not ratios:
        raise InputError(f"token complexity needs answers of '{method}'; there are none")
    asked = [(method, ratio) for ratio in ratios]
    return ratios, answers.correct[asked].to_numpy() > 0.5, answers.tokens[asked].to_numpy()
