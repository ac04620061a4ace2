"""Metrics, against formulas written out here and statsmodels, and their table."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.made_predictions import prediction
from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.comparison import compare_methods, pair_outcomes
from tokenskip_lib.evaluation.metrics import METRIC_COLUMNS, compute_metrics, markdown_table


def _wilson(correct: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    middle = (correct + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(correct * (n - correct) / n + z * z / 4)
    return middle - half, middle + half


def test_metrics_are_those_of_the_definition():
    predictions = [
        *[prediction(f"p{i}", right=i < 3, tokens=100 + 10 * i, seconds=2.0) for i in range(4)],
        *[prediction(f"p{i}", "tokenskip", 0.5, right=i < 1, tokens=50, cut_off=i == 3) for i in range(4)],
        *[prediction(f"p{i}", "tokenskip", 0.7, right=True, tokens=80 + i) for i in range(4)],
        *[prediction(f"p{i}", "be_concise", right=False, tokens=115, seconds=i) for i in range(4)],
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
    [row] = compute_metrics([prediction(f"p{i}", right=i < correct) for i in range(n)], scorer="", seed=0).to_dict(
        "records"
    )
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(_wilson(correct, n), abs=1e-4)
    assert 0 <= row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] <= 1


def test_a_strength_is_not_taken_for_a_ratio():
    predictions = [prediction("a"), prediction("a", "tokenskip", 0.5), prediction("a", "adapter_scaling", 1.5)]
    table = markdown_table(compute_metrics(predictions, scorer="s", seed=0))
    assert "| tokenskip | 0.5 | 1 |" in table and "| adapter_scaling | strength 1.5 | 1 |" in table


def test_metrics_do_not_depend_on_the_order_of_predictions_within_a_method():
    original = [prediction(f"p{i}", right=i % 2 == 0, tokens=10 * i + 10) for i in range(6)]
    shorter = [prediction(f"p{i}", "tokenskip", 0.5, tokens=5 + i * i) for i in range(6)]
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
        ([prediction("a", tokens=0)], "chains are empty"),
        ([prediction("a"), prediction("b", "tokenskip", 0.5)], "problem 'b' was not answered by 'original'"),
    ],
)
def test_what_ratios_cannot_be_measured_against_is_refused(predictions, message):
    with pytest.raises(InputError, match=message):
        compute_metrics(predictions, scorer="", seed=0)


def test_metrics_without_the_original_are_refused():
    with pytest.raises(InputError, match="original"):
        compute_metrics([prediction("a", "tokenskip", 0.5)], scorer="s", seed=0)


def test_the_table_for_readers_has_one_line_a_row_and_ratios_only_where_they_are_read():
    predictions = [
        *[prediction(f"p{i}", right=i < 3) for i in range(4)],
        *[prediction(f"p{i}", "tokenskip", 0.5, tokens=50) for i in range(4)],
    ]
    lines = markdown_table(compute_metrics(predictions, scorer="s", seed=0)).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| original |  | 4 | 75.0 (") and ") | 75.0 | 100.0 | 1.00 |" in lines[2]
    assert lines[3].startswith("| tokenskip | 0.5 | 4 | 100.0 (") and ") | 100.0 | 50.0 | 0.50 |" in lines[3]


def test_the_interval_is_wilsons_by_statsmodels_too():
    from statsmodels.stats.proportion import proportion_confint

    [row] = compute_metrics([prediction(f"p{i}", right=i < 37) for i in range(50)], scorer="", seed=0).to_dict(
        "records"
    )
    expected = proportion_confint(37, 50, method="wilson")
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(expected, abs=1e-4)


def test_a_ratio_is_written_in_full_and_an_unknown_method_is_tabled_last():
    predictions = [
        *[prediction(f"p{i}", "mine", 0.75, tokens=70) for i in range(4)],
        *[prediction(f"p{i}", "yours", tokens=90) for i in range(4)],
        *[prediction(f"p{i}") for i in range(4)],
        *[prediction(f"p{i}", "tokenskip", 0.25, tokens=50) for i in range(4)],
    ]
    lines = markdown_table(compute_metrics(predictions, scorer="s", seed=0)).splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| original", ""], ["| tokenskip", "0.25"], ["| mine", "0.75"], ["| yours", ""],
    ]  # fmt: skip
