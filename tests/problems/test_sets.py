"""Problem sets: no two splits share a question, own files are read or refused by row."""

import json

import pytest

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import InputError, Problem
from tokenskip_lib.problems.gsm_symbolic import SYMBOLIC_SPLITS
from tokenskip_lib.problems.sets import (
    PROBLEM_SETS,
    ProblemSet,
    is_published,
    load_problem_set,
    load_problems,
    read_problems,
    refuse_shared_questions,
)


def _write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


MMLU_ROWS = [
    {"question": "2 + 2?", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
    {"question": "Who?", "subject": "philosophy", "choices": ["Kant", "Mill"], "answer": 0},
    {"question": "H2O?", "subject": "college_chemistry", "choices": ["salt", "water"], "answer": 1},
]
CSQA_ROWS = [
    {"id": "x1", "question": "Where?", "choices": {"label": ["A", "B"], "text": ["bank", "sea"]}, "answerKey": "B"},
]


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        (
            "mmlu-stem",
            MMLU_ROWS,
            [
                ("mmlu-stem-test-0", "2 + 2?\n(A) 3\n(B) 4\n(C) 5\n(D) 6", "B"),
                ("mmlu-stem-test-1", "H2O?\n(A) salt\n(B) water", "B"),
            ],
        ),
        ("commonsense-qa", CSQA_ROWS, [("x1", "Where?\n(A) bank\n(B) sea", "B")]),
    ],
)
def test_multiple_choice_sets_list_their_choices_and_are_answered_by_letter(monkeypatch, name, rows, expected):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: asked.append((*names, split)) or rows)
    problems = load_problem_set(name, "test", None, load_profile("smoke")).problems
    assert [(p.id, p.question, p.answer) for p in problems] == expected
    assert asked in ([("cais/mmlu", "all", "test")], [("tau/commonsense_qa", "default", "validation")])


def test_a_published_sets_questions_that_are_tested_too_are_left_out_and_counted(monkeypatch, tmp_path):
    import datasets

    rows = [{"question": f"{number} + 2?", "answer": f"So. #### {number + 2}"} for number in range(3)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: rows)
    test = _write(tmp_path / "test.jsonl", {"question": "1  + 2?", "answer": "3"})
    sets = {"problems.train": "gsm8k", "problems.test": str(test)}
    loaded = load_problems(load_profile("smoke", {**sets, "problems.train_size": 2}), "train")
    assert [problem.answer for problem in loaded.problems] == ["2", "4"]
    assert loaded.dropped == {"question of a test problem": 1}
    with pytest.raises(InputError, match="3 problems asked for, 2"):
        load_problems(load_profile("smoke", {**sets, "problems.train_size": 3}), "train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["3", "4"], "answer": "C"}, "one of the letters AB"),
        ({"choices": ["3", "4"], "answer": 2}, "one of the letters AB"),
        ({"choices": ["3"], "answer": 0}, "a list of at least two"),
        ({"choices": "34", "answer": 0}, "a list of at least two"),
    ],
)
def test_own_choices_are_refused_by_row(tmp_path, row, message):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "2 + 2?", **row}) + "\n")
    with pytest.raises(InputError, match=f"own.jsonl:1: .*{message}"):
        read_problems(path)


def test_own_choices_are_read(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"problem": "2 + 2?", "choices": ["3", "4"], "answer": "B"}) + "\n")
    [problem] = read_problems(path)
    assert (problem.question, problem.answer) == ("2 + 2?\n(A) 3\n(B) 4", "B")


def test_a_new_problem_set_is_one_entry(monkeypatch):
    import datasets

    rows = [{"question": f"{n} + 2?", "answer": str(n + 2), "subject": subject} for n, subject in enumerate("aba")]
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: rows if split == "dev" else [])
    monkeypatch.setitem(PROBLEM_SETS, "mine", ProblemSet({"test": "dev"}, "me/mine", subjects=["a"]))
    profile = load_profile("smoke", {"problems.test": "mine", "problems.test_size": 2})
    loaded = load_problems(profile, "test").problems
    assert [(p.id, p.question) for p in loaded] == [("mine-test-0", "0 + 2?"), ("mine-test-1", "2 + 2?")]
    assert is_published("mine")
    with pytest.raises(InputError, match="'mine' has no train split; it has test"):
        load_problem_set("mine", "train", None, profile)


def test_an_unknown_set_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'gsm8k'"):
        load_problem_set("gsm8", "train", 3, load_profile("smoke"))


def test_a_profile_without_target_training_has_no_target_split():
    assert load_profile("smoke").target_training is None
    with pytest.raises(InputError, match="target_training"):
        load_problems(load_profile("smoke"), "target")


def test_no_two_splits_share_a_question():
    sizes = {"problems.train_size": 12, "problems.test_size": 12, "problems.validation_size": 12}
    profile = load_profile("demo-full", {**sizes, "target_training.rows": 12})
    questions = [{p.question for p in load_problems(profile, split).problems} for split in SYMBOLIC_SPLITS]
    assert [len(split) for split in questions] == [12] * 4 and len(set.union(*questions)) == 48


@pytest.mark.parametrize("train", ["gsm8k", "mine.jsonl"])
def test_only_a_file_or_gsm_symbolic_has_validation_problems(train):
    with pytest.raises(InputError, match=r"problems\.validation"):
        load_problems(load_profile("smoke", {"problems.train": train}), "validation")


def test_a_split_without_a_size_is_refused_by_its_name():
    with pytest.raises(InputError, match=r"problems\.validation_size"):
        load_problems(load_profile("smoke"), "validation")


def test_a_gsm8k_style_file_is_split_into_solution_and_answer(tmp_path):
    path = _write(
        tmp_path / "own.jsonl",
        {
            "question": " How many? ",
            "answer": "She sells 16 - 3 = <<16-3=13>>13.\nThen 13 + 5 = <<13+5=18>>18.\n#### 18",
        },
        {"problem": "What is it?", "answer": 5, "cot": "2+3 = 5", "unique_id": "u/1.json"},
        {"id": "z", "question": "Which?", "solution": "It is \\boxed{\\frac{1}{2}}."},
    )
    first, second, third = read_problems(path)
    assert first == Problem(
        id="own-1", question="How many?", answer="18", solution="She sells 16 - 3 = 13.\nThen 13 + 5 = 18."
    )
    assert second == Problem(id="u/1.json", question="What is it?", answer="5", solution="2+3 = 5")
    assert (third.id, third.answer) == ("z", "\\frac{1}{2}")


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({"question": "q"}, "answer"),
        ({"question": "q", "answer": " "}, "answer"),
        ({"question": "q", "answer": None}, "answer"),
        ({"question": "q", "answer": "2 + 2 = 4 ####"}, "answer"),
        ({"answer": "3"}, "question"),
        ({"question": "", "answer": "3"}, "question"),
    ],
)
def test_a_row_without_question_or_answer_is_refused_with_file_and_row(tmp_path, row, missing):
    path = _write(tmp_path / "own.jsonl", {"question": "q0", "answer": "1"}, row)
    with pytest.raises(InputError) as caught:
        read_problems(path)
    assert f"{path}:2" in str(caught.value) and missing in str(caught.value)


def test_a_file_without_rows_and_one_with_a_repeated_id_are_refused(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        read_problems(_write(tmp_path / "empty.jsonl"))
    rows = [{"id": "a", "question": "q", "answer": "1"}, {"id": "a", "question": "r", "answer": "2"}]
    with pytest.raises(InputError, match="'a' is on more than one row"):
        read_problems(_write(tmp_path / "twice.jsonl", *rows))


def test_an_own_file_is_taken_from_its_beginning_and_never_stretched(tmp_path, problems):
    path = _write(tmp_path / "own.jsonl", *[p.model_dump() for p in problems])
    assert load_problem_set(str(path), "train", 2, load_profile("smoke")).problems == problems[:2]
    assert load_problem_set(str(path), "train", None, load_profile("smoke")).problems == problems
    with pytest.raises(InputError, match="9 problems asked for, 5"):
        load_problem_set(str(path), "train", 9, load_profile("smoke"))


def test_a_test_question_that_is_also_trained_on_is_refused(problems):
    refuse_shared_questions(problems[:2], problems[2:])
    twin = Problem(id="twin", question=problems[0].question.replace(" ", "\n  "), answer="7")
    with pytest.raises(InputError, match="'twin' is also training problem 'p0'"):
        refuse_shared_questions(problems[:2], [problems[3], twin])


def test_the_published_files_are_read_whole(data_folder):
    gsm8k = read_problems(data_folder / "gsm8k_test.jsonl")
    math500 = read_problems(data_folder / "math500_test.jsonl")
    assert (len(gsm8k), len(math500)) == (1319, 500)
    assert gsm8k[0].answer == "18" and gsm8k[0].solution.startswith("Janet sells 16 - 3 - 4 = 9 duck eggs")
    assert all("<<" not in p.solution and "####" not in p.answer for p in gsm8k)
    assert math500[0].answer == "\\left( 3, \\frac{\\pi}{2} \\right)"
    assert all(p.solution for p in [*gsm8k, *math500])
    refuse_shared_questions(read_problems(data_folder / "gsm8k_train.jsonl"), gsm8k)
