"""gsm_symbolic: splits never meet, the solutions that stay are right."""

import pytest

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import InputError
from tokenskip_lib.problems.arithmetic import check_equations, writes_x
from tokenskip_lib.problems.gsm_symbolic import SYMBOLIC_SPLITS
from tokenskip_lib.problems.sets import load_problem_set, refuse_shared_questions

SIZE = 15


@pytest.fixture(scope="module")
def symbolic():
    """split -> what gsm_symbolic gives of it under the demo profile."""
    profile = load_profile("demo")
    return {split: load_problem_set("gsm_symbolic", split, SIZE, profile) for split in SYMBOLIC_SPLITS}


def test_the_splits_of_gsm_symbolic_share_no_question(symbolic):
    questions = [" ".join(p.question.split()) for loaded in symbolic.values() for p in loaded.problems]
    ids = [p.id for loaded in symbolic.values() for p in loaded.problems]
    assert len(questions) == SIZE * len(SYMBOLIC_SPLITS)
    assert len(set(questions)) == len(questions) and len(set(ids)) == len(ids)


def test_the_split_ranges_cover_every_hash_once():
    assert sorted(number for numbers in SYMBOLIC_SPLITS.values() for number in numbers) == list(range(100))


def test_the_same_seed_gives_the_same_problems_and_another_seed_others(symbolic):
    load_problem_set("gsm_symbolic", "test", SIZE, load_profile("demo")).problems.clear()  # a list of its own
    again = load_problem_set("gsm_symbolic", "test", SIZE, load_profile("demo"))
    assert again == symbolic["test"]
    other = load_problem_set("gsm_symbolic", "test", SIZE, load_profile("demo", {"seed": 1}))
    assert other.problems != symbolic["test"].problems


def test_a_train_seed_gives_other_training_problems_and_the_same_test_problems(symbolic):
    reseeded, seed_1 = load_profile("demo", {"problems.train_seed": 1}), load_profile("demo", {"seed": 1})
    assert load_problem_set("gsm_symbolic", "test", SIZE, reseeded) == symbolic["test"]
    train = load_problem_set("gsm_symbolic", "train", SIZE, reseeded)
    assert train != symbolic["train"] and train == load_problem_set("gsm_symbolic", "train", SIZE, seed_1)


def test_a_question_stays_in_its_split_under_every_seed(symbolic):
    other = load_problem_set("gsm_symbolic", "train", SIZE, load_profile("demo", {"seed": 1}))
    refuse_shared_questions(other.problems, symbolic["test"].problems)
    assert {p.question for p in other.problems}.isdisjoint(p.question for p in symbolic["target"].problems)


def test_a_smaller_size_is_the_beginning_of_a_larger_one(symbolic):
    fewer = load_problem_set("gsm_symbolic", "train", 5, load_profile("demo"))
    assert fewer.problems == symbolic["train"].problems[:5]


def test_every_kept_solution_is_checked_and_within_the_largest_number(symbolic):
    import re

    for loaded in symbolic.values():
        for problem in loaded.problems:
            assert check_equations(problem.solution) == "clean" and not writes_x(problem.solution), problem
            numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", problem.question + problem.solution)
            assert max(float(number.replace(",", "")) for number in numbers) <= 150
            assert "Give the" not in problem.question and "####" not in problem.solution


def test_what_is_dropped_is_counted_by_reason(symbolic):
    dropped = symbolic["train"].dropped
    rules = {"number above 99", "more than 60 words"}
    assert set(dropped) <= rules | {
        "wrong equation",
        "uncheckable equation",
        "multiplication written as x",
        "repeated question",
    }
    assert dropped.keys() >= rules
    assert dropped["uncheckable equation"] > 0


def test_the_last_equation_of_a_symbolic_solution_is_its_answer(symbolic):
    problems = [p for loaded in symbolic.values() for p in loaded.problems]
    ends_in_answer = [p.answer in p.solution.splitlines()[-1] for p in problems]
    assert sum(ends_in_answer) >= 0.9 * len(problems)


def test_gsm_symbolic_without_a_size_or_with_an_unknown_split_is_refused():
    profile = load_profile("demo")
    with pytest.raises(InputError, match="train_size"):
        load_problem_set("gsm_symbolic", "train", None, profile)
    with pytest.raises(InputError, match="did you mean 'test'"):
        load_problem_set("gsm_symbolic", "tset", 3, profile)


def test_rules_that_no_problem_meets_are_refused_not_searched_for_ever():
    profile = load_profile("demo", {"problems.max_number": 1})
    with pytest.raises(InputError, match="only 0 of 1 train problems"):
        load_problem_set("gsm_symbolic", "train", 1, profile)
