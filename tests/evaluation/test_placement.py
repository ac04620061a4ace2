"""Placed predictions: what is dropped is counted, points have intervals, and what cannot be paired is said."""

import json

import pytest

from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.placement import (
    AGAIN,
    PlacedAnswer,
    grade_answers,
    pair_with_first,
    placed_rows,
    read_answers,
    say_dropped,
)


def _write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_row_that_is_dropped_is_counted_with_its_reason(tmp_path):
    rows = [
        {"id": "a", "output": "7", "answer": "7"},
        {"id": "a", "output": "8", "answer": "7"},  # another sample
        {"id": "a", "output": "8", "answer": "7", "ratio": 0.5},
        {"id": "b", "output": None, "answer": "7"},
        {"id": "c", "output": "7"},
        {"id": "d", "output": "7"},
        {"output": "7", "answer": "7"},  # neither id nor question: nothing says that these are one problem
        {"output": "7", "answer": "7"},
    ]
    source = _write(tmp_path / "mine.jsonl", rows)
    answers, dropped = read_answers(source)
    assert [(answer.id, answer.ratio) for answer in answers] == [("a", None), ("a", 0.5), ("", None), ("", None)]
    no_gold, no_output = (f"no '{name}' that is a text or a number" for name in ("answer", "output"))
    assert dropped == {no_gold: 2, AGAIN: 1, no_output: 1} and dropped.total() + len(answers) == len(rows)
    assert say_dropped("f", dropped).startswith(f"f: 4 answers dropped (2: {no_gold}; 1: {AGAIN}")


@pytest.mark.parametrize(("rows", "says"), [([], "it is empty"), ([{"output": "7"}], "1: no 'answer'")])
def test_a_file_with_nothing_to_grade_is_refused_with_the_reason(tmp_path, rows, says):
    with pytest.raises(InputError, match=says):
        read_answers(_write(tmp_path / "mine.jsonl", rows))


def test_the_chain_is_counted_up_to_the_answer_and_both_rules_judge(tmp_path):
    rows = [
        {
            "id": "a",
            "output": "one two\n\nThe final answer is: $\\boxed{7}$",
            "answer": "7",
            "method": "m",
            "ratio": 0.5,
        },
        {"id": "b", "output": "one two three 7", "answer": "7", "method": "m", "ratio": 0.5},  # states no answer
        {"id": "c", "output": "<think>\none\n</think>\n\\boxed{7}", "answer": "8", "method": "m", "ratio": 0.5},
    ]
    given, _ = read_answers(_write(tmp_path / "mine.jsonl", rows))

    def words(texts):
        return [len(text.split()) for text in texts]

    graded = grade_answers(given[:2], "mine", words, "answer")
    assert [answer.chain_tokens for answer in graded] == [2, 4]
    [row] = placed_rows(graded, tested_on="gsm8k", source="mine.jsonl", counted_by="words")
    assert (row.method, row.ratio, row.n, row.no_answer, row.tokens) == ("mine: m", 0.5, 2, 1, 3.0)
    assert (row.accuracy, row.accuracy_strict) == (100.0, 50.0)
    assert row.accuracy_low < 100.0 == row.accuracy_high and 2 <= row.tokens_low < row.tokens_high <= 4
    [thought] = grade_answers(given[2:], "mine", words, "think")
    assert (thought.chain_tokens, thought.is_correct) == (1, False)


def test_counts_that_the_rows_bring_are_taken_where_nothing_counts(tmp_path):
    rows = [{"output": "7", "answer": "7", "chain_tokens": 5}, {"output": "7", "answer": "7", "cot_length": 6}]
    given, _ = read_answers(_write(tmp_path / "mine.jsonl", rows))
    assert [answer.chain_tokens for answer in grade_answers(given, "mine", None, "answer")] == [5, 6]


def _answers(method: str, verdicts: str, *, names: str = "question", tokens: int = 10, gold: str = "7"):
    return [
        PlacedAnswer(
            id=f"p{number}" if names == "id" else "",
            question=f"Question {number}?" if names == "question" else "",
            gold=gold,
            method=method,
            ratio=1.0,
            states_ratio=False,
            is_correct=verdict == "+",
            strictly=verdict == "+",
            states_none=False,
            chain_tokens=tokens,
        )
        for number, verdict in enumerate(verdicts)
    ]


@pytest.mark.parametrize("names", ["question", "id"])
def test_two_files_on_the_same_problems_are_compared_problem_by_problem(names):
    first, second = _answers("a", "++--+", names=names), _answers("b", "+-+-+", names=names, tokens=5)
    paired, notes = pair_with_first(first + second[::-1])
    [row] = paired.to_dict("records")
    assert (row["method"], row["n"], row["gained"], row["lost"], row["p_value"]) == ("b", 5, 1, 1, 1.0)
    assert row["difference"] == 0 and row["actual_ratio"] == 0.5 and notes == []


def test_only_the_problems_that_both_answer_are_compared():
    paired, _ = pair_with_first(_answers("a", "+++++") + _answers("b", "--"))
    assert paired[["n", "lost"]].to_numpy().tolist() == [[2, 2]]


def test_what_cannot_be_paired_is_said():
    first = _answers("a", "++")
    paired, notes = pair_with_first(first + _answers("b", "++", names="id") + _answers("c", "++", gold="8"))
    assert paired.empty and len(notes) == 2
    assert "b: not paired with a, since no question or id is in both" in notes
    assert "c: not paired with a, since gold answers differ (one is '7')" in notes


def test_gold_answers_that_are_only_written_otherwise_are_the_same():
    paired, notes = pair_with_first(_answers("a", "++", gold="1,000") + _answers("b", "++", gold="1000"))
    assert len(paired) == 1 and notes == []


def test_one_curve_alone_is_compared_with_nothing():
    paired, notes = pair_with_first(_answers("a", "++"))
    assert paired.empty and notes == []


def test_a_first_call_whose_text_is_not_there_is_counted_all_the_same(tmp_path):
    text = "one two\n\nThe final answer is: $\\boxed{7}$"
    rows = [
        {"output": text, "answer": "7", "chain_tokens": 11, "first_call_tokens": 9},
        {"output": text, "answer": "7"},
    ]
    given, _ = read_answers(_write(tmp_path / "mine.jsonl", rows))
    graded = grade_answers(given, "mine", lambda texts: [len(t.split()) for t in texts], "answer")
    assert [answer.chain_tokens for answer in graded] == [11, 2]
