"""Anyone's predictions: graded by both rules, other fields kept, refused by row."""

import io
import json

import pytest

from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.own_predictions import grade_file

ROWS = [
    {"id": "a", "answer": "7", "output": "3 + 4 = 7.\n\nThe final answer is: $\\boxed{7}$", "model": "mine"},
    {"id": 2, "answer": 7, "output": "3 + 4 = 7 apples"},
    {"id": "c", "answer": "7", "output": "\\boxed{8}"},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_rows_keep_their_fields_and_get_their_verdicts(source, tmp_path):
    counts = grade_file(str(source), str(tmp_path / "new" / "graded.jsonl"))
    graded = [json.loads(line) for line in (tmp_path / "new" / "graded.jsonl").read_text().splitlines()]
    added = [(row["prediction"], row["is_correct"], row["is_correct_by_reference"]) for row in graded]
    assert added == [("7", True, True), (None, False, True), ("8", False, False)]
    assert [{name: row[name] for name in before} for row, before in zip(graded, ROWS, strict=True)] == ROWS
    assert counts == {"rows": 3, "correct": 1, "correct_by_reference": 2, "no_answer": 1, "further": 0}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["graded.jsonl"]


def test_a_method_and_a_ratio_tell_answers_to_one_problem_apart(tmp_path):
    rows = [{"id": "a", "answer": "7", "output": "\\boxed{7}", "method": "tokenskip", "ratio": r} for r in (0.5, 0.7)]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert grade_file(str(tmp_path / "predictions.jsonl"), str(tmp_path / "graded.jsonl"))["correct"] == 2


def test_outputs_that_think_state_their_answer_behind_it(tmp_path, capsys):
    row = {"id": "a", "answer": "7", "output": "<think>\nSo \\boxed{8}?\n</think>\n\\boxed{7}"}
    unfinished = {"id": "b", "answer": "8", "output": "<think>\nSo \\boxed{8}?"}
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, unfinished)))
    grade_file(str(tmp_path / "predictions.jsonl"), "-", "think")
    assert [json.loads(line)["prediction"] for line in capsys.readouterr().out.splitlines()] == ["7", None]
    with pytest.raises(InputError, match="'thnk' is none of answer, think"):
        grade_file(str(tmp_path / "predictions.jsonl"), "-", "thnk")


def test_a_pipe_goes_through(source, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    grade_file("-", "-")
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["a", 2, "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "d", "answer": "7"}', "4: no 'output'"),
        ('{"id": "d", "answer": null, "output": "x"}', "4: no 'answer'"),
        ('{"id": "d", "answer": ["7"], "output": "x"}', "4: no 'answer' that is a text or a number"),
        ('{"id": "a", "answer": "7", "output": "x"}', "4: id 'a' was there before"),
        ("{", "4: not JSON"),
    ],
)
def test_a_bad_row_is_refused_by_its_line_and_nothing_half_done_is_left(source, tmp_path, line, message):
    source.write_text(source.read_text() + line + "\n")
    with pytest.raises(InputError, match=message):
        grade_file(str(source), str(tmp_path / "graded.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_the_input_is_never_written_over(source):
    before = source.read_text()
    with pytest.raises(InputError, match="the input itself"):
        grade_file(str(source), str(source))
    assert source.read_text() == before


def test_a_file_that_is_not_there_is_refused_by_name(source, tmp_path):
    with pytest.raises(InputError, match=r"missing\.jsonl: no such file"):
        grade_file(str(tmp_path / "missing.jsonl"), str(source))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no rows"):
        grade_file(str(tmp_path / "empty.jsonl"), "-")


def test_phrases_of_another_language_are_given_to_the_grader_and_never_blank(tmp_path, capsys):
    source = tmp_path / "predictions.jsonl"
    source.write_text(json.dumps({"id": "a", "answer": "18", "output": "答案是18。"}) + "\n")
    grade_file(str(source), "-", answer_phrases=["答案是"])
    assert json.loads(capsys.readouterr().out)["is_correct"] is True
    with pytest.raises(InputError, match="--answer-phrase: a blank phrase"):
        grade_file(str(source), "-", answer_phrases=["答案是", " "])
