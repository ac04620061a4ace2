"""A ratio for each problem: spends what it may, wins where hard problems can be told, and not where they cannot."""

import numpy as np
import pytest

from tokenskip_lib.analyses.adaptive import (
    FEATURES,
    POLICY_COLUMNS,
    choose_ratios,
    compare_policy,
    fit_policy,
    question_features,
)
from tokenskip_lib.core.records import InputError, Prediction, Problem

RATIOS = [0.5, 0.7, 1.0]


def _world(size: int, seed: int, *, visible: bool) -> tuple[list[Problem], list[Prediction]]:
    """Half of the problems are hard: solved at ratio 1 alone. Long questions are the hard ones, if visible."""
    generator = np.random.default_rng(seed)
    hard = generator.random(size) < 0.5
    long = hard if visible else generator.random(size) < 0.5
    problems, predictions = [], []
    for number in range(size):
        question = " ".join(["Ann has 3 apples."] * (8 if long[number] else 2)) + " How many?"
        problems.append(Problem(id=f"p{number}", question=question, answer="7"))
        for method, ratio in [("original", 1.0), *[("tokenskip", ratio) for ratio in RATIOS]]:
            likely = 0.9 if ratio == 1 or not hard[number] else 0.1
            predictions.append(
                Prediction(
                    id=f"p{number}",
                    method=method,
                    ratio=ratio,
                    answer="7",
                    output="",
                    chain="",
                    prediction=None,
                    is_correct=bool(generator.random() < likely),
                    chain_tokens=round(100 * ratio),
                    answer_tokens=5,
                    max_new_tokens=200,
                    cut_off=False,
                    seconds=0.1,
                )
            )
    return problems, predictions


def test_features_are_read_off_the_question():
    question = "Tom has half of 1,200 apples, 3 more than Ann. She ate 25% of hers! How many?"
    values = dict(zip(FEATURES, question_features(question), strict=True))
    assert values == {
        "words": 17, "sentences": 3, "numbers": 3, "largest_number": pytest.approx(np.log1p(1200)), "fractions": 2,
        "compared": 2,
    }  # fmt: skip
    assert question_features("") == [0, 0, 0, 0, 0, 0]


def test_where_hard_problems_can_be_told_they_get_the_tokens_and_accuracy_rises():
    policy = fit_policy(*_world(300, 0, visible=True))
    problems, predictions = _world(400, 1, visible=True)
    chosen = dict(zip((p.id for p in problems), choose_ratios(policy, problems, 0.7), strict=True))
    hard = {p.id for p in problems if len(p.question) > 80}
    assert (
        np.mean([chosen[name] for name in hard]) > np.mean([chosen[p.id] for p in problems if p.id not in hard]) + 0.2
    )
    table = compare_policy(policy, problems, predictions).set_index("ratio")
    assert [table.index.name, *table.columns] == POLICY_COLUMNS
    assert table.loc[0.7, "difference"] > 0.1 and table.loc[0.7, "difference_low"] > 0
    assert table.loc[0.7, "tokens"] == pytest.approx(70, abs=5)


def test_where_they_cannot_it_wins_nothing_beyond_the_noise():
    policy = fit_policy(*_world(300, 0, visible=False))
    table = compare_policy(policy, *_world(400, 1, visible=False)).set_index("ratio")
    assert table.loc[0.7, "difference_low"] <= 0 and abs(table.loc[0.7, "difference"]) < 0.1


def test_the_cheapest_and_the_dearest_budget_leave_no_choice():
    policy = fit_policy(*_world(100, 0, visible=True))
    problems, _ = _world(50, 1, visible=True)
    assert set(choose_ratios(policy, problems, 0.5)) == {0.5}
    assert set(choose_ratios(policy, problems, 1.0)) <= {0.7, 1.0}


def test_the_same_answers_give_the_same_choices():
    problems, predictions = _world(100, 0, visible=True)
    first, second = (choose_ratios(fit_policy(problems, predictions), problems, 0.7) for _ in range(2))
    assert first == second


def test_nothing_to_learn_from_is_refused():
    problems, predictions = _world(20, 0, visible=True)
    with pytest.raises(InputError, match="two ratios or more"):
        fit_policy(problems, [p for p in predictions if p.ratio == 1])
    with pytest.raises(InputError, match="some right and some wrong"):
        fit_policy(problems, [p.model_copy(update={"is_correct": True}) for p in predictions])


def test_no_problems_no_answers_or_another_ratio_are_one_line_each():
    problems, predictions = _world(40, 0, visible=True)
    policy = fit_policy(problems, predictions)
    with pytest.raises(InputError, match="there are none"):
        choose_ratios(policy, [], 0.7)
    with pytest.raises(InputError, match=r"answers at 0\.5, 0\.7, 1, not at 0\.6"):
        choose_ratios(policy, problems, 0.6)
    with pytest.raises(InputError, match="needs problems"):
        compare_policy(policy, [], predictions)
    with pytest.raises(InputError, match="needs answers of 'tokenskip'"):
        compare_policy(policy, problems, [p for p in predictions if p.method == "original"])
    with pytest.raises(InputError, match="problem 'p39' has no answer"):
        compare_policy(policy, problems, [p for p in predictions if p.id != "p39"])
