"""A ratio for each problem: more tokens for problems that look hard, at the same tokens on average.

One adapter answers at every ratio, so the choice costs nothing at inference. What is known before an
answer is the question alone; a small predictor is fitted on problems that are neither trained nor tested on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from tokenskip_lib.core.records import InputError, Prediction, Problem
from tokenskip_lib.evaluation.comparison import pair_outcomes
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.problems.arithmetic import numbers_in

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


FEATURES = ["words", "sentences", "numbers", "largest_number", "fractions", "compared"]
POLICY_COLUMNS = ["ratio", "tokens", "accuracy", "fixed_accuracy", "difference", "difference_low", "difference_high"]


class Policy(NamedTuple):
    """Two predictors of (question, ratio): the probability of a right answer, and the chain's tokens."""

    correct: Pipeline
    tokens: Pipeline
    ratios: tuple[float, ...]


def question_features(question: str) -> list[float]:
    """What a question shows before it is answered, in the order of FEATURES."""
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
        InputError: fewer than two ratios, or answers that are all right or all wrong.
    """
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
    """A ratio for each problem, in their order, at the tokens that `ratio` for all would take on average.

    Each problem gets the ratio with the largest predicted accuracy less a price for its predicted tokens;
    the price is set so that the predicted tokens meet the budget.
    """
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
    # At one price many problems may change their mind at once: as many do as the budget has room for.
    extra = tokens[everyone, dearer] - tokens[everyone, chosen]
    room = budget * len(features) - tokens[everyone, chosen].sum()
    for number in np.flatnonzero(extra > 0):
        if extra[number] <= room:
            chosen[number], room = dearer[number], room - extra[number]
    return [policy.ratios[number] for number in chosen]


def compare_policy(
    policy: Policy, problems: Sequence[Problem], predictions: Iterable[Prediction], *, seed: int = 0
) -> pd.DataFrame:
    """The policy against one ratio for all, on problems it was not fitted on; a row a fixed ratio, in POLICY_COLUMNS.

    Each problem's answer at its chosen ratio is one that was given anyway. tokens and accuracy are the
    policy's; fixed_accuracy is what the fixed ratios' own curve, interpolated, has at those tokens;
    difference is in accuracy, with its 95% bootstrap interval (problems resampled). The last four are
    missing where the curve does not reach those tokens.
    """
    answers = pair_outcomes([predictions])
    correct, tokens = (table["tokenskip"].loc[[p.id for p in problems]] for table in (answers.correct, answers.tokens))
    ratios = sorted(set(policy.ratios) & set(correct.columns))
    policy = policy._replace(ratios=tuple(ratios))
    counts = np.vstack([np.ones(len(problems)), resample(len(problems), seed)])
    curve = [counts @ table[ratios].to_numpy() / len(problems) for table in (tokens, correct)]
    rows = []
    for ratio in ratios:
        chosen = choose_ratios(policy, problems, ratio)
        places = (range(len(problems)), [correct.columns.get_loc(value) for value in chosen])
        spent, right = (counts @ table.to_numpy()[places] / len(problems) for table in (tokens, correct))
        rows.append([ratio, spent[0], right[0]] + 4 * [np.nan])
        if curve[0][0].min() - 1e-9 <= spent[0] <= curve[0][0].max() + 1e-9:
            fixed = np.array([_interpolate(*draw) for draw in zip(spent, *curve, strict=True)])
            rows[-1][3:] = [fixed[0], right[0] - fixed[0], *interval((right - fixed)[1:])]
    return pd.DataFrame(rows, columns=POLICY_COLUMNS)


def _interpolate(at: float, tokens: np.ndarray, accuracy: np.ndarray) -> float:
    order = np.argsort(tokens)
    return float(np.interp(at, tokens[order], accuracy[order]))
