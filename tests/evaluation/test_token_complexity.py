"""Token complexity: the oracle against every way to choose, and what shuffling leaves as it is."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.made_predictions import ORIGINAL, answers_of
from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.comparison import pair_outcomes
from tokenskip_lib.evaluation.tables import column_names
from tokenskip_lib.evaluation.token_complexity import (
    ONE_RATIO,
    ORACLE,
    SHUFFLED,
    ChoiceRow,
    ComplexityRow,
    compare_with_oracle,
    oracle_accuracy,
    token_complexity,
)


def _outcomes(right: dict[float, list], tokens: dict[float, list]):
    verdicts = {ORIGINAL: [1] * len(next(iter(right.values())))} | {("tokenskip", r): v for r, v in right.items()}
    lengths = {ORIGINAL: [99] * len(verdicts[ORIGINAL])} | {("tokenskip", r): t for r, t in tokens.items()}
    return pair_outcomes([answers_of(verdicts, lengths)])


RIGHT = {0.5: [1, 0, 0, 1], 0.7: [1, 1, 0, 0], 1.0: [1, 1, 0, 1]}
TOKENS = {0.5: [10, 10, 10, 10], 0.7: [12, 15, 20, 20], 1.0: [30, 30, 30, 30]}


def test_each_problem_has_its_shortest_right_answer():
    table = token_complexity(_outcomes(RIGHT, TOKENS))
    assert list(table.columns) == column_names(ComplexityRow)
    assert table["tokens"].fillna(-1).tolist() == [10, 15, -1, 10]
    assert table["ratio"].fillna(-1).tolist() == [0.5, 0.7, -1, 0.5]
    assert table["shortest"].tolist() == [10] * 4
    assert table["solved"].tolist() == [3, 2, 0, 2] and set(table["asked"]) == {3}
    assert table["longer_wrong"].tolist() == [0, 0, 0, 1]


def test_the_oracle_stands_beside_each_ratio_at_its_tokens():
    table = compare_with_oracle(_outcomes(RIGHT, TOKENS))
    assert list(table.columns) == column_names(ChoiceRow)
    assert not table.drop(columns="ratio").isna().any(axis=None)
    fixed = table.dropna(subset="ratio").pivot(index="ratio", columns="choice", values="accuracy")
    assert fixed[ONE_RATIO].tolist() == [0.5, 0.5, 0.75]
    assert fixed[ORACLE].tolist() == [0.5, 0.75, 0.75]  # 40 tokens in all, then 67 and 120
    assert (fixed[ORACLE] >= fixed[ONE_RATIO]).all()
    curve = table[table["choice"] == ORACLE].sort_values("tokens")
    assert curve["accuracy"].is_monotonic_increasing
    assert (curve["tokens"].iloc[0], curve["accuracy"].iloc[-1]) == (10, 0.75)


def test_after_shuffling_each_problem_has_as_many_right_answers_so_that_both_oracles_end_alike():
    table = compare_with_oracle(_outcomes(RIGHT, TOKENS))
    ends = table.sort_values("tokens").groupby("choice").last()["accuracy"]
    assert ends[ORACLE] == ends[SHUFFLED] == 0.75
    assert table.equals(compare_with_oracle(_outcomes(RIGHT, TOKENS)))  # drawn with a seed


def test_verdicts_that_do_not_depend_on_the_ratio_leave_nothing_to_shuffle():
    same = {ratio: [1, 0, 1, 0] for ratio in RIGHT}
    table = compare_with_oracle(_outcomes(same, TOKENS))
    assert set(table["accuracy"]) == {0.5}


@pytest.mark.parametrize("verdict", [0, 1])
def test_all_or_nothing_solved_is_no_special_case(verdict):
    answers = _outcomes({ratio: [verdict] * 2 for ratio in (0.5, 0.7)}, {0.5: [5, 6], 0.7: [8, 9]})
    assert set(compare_with_oracle(answers)["accuracy"]) == {float(verdict)}
    assert token_complexity(answers)["tokens"].isna().all() == (not verdict)


def test_without_answers_there_is_one_line():
    with pytest.raises(InputError, match="needs answers of 'tokenskip'; there are none"):
        token_complexity(pair_outcomes([answers_of({ORIGINAL: [1, 0]})]))


@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_the_oracle_is_the_best_of_all_ways_to_choose(data, problems, ratios):
    cells = st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=ratios, max_size=ratios)
    table = data.draw(st.lists(cells, min_size=problems, max_size=problems))
    right = np.array([[cell[0] for cell in row] for row in table])
    lengths = np.array([[cell[1] for cell in row] for row in table])
    budget = data.draw(st.integers(0, 40))
    best = max(
        (
            sum(right[row, column] for row, column in enumerate(chosen)) / problems
            for chosen in product(range(ratios), repeat=problems)
            if sum(lengths[row, column] for row, column in enumerate(chosen)) <= budget
        ),
        default=0.0,
    )
    [[found]] = oracle_accuracy(right, lengths, np.ones((1, problems)), np.array([[budget]]))
    assert found == pytest.approx(best)
