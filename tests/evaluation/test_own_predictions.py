"""Anyone's predictions: graded by both rules, other fields kept, refused by row."""

import io
import json
import os
import subprocess

import pytest

from tokenskip_lib.core.outputs import lock_path
from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation import own_predictions
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
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"graded.jsonl", "graded.jsonl.settings.json"}


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


@pytest.mark.parametrize("name", ["notes.txt", "graded.jsonl.settings.json"])
def test_a_file_that_grade_did_not_make_is_never_written_over(source, tmp_path, name):
    other = tmp_path / name
    other.write_text("mine\n")
    with pytest.raises(InputError, match=r"^[^\n]*(not known how this file was made|not the note of an output)[^\n]*$"):
        grade_file(str(source), str(tmp_path / name.removesuffix(".settings.json")))
    assert other.read_text() == "mine\n"


@pytest.mark.parametrize("kind", ["settings.json", "lock"])
def test_a_file_beside_an_output_is_never_the_input(source, tmp_path, kind):
    rows = source.read_text()
    source.rename(source := tmp_path / f"graded.jsonl.{kind}")
    with pytest.raises(InputError, match=f"a file whose {kind.removesuffix('.json')} would be the input"):
        grade_file(str(source), str(tmp_path / "graded.jsonl"))
    assert source.read_text() == rows and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("kind", ["partial", "settings.json.partial"])
def test_a_file_that_is_named_like_an_unfinished_one_stays(source, tmp_path, kind):
    rows = source.read_text()
    source.rename(source := tmp_path / f"graded.jsonl.{kind}")
    assert grade_file(str(source), str(tmp_path / "graded.jsonl"))["rows"] == 3
    assert source.read_text() == rows


def test_an_output_that_another_process_writes_is_refused_under_each_of_its_names(source, tmp_path, written_by_another):
    output, link = tmp_path / "graded.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(output)
    with written_by_another(output, lock_path(output)) as pid:
        for name in (output, link):
            with pytest.raises(InputError, match=rf"^[^\n]*{name.name}: process {pid} on [^\n]*$"):
                grade_file(str(source), str(name))
        assert not output.exists()
    assert grade_file(str(source), str(output))["rows"] == 3


def test_a_full_disk_is_one_line_and_the_grading_goes_on_when_there_is_room(source, tmp_path, full_disk):
    source.write_text("".join(json.dumps({**ROWS[0], "id": number}) + "\n" for number in range(200)))
    output = tmp_path / "graded.jsonl"
    grade_file(str(source), str(tmp_path / "whole.jsonl"))
    with full_disk(20_000), pytest.raises(InputError, match=r"^[^\n]*graded\.jsonl: cannot be written \([^\n]*$"):
        grade_file(str(source), str(output))
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert output.stat().st_size == 20_000 and whole.startswith(output.read_bytes())
    assert grade_file(str(source), str(output))["rows"] == 200 and output.read_bytes() == whole
    with pytest.raises(InputError, match=r"^/dev/full: cannot be written \(No space left on device\)$"):
        grade_file(str(source), "/dev/full")


@pytest.mark.parametrize("cut", [0, 1, 30, 200])
def test_a_killed_grading_goes_on_to_the_same_file_and_counts(source, tmp_path, monkeypatch, cut):
    output = tmp_path / "graded.jsonl"
    counts = grade_file(str(source), str(output))
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) - cut])  # the end is torn, or lines are missing
    asked = []
    split = own_predictions.split_output
    monkeypatch.setattr(own_predictions, "split_output", lambda *a: asked.append(1) or split(*a))
    assert grade_file(str(source), str(output)) == counts and output.read_bytes() == whole
    assert len(asked) < len(ROWS)  # what was there is not graded again
    with pytest.raises(InputError, match=r"made with other settings \(layout\)"):
        grade_file(str(source), str(output), "think")
    source.write_text("".join(reversed(source.read_text().splitlines(keepends=True))))
    with pytest.raises(InputError, match="made from something else than"):
        grade_file(str(source), str(output))
    assert output.read_bytes() == whole


def test_a_row_that_was_left_out_is_graded_by_the_next_call_and_equal_rows_without_an_id_are_all_there(tmp_path):
    source, output = tmp_path / "predictions.jsonl", tmp_path / "graded.jsonl"
    rows = [*ROWS, *[{"answer": "7", "output": "\\boxed{7}"}] * 3]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = grade_file(str(source), str(output))
    whole = output.read_text().splitlines()
    assert counts["rows"] == 6 and len(whole) == 6
    for missing in (1, 4):  # as it is where a row ended its worker each time
        output.write_text("".join(line + "\n" for line in whole[:missing] + whole[missing + 1 :]))
        assert grade_file(str(source), str(output)) == counts
        assert output.read_text().splitlines() == [*whole[:missing], *whole[missing + 1 :], whole[missing]]
    output.write_text(source.read_text())
    with pytest.raises(InputError, match=r"graded\.jsonl:1: a row without its verdicts; mend or remove the line"):
        grade_file(str(source), str(output))


def test_a_link_is_followed_and_a_pipe_is_written_through(source, tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    grade_file(str(source), str(tmp_path / "link.jsonl"))
    assert (tmp_path / "link.jsonl").is_symlink() and len((tmp_path / "real.jsonl").read_text().splitlines()) == 3
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    grade_file(str(source), str(tmp_path / "pipe"))
    assert len(reader.communicate(timeout=20)[0].splitlines()) == 3 and (tmp_path / "pipe").is_fifo()


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


def test_several_launched_processes_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "predictions.jsonl").write_text('{"id": "a", "answer": "1", "output": "1"}\n')
    with pytest.raises(InputError, match="one process writes a file of records"):
        grade_file(str(tmp_path / "predictions.jsonl"), str(tmp_path / "graded.jsonl"))
    assert not (tmp_path / "graded.jsonl").exists()
