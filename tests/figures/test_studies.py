"""Figures of studies: every training drawn, in its place."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tokenskip_lib.evaluation.tables import column_names
from tokenskip_lib.evaluation.token_complexity import ONE_RATIO, ORACLE, SHUFFLED, ChoiceRow
from tokenskip_lib.figures import studies as study_figures


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def test_scorers_stand_in_the_order_of_their_best_accuracy():
    table = pd.DataFrame(
        {
            "scorer": ["cts", "random", "cts", "random"],
            "kept": ["alone", "alone", "digits", "digits"],
            "accuracy": [0.4, 0.2, 0.5, 0.7],
            "accuracy_low": [0.3, 0.1, 0.4, 0.6],
            "accuracy_high": [0.5, 0.3, 0.6, 0.8],
            "actual_ratio": [0.5, 0.52, 0.55, 0.6],
            "actual_ratio_low": [0.4] * 4,
            "actual_ratio_high": [0.7] * 4,
            "ratio": [0.5] * 4,
        }
    )
    figure = study_figures.scorers_figure(table, 0.75)
    accuracy, ratio = figure.axes
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["cts", "random"]
    assert [list(c.lines[0].get_xdata()) for c in accuracy.containers] == [[40, 20], [50, 70]]
    assert [list(c.lines[0].get_xdata()) for c in ratio.containers] == [[0.5, 0.52], [0.55, 0.6]]


def test_control_is_drawn_a_line_a_number_of_rows_and_its_distance_a_line_a_training():
    table = pd.DataFrame(
        [
            {"training": training, "rows_trained": rows, "ratio": ratio, "actual_ratio": 1 - share * (1 - ratio)}
            for training, rows, share in [("all", 400, 0.0), ("all", 6000, 1.0), ("one", 400, 0.5)]
            for ratio in (0.5, 1.0)
        ]
    ).assign(actual_ratio_low=0.4, actual_ratio_high=1.1)
    curves, distance = study_figures.control_figure(table).axes
    assert [list(line.get_ydata()) for line in curves.lines[1:]] == [[1.0, 1.0], [0.5, 1.0]]
    assert [text.get_text() for text in curves.texts] == ["400 rows", "6,000 rows"]
    assert [list(line.get_ydata()) for line in distance.lines] == [[0.25, 0.0], [0.125]]
    assert [list(line.get_xdata()) for line in distance.lines] == [[400, 6000], [400]]
    assert len(curves.collections) == 2 and {text.get_text() for text in distance.texts} == {"all", "one"}


def test_a_line_a_curve_against_the_request_with_its_interval_and_the_diagonal():
    plain = pd.DataFrame({"ratio": [1.0, 0.5], "value": [1.0, 0.6]})
    figure = study_figures.by_ratio_figure({"a": plain, "b": plain.assign(low=0.1, high=0.9)}, "y", "t", diagonal=True)
    [axes] = figure.axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.5, 1.0]] * 3
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.5, 1.0], [0.6, 1.0], [0.6, 1.0]]
    assert len(axes.collections) == 1 and {text.get_text() for text in axes.texts} == {"a", "b"}


def test_what_was_not_measured_is_not_drawn(tmp_path):
    half = pd.DataFrame({"ratio": [0.5, 1.0], "value": [0.6, None]})
    figure = study_figures.by_ratio_figure({"half": half, "none": half.assign(value=float("nan"))}, "y", "t")
    [axes] = figure.axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.5]]
    assert [text.get_text() for text in axes.texts] == ["half"]
    figure.savefig(tmp_path / "figure.png")


def test_ways_to_choose_are_drawn_at_their_tokens_with_what_is_predicted_beside_them():
    rows = [
        (ONE_RATIO, 0.5, 20.0, 0.7), (ONE_RATIO, 1.0, 40.0, 0.8),
        (ORACLE, 0.5, 20.0, 0.75), (ORACLE, float("nan"), 25.0, 0.9), (ORACLE, 1.0, 40.0, 0.9),
        (SHUFFLED, 0.5, 20.0, 0.78), (SHUFFLED, 1.0, 40.0, 0.9),
    ]  # fmt: skip
    choices = pd.DataFrame([(*row, row[-1] - 0.1, row[-1] + 0.1) for row in rows], columns=column_names(ChoiceRow))
    policy = pd.DataFrame({"tokens": [30.0, 21.0], "accuracy": [0.76, 0.72]})
    [axes] = study_figures.choices_figure(choices, policy).axes
    drawn = {tuple(line.get_xdata()): list(line.get_ydata()) for line in axes.lines}
    assert drawn[20.0, 25.0, 40.0] == pytest.approx([75, 90, 90]) and drawn[21.0, 30.0] == pytest.approx([72, 76])
    assert {ONE_RATIO, ORACLE, SHUFFLED, "predicted ratio", "0.5", "1"} == {text.get_text() for text in axes.texts}
    [alone] = study_figures.choices_figure(choices, policy[:0]).axes
    assert "predicted ratio" not in {text.get_text() for text in alone.texts}
