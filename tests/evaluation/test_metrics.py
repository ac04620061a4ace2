"""Evaluation: metrics and comparisons, against formulas written out here, scipy and statsmodels."""

import math
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.core.records import InputError, Prediction
from tokenskip_lib.evaluation.comparison import (
    ComparisonRow,
    LossRow,
    compare_methods,
    explain_losses,
    pair_outcomes,
)
from tokenskip_lib.evaluation.curves import CurveRow, pareto_front, ratio_control, summarise_curves
from tokenskip_lib.evaluation.metrics import (
    METRIC_COLUMNS,
    compute_metrics,
    markdown_table,
)
from tokenskip_lib.evaluation.tables import column_names


def _prediction(name, method="original", ratio=1.0, *, right=True, tokens=100, cut_off=False, seconds=1.0):
    return Prediction(
        id=name, method=method, ratio=ratio, answer="7", output="7" if right else "8", chain="c",
        prediction="7" if right else None, is_correct=right, chain_tokens=tokens, answer_tokens=9, max_new_tokens=256,
        cut_off=cut_off, seconds=seconds,
    )  # fmt: skip


def _wilson(correct: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    middle = (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(correct * (n - correct) / n + z * z / 4)
    return middle - half, middle + half


def test_metrics_are_those_of_the_definition():
    predictions = [
        *[_prediction(f"p{i}", right=i < 3, tokens=100 + 10 * i, seconds=2.0) for i in range(4)],
        *[_prediction(f"p{i}", "tokenskip", 0.5, right=i < 1, tokens=50, cut_off=i == 3) for i in range(4)],
        *[_prediction(f"p{i}", "tokenskip", 0.7, right=True, tokens=80 + i) for i in range(4)],
        *[_prediction(f"p{i}", "be_concise", right=False, tokens=115, seconds=i) for i in range(4)],
    ]
    table = compute_metrics(predictions, scorer="selective_context", seed=7)
    assert list(table.columns) == METRIC_COLUMNS
    rows = {(row["method"], row["ratio"]): row for row in table.to_dict("records")}
    assert list(rows) == [("original", 1.0), ("tokenskip", 0.7), ("tokenskip", 0.5), ("be_concise", 1.0)]
    expected = {
        ("original", 1.0): (3, 115.0, 1.0, 0, 2.0, ""),
        ("tokenskip", 0.5): (1, 50.0, 50 / 115, 1, 1.0, "selective_context"),
        ("tokenskip", 0.7): (4, 81.5, 81.5 / 115, 0, 1.0, "selective_context"),
        ("be_concise", 1.0): (0, 115.0, 1.0, 0, 1.5, ""),
    }
    for key, (correct, tokens, actual, cut_off, seconds, scorer) in expected.items():
        row, (low, high) = rows[key], _wilson(correct, 4)
        assert (row["n"], row["seed"], row["scorer"], row["cut_off"]) == (4, 7, scorer, cut_off)
        assert row["accuracy"] == correct / 4
        assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((low, high), abs=1e-4)
        assert row["chain_tokens"] == pytest.approx(tokens, abs=0.01)
        assert row["actual_ratio"] == pytest.approx(actual, abs=1e-4)
        assert row["seconds_per_problem"] == pytest.approx(seconds)


@given(st.integers(1, 400), st.data())
def test_the_interval_is_wilsons_and_holds_the_accuracy(n, data):
    correct = data.draw(st.integers(0, n))
    [row] = compute_metrics([_prediction(f"p{i}", right=i < correct) for i in range(n)], scorer="", seed=0).to_dict(
        "records"
    )
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(_wilson(correct, n), abs=1e-4)
    assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1


def test_metrics_do_not_depend_on_the_order_of_predictions_within_a_method():
    original = [_prediction(f"p{i}", right=i % 2 == 0, tokens=10 * i + 10) for i in range(6)]
    shorter = [_prediction(f"p{i}", "tokenskip", 0.5, tokens=5 + i * i) for i in range(6)]
    forward, backward = (compute_metrics([*original[::step], *shorter[::-step]], scorer="", seed=3) for step in (1, -1))
    assert forward.equals(backward)
    [compared] = compare_methods(pair_outcomes([original + shorter]), seed=3).to_dict("records")
    row = forward.iloc[1]
    for end in ("actual_ratio_low", "actual_ratio_high"):
        assert row[end] == round(compared[end], 4) != row["actual_ratio"]
    assert (forward["answer_tokens"] == 9).all()


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "no predictions of 'original'"),
        ([_prediction("a", tokens=0)], "chains are empty"),
        ([_prediction("a"), _prediction("b", "tokenskip", 0.5)], "problem 'b' was not answered by 'original'"),
    ],
)
def test_what_ratios_cannot_be_measured_against_is_refused(predictions, message):
    with pytest.raises(InputError, match=message):
        compute_metrics(predictions, scorer="", seed=0)


def test_metrics_without_the_original_are_refused():
    with pytest.raises(InputError, match="original"):
        compute_metrics([_prediction("a", "tokenskip", 0.5)], scorer="s", seed=0)


def test_the_table_for_readers_has_one_line_a_row_and_ratios_only_where_they_are_read():
    predictions = [
        *[_prediction(f"p{i}", right=i < 3) for i in range(4)],
        *[_prediction(f"p{i}", "tokenskip", 0.5, tokens=50) for i in range(4)],
    ]
    lines = markdown_table(compute_metrics(predictions, scorer="s", seed=0)).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| original |  | 4 | 75.0 (") and ") | 75.0 | 100.0 | 1.00 |" in lines[2]
    assert lines[3].startswith("| tokenskip | 0.5 | 4 | 100.0 (") and ") | 100.0 | 50.0 | 0.50 |" in lines[3]


def _answers(right: dict, tokens: dict | None = None) -> list[Prediction]:
    """Predictions from (method, ratio) -> a verdict a problem, and -> tokens a problem (100)."""
    lengths = tokens or {key: [100] * len(verdicts) for key, verdicts in right.items()}
    return [
        _prediction(f"p{i}", method, ratio, right=bool(verdict), tokens=lengths[method, ratio][i])
        for (method, ratio), verdicts in right.items()
        for i, verdict in enumerate(verdicts)
    ]  # fmt: skip


ORIGINAL, HALF = ("original", 1.0), ("tokenskip", 0.5)


@pytest.fixture(scope="module")
def two_methods() -> list[Prediction]:
    """200 problems: the original solves 80%, the other 70%, not independently; about half the tokens."""
    generator = np.random.default_rng(3)
    original = generator.random(200) < 0.8
    half = np.where(generator.random(200) < 0.2, generator.random(200) < 0.5, original & (generator.random(200) < 0.95))
    lengths = generator.integers(40, 120, size=200)
    return _answers({ORIGINAL: original, HALF: half}, {ORIGINAL: lengths, HALF: lengths // 2 + 3})


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


def test_the_interval_is_wilsons_by_statsmodels_too():
    from statsmodels.stats.proportion import proportion_confint

    [row] = compute_metrics([_prediction(f"p{i}", right=i < 37) for i in range(50)], scorer="", seed=0).to_dict(
        "records"
    )
    expected = proportion_confint(37, 50, method="wilson")
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(expected, abs=1e-4)


def test_equal_answers_are_no_difference():
    same = [1, 0, 1, 1]
    [row] = compare_methods(pair_outcomes([_answers({ORIGINAL: same, HALF: same})])).to_dict("records")
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
    seeds = [_answers({ORIGINAL: [1, 1], HALF: half}) for half in ([1, 0], [0, 0])]
    assert pair_outcomes(seeds).correct[HALF].tolist() == [0.5, 0.0]


def test_a_problem_that_somebody_did_not_answer_is_refused_by_name(two_methods):
    with pytest.raises(InputError, match="problem 'p7'"):
        pair_outcomes([[p for p in two_methods if p.key != ("p7", *HALF)]])
    with pytest.raises(InputError, match="problem 'p7'"):
        pair_outcomes([two_methods, [p for p in two_methods if p.key != ("p7", *HALF)]])
    with pytest.raises(InputError, match="original"):
        pair_outcomes([[p for p in two_methods if p.method != "original"]])


def _curve(points: dict[float, float]) -> pd.Series:
    """The summary of a method: `points[share]` is its accuracy at a share of the original's tokens; 100 problems."""
    right = {
        ("tokenskip", share): [i < 100 * accuracy for i in range(100)]
        for share, accuracy in points.items()
        if share < 1
    }
    right[ORIGINAL] = [i < 100 * points[1.0] for i in range(100)]
    tokens = {key: [round(1000 * key[1])] * 100 for key in right}
    return summarise_curves(pair_outcomes([_answers(right, tokens)])).set_index("method").loc["tokenskip"]


def test_the_area_is_that_of_the_best_point_at_each_budget():
    row = _curve({0.5: 0.6, 0.8: 0.8, 1.0: 0.9})
    assert row["area"] == pytest.approx(0.3 * 0.6 + 0.2 * 0.8)
    assert row["area_low"] < row["area"] < row["area_high"]


@pytest.mark.parametrize(
    ("points", "share"),
    [
        ({0.5: 0.6, 0.8: 0.8, 1.0: 0.9}, 1.0),  # nothing of its own is within a point: the original is needed
        ({0.5: 0.89, 1.0: 0.9}, 0.5),
        ({0.5: 0.7, 0.7: 0.95, 1.0: 0.9}, 0.7 - 0.2 * 0.06 / 0.25),
        ({0.5: 0.7, 0.7: 0.95, 0.8: 0.85, 1.0: 0.9}, 0.7 - 0.2 * 0.06 / 0.25),  # a longer, worse point is passed over
        ({0.5: 0.95, 0.6: 0.5, 0.8: 0.9, 1.0: 0.9}, 0.6 + 0.2 * 0.39 / 0.4),  # what lies beyond a fall is not reached
    ],
)
def test_tokens_within_a_point_are_interpolated_between_the_methods_own_points(points, share):
    assert _curve(points)["within_a_point"] == pytest.approx(share)


def test_a_method_that_reaches_further_has_the_larger_area():
    assert _curve({0.3: 0.8, 0.5: 0.8, 1.0: 0.8})["area"] > _curve({0.5: 0.8, 1.0: 0.8})["area"]


def test_a_method_that_is_never_right_has_no_area_and_more_tokens_are_never_worse():
    assert _curve({0.5: 0.0, 0.9: 0.0, 1.0: 0.9})["area"] == 0
    assert _curve({0.5: 0.8, 0.9: 0.4, 1.0: 0.9})["area"] == pytest.approx(0.5 * 0.8)


def test_a_point_as_long_as_the_original_is_no_part_of_the_area():
    assert _curve({0.5: 0.6, 0.995: 0.9, 1.0: 0.9})["area"] == pytest.approx(0.5 * 0.6)


@pytest.mark.parametrize("seed", range(6))
def test_an_interval_ends_at_a_whole_problem_exactly(seed):
    # Shares summed problem by problem are 1e-16 off: an interval that reaches 0 would seem to end below it.
    problems = [(1, 1)] * 70 + [(1, 0)] * 2 + [(0, 1)] * 9 + [(0, 0)] * 39
    random.Random(seed).shuffle(problems)
    ours, theirs = map(list, zip(*problems, strict=True))
    [row] = compare_methods(pair_outcomes([_answers({ORIGINAL: theirs, ("tokenskip", 0.5): ours})]), seed=seed).to_dict(
        "records"
    )
    assert row["difference_high"] == -1 / 120


def test_a_method_of_no_shorter_answers_has_no_area():
    right = {ORIGINAL: [1, 0, 1], ("be_concise", 1.0): [1, 1, 1]}
    [row] = summarise_curves(pair_outcomes([_answers(right)])).to_dict("records")
    assert list(row) == column_names(CurveRow) and row["method"] == "be_concise"
    assert math.isnan(row["area"]) and math.isnan(row["area_low"]) and row["within_a_point"] == 1


@given(st.floats(-1, 1), st.floats(-1, 1), st.lists(st.integers(1, 9), min_size=2, unique=True))
def test_control_is_the_slope_of_what_comes_over_what_is_asked_below_1(slope, start, tenths):
    rows = pd.DataFrame({"ratio": [t / 10 for t in tenths]}).assign(actual_ratio=lambda r: start + slope * r["ratio"])
    whole = pd.DataFrame({"ratio": [1.0], "actual_ratio": [5.0]})  # has no marker
    assert ratio_control(pd.concat([rows, whole])) == pytest.approx(slope, abs=1e-9)
    assert math.isnan(ratio_control(pd.concat([rows[:1], whole])))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=8))
def test_the_pareto_front_is_what_nothing_beats(points):
    metrics = pd.DataFrame(points, columns=["accuracy", "chain_tokens"])
    front = {tuple(point) for point in pareto_front(metrics)[["accuracy", "chain_tokens"]].to_numpy()}

    def beats(a, b):
        return a != b and a[0] >= b[0] and a[1] <= b[1]

    assert front == {point for point in points if not any(beats(other, point) for other in points)}


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
        _prediction(name, "tokenskip", 0.5, right=name in ("kept", "won"), cut_off=name == "torn").model_copy(
            update={"chain": chain}
        )
        for name, chain in chains.items()
    ]
    others = [p.model_copy(update={"method": "be_concise", "ratio": 1.0, "is_correct": solved[p.id]}) for p in asked]
    originals = [_prediction(name, right=right) for name, right in solved.items()]
    table = explain_losses([*asked, *originals, *others])
    assert list(table.columns) == column_names(LossRow)
    assert table.to_numpy().tolist() == [["tokenskip", 0.5, 1, 4, 1, 1, 1, 1], ["be_concise", 1.0, 0, 0, 0, 0, 0, 0]]
