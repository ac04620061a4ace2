"""Problem sets: no two splits share a question, own files are read or refused by row."""

import json
from time import process_time

import pytest

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import InputError, Problem
from tokenskip_lib.problems.gsm_symbolic import SYMBOLIC_SPLITS
from tokenskip_lib.problems.sets import (
    PROBLEM_SETS,
    ProblemSet,
    check_problems,
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
    [problem] = read_problems(path).problems
    assert (problem.question, problem.answer) == ("2 + 2?\n(A) 3\n(B) 4", "B")


@pytest.mark.parametrize("options", [["3", "4"], {"A": "3", "B": "4"}, {"label": ["A", "B"], "text": ["3", "4"]}])
def test_own_options_are_choices(tmp_path, capsys, options):
    row = {"id": 0, "question": "2 + 2?", "options": options, "answer": "B"}
    [problem] = read_problems(_write(tmp_path / "own.jsonl", row)).problems
    assert problem == Problem(id="0", question="2 + 2?\n(A) 3\n(B) 4", answer="B")
    assert capsys.readouterr().err == ""


def test_fields_that_are_not_read_are_named(tmp_path, capsys):
    rows = [
        {"question": "2 + 2?", "choices": ["3", "4"], "options": ["5"], "answer": "B", "level": 1},
        {"question": "q", "problem": "r", "answer": "1", "target": None, "source": "x"},
    ]
    path = _write(tmp_path / "own.jsonl", *rows)
    assert [p.question for p in read_problems(path).problems] == ["2 + 2?\n(A) 3\n(B) 4", "q"]
    assert capsys.readouterr().err == f"{path}: fields that are not read: level, options, problem, source\n"
    check_problems([("questions[0]", {"id": "a", "question": "q", "topic": "x"})])
    assert capsys.readouterr().err == "questions: fields that are not read: topic\n"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("So $x=\\boxed 9$.", "9"),
        ("We get $\\boxed 2$", "2"),
        ("Thus $\\boxed \\frac{1}{2} x$ it is.", "\\frac{1}{2} x"),
        ("\\[y = \\boxed 7.\\]", "7"),
        ("It is \\boxed 12, no more.", "12"),
        ("First $\\boxed{3}$, then $\\fbox 4$.", "4"),
        ("First $\\boxed 3$, then $\\boxed{4}$.", "4"),
        ("In \\fbox {x + 1}", "x + 1"),
        ("None.", None),
        ("Empty: $\\boxed{}$", None),
        ("Torn: \\boxed{4", None),
        ("A \\boxedfigure 4", None),
    ],
)
def test_a_box_is_read_with_braces_and_without(tmp_path, solution, answer):
    rows = [{"id": "a", "problem": "q", "solution": solution}, {"id": "b", "problem": "r", "answer": "1"}]
    loaded = read_problems(_write(tmp_path / "own.jsonl", *rows))
    assert {p.id: p.answer for p in loaded.problems} == ({"b": "1"} if answer is None else {"a": answer, "b": "1"})
    assert sum(loaded.dropped.values()) == (answer is None)


MATH_ROWS = [
    {"problem": "Find $x$.", "solution": "So $x=\\boxed 9$.", "level": "Level 1", "type": "Algebra"},
    {"problem": "Draw it.", "solution": "See the figure.", "level": "Level 1", "type": "Geometry"},
    {"problem": "Find $y$.", "solution": "So $y=\\boxed{\\frac{1}{2}}$.", "level": "Level 2", "type": "Algebra"},
    *({"problem": f"Draw {n}.", "solution": "See.", "level": "Level 1", "type": "Geometry"} for n in range(4)),
]


@pytest.mark.parametrize("from_hub", [True, False])
def test_a_profile_of_math_loads_and_says_which_rows_state_no_answer(monkeypatch, tmp_path, from_hub):
    import datasets

    asked = {
        "DigitalLearningGmbH/MATH-lighteval": MATH_ROWS,
        "HuggingFaceH4/MATH-500": [{"problem": "Find $z$.", "solution": "", "answer": "3", "unique_id": "t/1"}],
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, config, split: asked[hub])
    own = {} if from_hub else {"problems.train": str(_write(tmp_path / "mine.jsonl", *MATH_ROWS))}
    profile = load_profile("llama3.1-8b-math", own)
    loaded = load_problems(profile, "train")
    assert [(p.question, p.answer) for p in loaded.problems] == [("Find $x$.", "9"), ("Find $y$.", "\\frac{1}{2}")]
    ids = ("math-train-1", "math-train-3", "math-train-4") if from_hub else ("mine-2", "mine-4", "mine-5")
    reason = f"no answer given, and none boxed in the solution ({', '.join(ids)} and 2 more)"
    assert loaded.dropped == {reason: 5}
    assert [p.answer for p in load_problems(profile, "test").problems] == ["3"]
    with pytest.raises(InputError, match="3 problems asked for, 2 there are"):
        load_problem_set(profile.problems.train, "train", 3, profile)


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
    first, second, third = read_problems(path).problems
    assert first == Problem(
        id="own-1", question="How many?", answer="18", solution="She sells 16 - 3 = 13.\nThen 13 + 5 = 18."
    )
    assert second == Problem(id="u/1.json", question="What is it?", answer="5", solution="2+3 = 5")
    assert (third.id, third.answer) == ("z", "\\frac{1}{2}")


@pytest.mark.parametrize("row", [{"answer": "3"}, {"question": " ", "answer": "3"}, {"choices": ["a", "b"]}])
def test_a_row_without_question_is_refused_with_file_and_row(tmp_path, row):
    path = _write(tmp_path / "own.jsonl", {"question": "q0", "answer": "1"}, row)
    with pytest.raises(InputError, match=rf"{path}:2: no question"):
        read_problems(path)


@pytest.mark.parametrize(
    "extra", [{}, {"answer": " "}, {"answer": None}, {"answer": "4 ####"}, {"choices": ["a", "b"]}]
)
def test_a_row_without_answer_is_left_out_and_named_unless_no_row_has_one(tmp_path, extra):
    row = {"question": "q", **extra}
    loaded = read_problems(_write(tmp_path / "own.jsonl", {"question": "q0", "answer": 0}, row))
    assert [problem.answer for problem in loaded.problems] == ["0"]
    assert loaded.dropped == {"no answer given, and none boxed in the solution (own-2)": 1}
    with pytest.raises(InputError, match=r"own\.jsonl: no row has an answer"):
        read_problems(_write(tmp_path / "own.jsonl", row))


def test_a_file_without_rows_and_one_with_a_repeated_id_are_refused(tmp_path):
    with pytest.raises(InputError, match="no rows"):
        read_problems(_write(tmp_path / "empty.jsonl"))
    rows = [{"id": "a", "question": "q", "answer": "1"}, {"id": "a", "question": "r", "answer": "2"}]
    with pytest.raises(InputError, match=r"twice\.jsonl:2: id 'a' is on more than one row"):
        read_problems(_write(tmp_path / "twice.jsonl", *rows))


@pytest.mark.parametrize("part", ["id", "question", "answer", "solution"])
@pytest.mark.parametrize("value", [["7"], {"value": 7}, True, False])
def test_a_part_that_is_neither_text_nor_number_is_refused(tmp_path, part, value):
    path = _write(tmp_path / "own.jsonl", {"id": "a", "question": "q", "answer": "7", part: value})
    with pytest.raises(InputError, match=rf"own\.jsonl:1: {part}: a text or a number, not {type(value).__name__}"):
        read_problems(path)


def test_fields_and_ids_are_printable_where_they_are_listed(tmp_path, capsys):
    rows = [{"id": "\x1b[31ma\n", "question": "q", "\x1b[32mnote\n": 1}, {"question": "q", "answer": "7"}]
    loaded = read_problems(_write(tmp_path / "own.jsonl", *rows))
    assert list(loaded.dropped) == [r"no answer given, and none boxed in the solution (\x1b[31ma\n)"]
    assert capsys.readouterr().err == f"{tmp_path / 'own.jsonl'}: fields that are not read: \\x1b[32mnote\\n\n"


def test_numbers_are_parts_too(tmp_path):
    [problem] = read_problems(_write(tmp_path / "own.jsonl", {"id": 0, "question": 8, "answer": 0.5})).problems
    assert (problem.id, problem.question, problem.answer) == ("0", "8", "0.5")


def test_a_choice_that_is_neither_text_nor_number_is_refused(tmp_path):
    path = _write(tmp_path / "own.jsonl", {"question": "q", "answer": "A", "choices": ["1", {"text": "2"}]})
    with pytest.raises(InputError, match=r"own\.jsonl:1: choices \(or options\): a text or a number, not dict"):
        read_problems(path)


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
    gsm8k = read_problems(data_folder / "gsm8k_test.jsonl").problems
    math500 = read_problems(data_folder / "math500_test.jsonl").problems
    assert (len(gsm8k), len(math500)) == (1319, 500)
    assert gsm8k[0].answer == "18" and gsm8k[0].solution.startswith("Janet sells 16 - 3 - 4 = 9 duck eggs")
    assert all("<<" not in p.solution and "####" not in p.answer for p in gsm8k)
    assert math500[0].answer == "\\left( 3, \\frac{\\pi}{2} \\right)"
    assert all(p.solution for p in [*gsm8k, *math500])
    refuse_shared_questions(read_problems(data_folder / "gsm8k_train.jsonl").problems, gsm8k)


def test_calculator_marks_that_never_close_stay_and_are_read_at_once(tmp_path):
    solution, start = "3 <<3*4=12>>12 " + "<<" * 200_000, process_time()
    rows = _write(tmp_path / "own.jsonl", {"question": "3 * 4?", "answer": "12", "solution": solution})
    [problem] = read_problems(rows).problems
    assert problem.solution == "3 12 " + "<<" * 200_000
    assert process_time() - start < 5  # minutes, if each "<<" looked for an end
