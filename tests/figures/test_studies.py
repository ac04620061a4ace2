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


def test_a_loss_is_drawn_against_rows_with_its_interval_for_each_request():
    table = pd.DataFrame(
        {"rows": [100, 0, 0, 100], "ratio": [0.5, 0.5, 0.7, 0.7], "points": [-3.0, -7.0, -4.0, -1.0],
         "points_low": [-5.0, -9.0, -6.0, -3.0], "points_high": [-1.0, -4.0, -2.0, 1.0]}
    )  # fmt: skip
    (axes,) = study_figures.loss_figure(table).axes
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["asked for 0.5", "asked for 0.7"]
    data, _, (bars,) = handles[0].lines
    assert list(data.get_ydata()) == [-7.0, -3.0]
    assert [(low, high) for (_, low), (_, high) in bars.get_segments()] == [(-9.0, -4.0), (-5.0, -1.0)]


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
    few, many, distance = study_figures.control_figure(table).axes
    for panel, title, written in ((few, "400 rows", [1.0, 1.0]), (many, "6,000 rows", [0.5, 1.0])):
        assert panel.get_title(loc="left") == title and len(panel.containers) == 1
        assert list(panel.containers[0].lines[0].get_ydata()) == written
    names = [label.get_text() for label in distance.get_yticklabels()]
    assert names == ["all, 400 rows", "all, 6,000 rows", "one, 400 rows"]
    assert [x for x, _ in distance.collections[-1].get_offsets()] == [0.25, 0.0, 0.125]
    assert [text.get_text() for text in distance.texts] == ["0.250", "0.000", "0.125"]


def test_more_panels_than_fit_go_on_in_another_line():
    rows = [{"training": "all", "rows_trained": number, "ratio": 0.5, "actual_ratio": 0.6} for number in range(1, 6)]
    *panels, _ = study_figures.control_figure(
        pd.DataFrame(rows).assign(actual_ratio_low=0.5, actual_ratio_high=0.7)
    ).axes
    assert [panel.get_title(loc="left") for panel in panels] == [f"{number} rows" for number in range(1, 6)]
    assert [panel.get_subplotspec().rowspan.start for panel in panels] == [0, 0, 0, 0, 1]


def test_a_line_a_curve_against_the_request_with_its_interval_and_the_diagonal():
    plain = pd.DataFrame({"ratio": [1.0, 0.5], "value": [1.0, 0.6]})
    figure = study_figures.by_ratio_figure({"a": plain, "b": plain.assign(low=0.1, high=0.9)}, "y", "t", diagonal=True)
    [axes] = figure.axes
    assert [list(line.get_xdata()) for line in axes.lines[:3]] == [[0.5, 1.0]] * 3
    assert [list(line.get_ydata()) for line in axes.lines[:3]] == [[0.5, 1.0], [0.6, 1.0], [0.6, 1.0]]
    assert len(axes.containers) == 1 and {text.get_text() for text in axes.texts} == {"a", "b"}


def test_intervals_of_several_curves_are_side_by_side_and_a_style_is_obeyed():
    curve = pd.DataFrame({"ratio": [0.5, 1.0], "value": [0.6, 1.0], "low": 0.1, "high": 0.9})
    figure = study_figures.by_ratio_figure({"a": curve, "b": curve}, "y", "t", styles={"b": {"color": "red"}})
    [axes] = figure.axes
    first, second = (container.lines[0] for container in axes.containers)
    assert (first.get_xdata() + second.get_xdata()).tolist() == pytest.approx([1.0, 2.0])
    assert min(second.get_xdata() - first.get_xdata()) > 0 and second.get_color() == "red" != first.get_color()


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
