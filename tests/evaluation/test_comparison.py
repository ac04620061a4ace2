"""Methods compared: against formulas written out here, scipy and statsmodels; and why answers are lost."""

import math
import random

import numpy as np
import pandas as pd
import pytest

from tests.made_predictions import HALF, ORIGINAL, answers_of, prediction
from tokenskip_lib.core.records import InputError, Prediction
from tokenskip_lib.evaluation.comparison import (
    ComparisonRow,
    LossRow,
    compare_methods,
    explain_losses,
    pair_outcomes,
)
from tokenskip_lib.evaluation.tables import column_names


@pytest.fixture(scope="module")
def two_methods() -> list[Prediction]:
    """200 problems: the original solves 80%, the other 70%, not independently; about half the tokens."""
    generator = np.random.default_rng(3)
    original = generator.random(200) < 0.8
    half = np.where(generator.random(200) < 0.2, generator.random(200) < 0.5, original & (generator.random(200) < 0.95))
    lengths = generator.integers(40, 120, size=200)
    return answers_of({ORIGINAL: original, HALF: half}, {ORIGINAL: lengths, HALF: lengths // 2 + 3})


def test_mcnemar_is_statsmodels(two_methods):
    from statsmodels.stats.contingency_tables import mcnemar

    [row] = compare_methods(pair_outcomes([two_methods])).to_dict("records")
    right = {key: [p.is_correct for p in two_methods if (p.method, p.ratio) == key] for key in (ORIGINAL, HALF)}
    table = pd.crosstab(pd.Series(right[ORIGINAL]), pd.Series(right[HALF])).to_numpy()
    assert list(row) == column_names(ComparisonRow)
    assert row["p_value"] == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert (row["gained"], row["lost"]) == (table[0, 1], table[1, 0])
    assert row["difference"] == pytest.approx(np.mean(right[HALF]) - np.mean(right[ORIGINAL]))


def test_the_paired_bootstrap_is_scipys_to_its_own_noise(two_methods):
    from scipy.stats import bootstrap

    [row] = compare_methods(pair_outcomes([two_methods])).to_dict("records")
    right = {key: [p.is_correct for p in two_methods if (p.method, p.ratio) == key] for key in (ORIGINAL, HALF)}
    tokens = {key: [p.chain_tokens for p in two_methods if (p.method, p.ratio) == key] for key in (ORIGINAL, HALF)}

    def interval(statistic, *samples):
        made = bootstrap(samples, statistic, paired=True, n_resamples=9999, method="percentile", rng=1)
        return made.confidence_interval

    low, high = interval(lambda a, b, axis: a.mean(axis) - b.mean(axis), *map(np.array, (right[HALF], right[ORIGINAL])))
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((low, high), abs=0.006)
    low, high = interval(
        lambda a, b, axis: a.mean(axis) / b.mean(axis), *map(np.array, (tokens[HALF], tokens[ORIGINAL]))
    )
    assert (row["actual_ratio_low"], row["actual_ratio_high"]) == pytest.approx((low, high), abs=0.002)


def test_equal_answers_are_no_difference():
    same = [1, 0, 1, 1]
    [row] = compare_methods(pair_outcomes([answers_of({ORIGINAL: same, HALF: same})])).to_dict("records")
    assert (row["difference"], row["difference_low"], row["difference_high"], row["p_value"]) == (0, 0, 0, 1)


def test_methods_can_be_compared_with_another_than_the_original(two_methods):
    [row] = compare_methods(pair_outcomes([two_methods]), against=HALF).to_dict("records")
    [back] = compare_methods(pair_outcomes([two_methods])).to_dict("records")
    assert (row["method"], row["difference"]) == ("original", pytest.approx(-back["difference"]))
    assert (row["gained"], row["lost"], row["actual_ratio"]) == (back["lost"], back["gained"], 1.0)


def test_seeds_are_means_of_a_problem_and_asking_again_narrows_no_interval(two_methods):
    one, three = pair_outcomes([two_methods]), pair_outcomes([two_methods] * 3)
    [single], [pooled] = (compare_methods(a).to_dict("records") for a in (one, three))
    assert three.seeds == 3 and len(three.correct) == 200 and math.isnan(float(pooled["p_value"] or "nan"))
    for name in ("difference", "difference_low", "difference_high", "actual_ratio", "actual_ratio_low"):
        assert pooled[name] == pytest.approx(single[name])


def test_different_seeds_are_averaged():
    seeds = [answers_of({ORIGINAL: [1, 1], HALF: half}) for half in ([1, 0], [0, 0])]
    assert pair_outcomes(seeds).correct[HALF].tolist() == [0.5, 0.0]


def test_a_problem_that_somebody_did_not_answer_is_refused_by_name(two_methods):
    with pytest.raises(InputError, match="problem 'p7'"):
        pair_outcomes([[p for p in two_methods if p.key != ("p7", *HALF)]])
    with pytest.raises(InputError, match="problem 'p7'"):
        pair_outcomes([two_methods, [p for p in two_methods if p.key != ("p7", *HALF)]])
    with pytest.raises(InputError, match="original"):
        pair_outcomes([[p for p in two_methods if p.method != "original"]])


@pytest.mark.parametrize("seed", range(6))
def test_an_interval_ends_at_a_whole_problem_exactly(seed):
    # Shares summed problem by problem are 1e-16 off: an interval that reaches 0 would seem to end below it.
    problems = [(1, 1)] * 70 + [(1, 0)] * 2 + [(0, 1)] * 9 + [(0, 0)] * 39
    random.Random(seed).shuffle(problems)
    ours, theirs = map(list, zip(*problems, strict=True))
    [row] = compare_methods(
        pair_outcomes([answers_of({ORIGINAL: theirs, ("tokenskip", 0.5): ours})]), seed=seed
    ).to_dict("records")
    assert row["difference_high"] == -1 / 120


def test_lost_answers_are_told_apart_by_what_is_wrong_with_them():
    chains = {
        "wrong": "17-5=12\nTogether 17+12=39",
        "holds": "He 17-5=12",
        "words": "He has twelve",
        "torn": "17-5=13",
        "kept": "1+1=3",  # right all the same: nothing to explain
        "never": "1+1=3",  # the original fails here too
        "won": "1+1=2",
    }
    solved = {name: name not in ("never", "won") for name in chains}
    asked = [
        prediction(name, "tokenskip", 0.5, right=name in ("kept", "won"), cut_off=name == "torn").model_copy(
            update={"chain": chain}
        )
        for name, chain in chains.items()
    ]
    others = [p.model_copy(update={"method": "be_concise", "ratio": 1.0, "is_correct": solved[p.id]}) for p in asked]
    originals = [prediction(name, right=right) for name, right in solved.items()]
    table = explain_losses([*asked, *originals, *others])
    assert list(table.columns) == column_names(LossRow)
    assert table.to_numpy().tolist() == [["tokenskip", 0.5, 1, 4, 1, 1, 1, 1], ["be_concise", 1.0, 0, 0, 0, 0, 0, 0]]


def test_what_cannot_be_compared_is_refused_by_name(two_methods):
    with pytest.raises(InputError, match=r"no predictions of 'truncation' at 0\.5"):
        compare_methods(pair_outcomes([two_methods]), against=("truncation", 0.5))
    with pytest.raises(InputError, match="problem 'p7' was not answered by 'original'"):
        explain_losses([p for p in two_methods if p.key != ("p7", *ORIGINAL)])
