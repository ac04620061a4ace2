"""A ratio for each problem: more tokens for problems that look hard, the same tokens on average.

One adapter answers at every ratio, so the choice needs no extra tokens or passes. Before the answer only the
question is known. A small predictor reads it; it is fitted on problems that are neither trained nor tested on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.records import InputError, Prediction, Problem
from tokenskip_lib.evaluation.comparison import pair_outcomes
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.evaluation.tables import column_names, row_table
from tokenskip_lib.problems.arithmetic import numbers_in

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


FEATURES = ["words", "sentences", "numbers", "largest_number", "fractions", "compared"]


@dataclass(frozen=True)
class PolicyRow:
    """The policy against one ratio for all problems.

    The last four are missing (NaN) if no fixed ratio spends as few, or as many, tokens as the policy.

    Attributes:
        ratio: the fixed ratio whose tokens the policy may spend on average.
        tokens: mean chain tokens that the policy spends.
        accuracy: the policy's, a fraction.
        fixed_accuracy: accuracy of fixed ratios at the same tokens, interpolated between them.
        difference: accuracy less fixed_accuracy, with its 95% bootstrap interval over problems.
    """

    ratio: float
    tokens: float
    accuracy: float
    fixed_accuracy: float = float("nan")
    difference: float = float("nan")
    difference_low: float = float("nan")
    difference_high: float = float("nan")


POLICY_COLUMNS = column_names(PolicyRow)


class Policy(NamedTuple):
    """Two predictors from (question, ratio): the probability of a right answer, and the chain's tokens."""

    correct: Pipeline
    tokens: Pipeline
    ratios: tuple[float, ...]


def question_features(question: str) -> list[float]:
    """What can be read off a question before it is answered, in the order of FEATURES."""
    numbers = numbers_in(question)
    return [
        float(len(question.split())),
        float(len(re.findall(r"[.?!](?:\s|$)", question))),
        float(len(numbers)),
        float(np.log1p(max(numbers, default=0.0))),
        float(len(re.findall(r"%|\d/\d|\b(?:half|third|quarter|percent)\b", question, re.IGNORECASE))),
        float(len(re.findall(r"\b(?:more|less|fewer|times|twice|than)\b", question, re.IGNORECASE))),
    ]


def fit_policy(problems: Sequence[Problem], predictions: Iterable[Prediction]) -> Policy:
    """Fit both predictors on tokenskip's answers to problems of a validation split.

    Raises:
        InputError: there are answers at fewer than two ratios, or all are right, or all are wrong.
    """
    need("sklearn", "figures")
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    questions = {problem.id: question_features(problem.question) for problem in problems}
    rows = [p for p in predictions if p.method == "tokenskip"]
    ratios = tuple(sorted({p.ratio for p in rows}))
    right = np.array([p.is_correct for p in rows])
    if len(ratios) < 2 or right.all() or not right.any():
        raise InputError("a ratio for each problem needs answers at two ratios or more, some right and some wrong")
    inputs = np.array([[*questions[p.id], p.ratio] for p in rows])

    def pipeline(model):
        return make_pipeline(StandardScaler(), PolynomialFeatures(2, interaction_only=True, include_bias=False), model)

    correct = pipeline(LogisticRegression(C=0.1, max_iter=1000)).fit(inputs, right)
    tokens = pipeline(LinearRegression()).fit(inputs, np.array([p.chain_tokens for p in rows]))
    return Policy(correct, tokens, ratios)


def choose_ratios(policy: Policy, problems: Sequence[Problem], ratio: float) -> list[float]:
    """A ratio for each problem, such that all together take the tokens that `ratio` for all would take.

    Each problem gets the ratio with the largest predicted accuracy, less a price for its predicted tokens.
    The price is the one at which the predicted tokens meet the budget.

    Args:
        problems: at least one.
        ratio: one of the policy's ratios.

    Returns:
        One ratio a problem, in the order of `problems`.

    Raises:
        InputError: there are no problems, or the policy was fitted without answers at this ratio.
    """
    if not problems:
        raise InputError("a ratio for each problem needs problems; there are none")
    if ratio not in policy.ratios:
        known = ", ".join(f"{value:g}" for value in policy.ratios)
        raise InputError(f"the policy was fitted on answers at {known}, not at {ratio:g}")
    features = np.array([question_features(problem.question) for problem in problems])
    inputs = [np.column_stack([features, np.full(len(features), value)]) for value in policy.ratios]
    correct = np.column_stack([policy.correct.predict_proba(rows)[:, 1] for rows in inputs])
    tokens = np.column_stack([policy.tokens.predict(rows) for rows in inputs])
    budget = tokens[:, policy.ratios.index(ratio)].mean()
    everyone, low, high = np.arange(len(features)), -10.0, 10.0
    for _ in range(60):  # a higher price buys fewer tokens
        price = (low + high) / 2
        chosen = (correct - price * tokens).argmax(axis=1)
        low, high = (price, high) if tokens[everyone, chosen].mean() > budget else (low, price)
    chosen, dearer = ((correct - price * tokens).argmax(axis=1) for price in (high, low))
    # At one price many problems may change their ratio at once: only as many do as the budget has room for.
    extra = tokens[everyone, dearer] - tokens[everyone, chosen]
    room = budget * len(features) - tokens[everyone, chosen].sum()
    for number in np.flatnonzero(extra > 0):
        if extra[number] <= room:
            chosen[number], room = dearer[number], room - extra[number]
    return [policy.ratios[number] for number in chosen]


def compare_policy(
    policy: Policy, problems: Sequence[Problem], predictions: Iterable[Prediction], *, seed: int = 0
) -> pd.DataFrame:
    """The policy against one ratio for all, on problems that it was not fitted on: the columns of PolicyRow.

    No new answers are needed: each problem was already answered at every ratio, so at its chosen one too.

    Args:
        problems: those to choose ratios for, at least one.
        predictions: of `original` and `tokenskip` on these problems.
        seed: of the bootstrap.

    Raises:
        InputError: there are no problems, one has no answer, or no ratio of the policy was answered.
    """
    answers = pair_outcomes([predictions])
    if strangers := [problem.id for problem in problems if problem.id not in answers.correct.index]:
        raise InputError(f"problem '{strangers[0]}' has no answer; finish the run first")
    answered = {ratio for method, ratio in answers.pairs if method == "tokenskip"}
    ratios = sorted(set(policy.ratios) & answered)
    if not problems or not ratios:
        missing = "answers of 'tokenskip' at the policy's ratios" if problems else "problems"
        raise InputError(f"a ratio for each problem needs {missing}; there are none")
    ids, asked = [problem.id for problem in problems], [("tokenskip", ratio) for ratio in ratios]
    correct, tokens = (table.loc[ids][asked].to_numpy() for table in (answers.correct, answers.tokens))
    policy = policy._replace(ratios=tuple(ratios))
    counts = np.vstack([np.ones(len(problems)), resample(len(problems), seed)])
    curve = [counts @ table / len(problems) for table in (tokens, correct)]
    rows = []
    for ratio in ratios:
        chosen = choose_ratios(policy, problems, ratio)
        places = (range(len(problems)), [ratios.index(value) for value in chosen])
        spent, right = (counts @ table[places] / len(problems) for table in (tokens, correct))
        row = PolicyRow(ratio, tokens=spent[0], accuracy=right[0])
        if curve[0][0].min() - 1e-9 <= spent[0] <= curve[0][0].max() + 1e-9:
            fixed = np.array([_interpolate(*draw) for draw in zip(spent, *curve, strict=True)])
            low, high = interval((right - fixed)[1:])
            difference = right[0] - fixed[0]
            row = replace(row, fixed_accuracy=fixed[0], difference=difference, difference_low=low, difference_high=high)
        rows.append(row)
    return row_table(rows, PolicyRow)


def _interpolate(at: float, tokens: np.ndarray, accuracy: np.ndarray) -> float:
    order = np.argsort(tokens)
    return float(np.interp(at, tokens[order], accuracy[order]))
