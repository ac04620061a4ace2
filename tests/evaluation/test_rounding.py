"""A run beside the published one: every common row, differences by hand, and the limit of what rounding explains."""

import pandas as pd
import pytest

from tokenskip_lib.evaluation.rounding import SEEN, SEEN_ON, allowed, beside_lines, beside_published


@pytest.fixture
def published(root) -> pd.DataFrame:
    return pd.read_csv(root / "data/results/demo_metrics.csv", keep_default_na=False).assign(n=SEEN_ON)


def moved(metrics: pd.DataFrame, method: str, ratio: float, **by: float) -> pd.DataFrame:
    """The metrics with one row changed."""
    changed = metrics.copy()
    row = (changed["method"] == method) & (changed["ratio"] == ratio)
    for column, difference in by.items():
        changed.loc[row, column] += difference
    return changed


def test_the_published_run_differs_from_itself_by_nothing(published):
    beside = beside_published(published, published, trained=False)
    assert len(beside) == len(published) and all(beside["rounding"])
    assert not beside[["accuracy_difference", "ratio_difference"]].any(axis=None)
    assert beside_lines(beside)[-1].endswith("no row differs by more.")


@pytest.mark.parametrize(
    ("by", "explained"),
    [
        ({"accuracy": -0.0267}, True),  # 4 of 150 answers, as seen between two processors
        ({"accuracy": 0.0467}, False),  # 7 of 150
        ({"actual_ratio": 0.006}, True),
        ({"actual_ratio": -0.0095}, False),
    ],
)
def test_a_difference_is_judged_by_what_was_seen_between_processors(published, by, explained):
    beside = beside_published(moved(published, "tokenskip", 0.5, **by), published, trained=False)
    row = beside[(beside["method"] == "tokenskip") & (beside["level"] == "0.5")].iloc[0]
    assert row["rounding"] is explained or row["rounding"] == explained
    assert row["accuracy_difference"] == pytest.approx(by.get("accuracy", 0))
    assert row["ratio_difference"] == pytest.approx(by.get("actual_ratio", 0))
    *lines, said = beside_lines(beside)
    assert said.endswith("no row differs by more." if explained else f"1 of {len(published)} rows differ by more.")
    assert sum(line.endswith(" no") for line in lines) == (not explained)


def test_more_problems_leave_rounding_less_room():
    assert [allowed(column, 600) / allowed(column, 150) for column in SEEN] == pytest.approx([0.5, 0.5])


def test_an_adapter_that_was_trained_here_is_not_judged(published):
    scaled = published[published["method"] == "tokenskip"].head(1).assign(method="adapter_scaling", ratio=0.75)
    published = pd.concat([published, scaled], ignore_index=True)
    beside = beside_published(moved(published, "tokenskip", 0.5, accuracy=-0.2), published, trained=True)
    judged = beside.set_index("method")["rounding"]
    assert set(judged["tokenskip"]) == {None} and judged["adapter_scaling"] is None
    assert judged["original"] is True and beside_lines(beside)[-1].endswith("no row differs by more.")


def test_rows_that_only_one_of_the_runs_has_are_left_out(published):
    fewer = published[published["method"] != "truncation"]
    assert "truncation" not in set(beside_published(fewer, published, trained=False)["method"])
    assert len(beside_published(published, fewer, trained=False)) == len(fewer)
