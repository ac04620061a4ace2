"""Accuracy-token curves, ratio control and the Pareto front, against what their definitions say."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.made_predictions import ORIGINAL, answers_of
from tokenskip_lib.evaluation.comparison import pair_outcomes
from tokenskip_lib.evaluation.curves import CurveRow, pareto_front, ratio_control, summarise_curves
from tokenskip_lib.evaluation.tables import column_names


def _curve(points: dict[float, float]) -> pd.Series:
    """The summary of a method: `points[share]` is its accuracy at a share of the original's tokens; 100 problems."""
    right = {
        ("tokenskip", share): [i < 100 * accuracy for i in range(100)]
        for share, accuracy in points.items()
        if share < 1
    }
    right[ORIGINAL] = [i < 100 * points[1.0] for i in range(100)]
    tokens = {key: [round(1000 * key[1])] * 100 for key in right}
    return summarise_curves(pair_outcomes([answers_of(right, tokens)])).set_index("method").loc["tokenskip"]


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


def test_a_method_of_no_shorter_answers_has_no_area():
    right = {ORIGINAL: [1, 0, 1], ("be_concise", 1.0): [1, 1, 1]}
    [row] = summarise_curves(pair_outcomes([answers_of(right)])).to_dict("records")
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
