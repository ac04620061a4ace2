"""Agreement with measured importance: hand-made chains whose right answer is plain."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from tokenskip_lib.core.records import InputError, ScoredChain
from tokenskip_lib.evaluation.exact_importance import agreement_table, top_share


def scored(scorer: str, number: int, values: list[float]) -> ScoredChain:
    text = "abcdefghij"[: len(values)]
    spans = [(i, i + 1) for i in range(len(values))]
    return ScoredChain(id=f"c{number}", scorer=scorer, text=text, spans=spans, importance=values)


def test_a_scorer_that_ranks_as_measured_agrees_and_its_opposite_does_not():
    losses = [[0.0, 1.0, 2.0, 5.0], [4.0, 3.0, 0.5, 0.1], [1.0, 0.0, 0.3, 0.2]]
    chains = [scored("leave_one_out", n, values) for n, values in enumerate(losses)]
    chains += [scored("alike", n, [10 * value for value in values]) for n, values in enumerate(losses)]
    chains += [scored("opposed", n, [-value for value in values]) for n, values in enumerate(losses)]
    chains += [scored("flat", n, [1.0] * 4) for n in range(3)]
    table = agreement_table(chains, seed=0).set_index("scorer")
    assert list(table["correlation"]) == pytest.approx([1, -1, 0]) and list(table["n"]) == [3, 3, 3]
    assert list(table["overlap"]) == pytest.approx([1, 0, 0.25])  # flat: one of four spans, by chance
    assert table.loc["alike", ["correlation_low", "correlation_high"]].tolist() == pytest.approx([1, 1])


def test_losses_within_a_thousandth_of_a_nat_are_ties():
    chains = [scored("leave_one_out", 0, [1e-6, 2e-6, 3e-6, 2.0]), scored("other", 0, [3.0, 2.0, 1.0, 4.0])]
    chains += [scored("leave_one_out", 1, [1e-6, 2e-6, 3e-6, 0.0]), scored("other", 1, [3.0, 2.0, 1.0, 4.0])]
    [row] = agreement_table(chains, seed=0).itertuples()
    assert row.n == 1  # the second chain loses nothing anywhere
    assert row.correlation == pytest.approx(spearmanr([0, 0, 0, 2], [3, 2, 1, 4]).statistic) and row.overlap == 1


def test_each_measurement_is_a_truth_of_its_own_and_is_judged_by_the_other():
    chains = [scored(name, 0, values) for name, values in (
        ("leave_one_out", [0.0, 1.0, 2.0]), ("leave_one_out_rest", [2.0, 1.0, 0.0]), ("random", [0.0, 1.0, 2.0]),
    )]  # fmt: skip
    table = agreement_table(chains, seed=0)
    assert list(zip(table["truth"], table["scorer"], strict=True)) == [
        ("leave_one_out", "leave_one_out_rest"), ("leave_one_out", "random"),
        ("leave_one_out_rest", "leave_one_out"), ("leave_one_out_rest", "random"),
    ]  # fmt: skip
    assert list(table["correlation"]) == pytest.approx([-1, 1, -1, -1])


def test_without_a_measurement_it_says_what_to_add():
    with pytest.raises(InputError, match=r"add leave_one_out to importance\.compare_with"):
        agreement_table([scored("random", 0, [1.0, 2.0])], seed=0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_the_top_has_its_share_and_no_lower_value_is_in_it_before_a_higher_one(values):
    shares = top_share(np.array(values, dtype=float))
    assert shares.sum() == pytest.approx(max(1, round(0.3 * len(values))))
    by_value = pd.Series(shares).groupby(values).mean().sort_index()
    assert by_value.is_monotonic_increasing and ((shares >= 0) & (shares <= 1)).all()
