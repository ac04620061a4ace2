"""Predictions in the forms that people have: all read alike, what a row lacks said in words, no row a crash."""

import io
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.made_predictions import prediction
from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.input_forms import GivenAnswer, read_answer, read_rows
from tokenskip_lib.evaluation.own_predictions import grade_file
from tokenskip_lib.evaluation.placement import AGAIN, read_answers

ASKED, SAID = "How many?", "3 + 4 = 7, so \\boxed{7}."
FORMS = {
    "our records": {**prediction("a").model_dump(), "output": SAID, "question": ASKED},
    "plain": {"question": ASKED, "output": SAID, "answer": 7},
    "gsm8k's gold": {"question": ASKED, "output": SAID, "answer": "3 + 4 = <<3+4=7>>7\n#### 7"},
    "math's gold": {"problem": ASKED, "output": SAID, "answer": "It is $\\boxed{7}$."},
    "lm-eval": {"doc_id": 3, "doc": {"question": ASKED}, "target": "so #### 7", "resps": [[SAID]], "filter": "none"},
    "lm-eval, old": {"doc": {"problem": ASKED, "answer": "7"}, "resps": [SAID], "filtered_resps": ["7"]},
    "authors' code": {
        "messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ""}],
        "model_output": SAID,
        "answer": "7",
        "cot_length": 9,
    },
    "messages": {
        "messages": [
            {"role": "system", "content": "You count."},
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": SAID},
        ],
        "answer": "7",
    },
    "messages in parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": ASKED}]},
            {"role": "assistant", "content": [{"type": "text", "text": SAID[:9]}, {"type": "text", "text": SAID[9:]}]},
        ],
        "target": 7,
    },
    "sharegpt": {
        "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}],
        "answer": "7",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form):
    answer = read_answer(FORMS[form])
    assert isinstance(answer, GivenAnswer), answer
    assert (answer.question, answer.gold, answer.output) == (ASKED, "7", SAID)


def test_method_ratio_id_and_counts_are_read_where_a_row_has_them():
    ours, authors = read_answer(FORMS["our records"]), read_answer(FORMS["authors' code"])
    assert (ours.id, ours.method, ours.ratio, ours.chain_tokens) == ("a", "original", 1.0, 100)
    assert (authors.id, authors.method, authors.ratio, authors.chain_tokens) == ("", "", None, 9)
    assert read_answer(FORMS["lm-eval"]).id == "3"
    assert read_answer({**FORMS["plain"], "ratio": 0.5}).ratio == 0.5


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"answer": "7"}, "no 'output'"),
        ({"output": None, "answer": "7"}, "no 'output'"),
        ({"resps": [[["-1.2", "True"]]], "target": 1}, "no 'output'"),  # lm-eval's likelihoods are no text
        ({"messages": [{"role": "user", "content": ASKED}], "answer": "7"}, "no 'output'"),
        ({"output": SAID}, "no 'answer'"),
        ({"output": SAID, "answer": " "}, "no 'answer'"),
        ({"output": SAID, "answer": ["7"]}, "no 'answer'"),
        ({"output": SAID, "answer": float("inf")}, "no 'answer'"),
        *[
            ({"output": SAID, "answer": "7", "ratio": ratio}, "'ratio'")
            for ratio in (float("nan"), -0.5, 100, True, "1")
        ],
        *[({"output": SAID, "answer": "7", "id": name}, "an 'id'") for name in (["a"], {"a": 1}, True)],
        ({"output": SAID, "answer": "7", "doc_id": [1]}, "an 'id'"),
    ],
)
def test_what_a_row_lacks_is_said(row, says):
    assert says in read_answer(row)


def test_the_parts_of_a_turn_may_be_anything():
    parts = [{"text": "3 + 4 = "}, {"text": 7}, {"text": ["x"]}, {"image": "y"}, "z"]
    answer = read_answer({"messages": [{"role": "assistant", "content": parts}], "answer": "7"})
    assert isinstance(answer, GivenAnswer) and answer.output == "3 + 4 = 7"


@pytest.mark.parametrize("count", [-1, 10**400, True, "5", 5.0, None])
def test_what_is_no_count_of_tokens_is_not_counted(count):
    answer = read_answer({"output": SAID, "answer": "7", "chain_tokens": count, "first_call_tokens": count})
    assert (answer.chain_tokens, answer.first_call_tokens) == (None, 0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"output": "7", "answer": "7", "unread": "\\ud83d"}', "half of a surrogate pair"),
        ('{"output": "7", "answer": "7", "unread": NaN}', "NaN is no number in JSON"),
        ('{"output": "7", "answer": "7", "unread": 1e999}', "1e999 is too large"),
        ('{"output": "7", "answer": "7", "unread": ' + "[" * 100_000, "nested too deeply"),
        ('{"output": "7", "answer": "7", "unread": ' + "7" * 5000 + "}", "5000 digits"),
    ],
)
def test_what_no_json_may_hold_is_refused_in_any_field_and_nothing_is_written(tmp_path, line, says):
    mine, graded = tmp_path / "mine.jsonl", tmp_path / "graded.jsonl"
    mine.write_text(f'{{"output": "7", "answer": "7"}}\n{line}\n')
    with pytest.raises(InputError) as caught:
        grade_file(str(mine), str(graded))
    assert str(caught.value).startswith(f"{mine}:2: ") and says in str(caught.value)
    assert not graded.exists()


def test_a_pipe_by_its_path_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: a pipe or a device"):
        grade_file(str(tmp_path / "pipe"), str(tmp_path / "graded.jsonl"))
    with pytest.raises(InputError, match="pipe: a pipe or a device"):
        read_answers(str(tmp_path / "pipe"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "gpt"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "from", "content", "text"]), inner)
    ),
    max_leaves=6,
)
NAMES = [
    "id", "question", "answer", "output", "messages", "conversations", "resps", "target", "doc", "ratio",
    "chain_tokens",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_no_row_is_a_crash(row):
    assert isinstance(read_answer(row), str | GivenAnswer)


def test_an_empty_output_is_an_answer_and_a_wrong_one(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"output": "", "answer": "7"}\n')
    assert grade_file(str(tmp_path / "mine.jsonl"), str(tmp_path / "graded.jsonl"))["no_answer"] == 1


def test_grade_reads_every_form_in_one_json_array_and_keeps_the_fields(tmp_path):
    rows = [{**row, "mine": number} for number, row in enumerate(FORMS.values())]
    (tmp_path / "mine.json").write_text("\ufeff\n" + json.dumps(rows, indent=1), encoding="utf-8")
    counts = grade_file(str(tmp_path / "mine.json"), str(tmp_path / "graded.jsonl"))
    assert counts["rows"] == counts["correct"] == counts["correct_by_reference"] == len(FORMS)
    graded = [json.loads(line) for line in (tmp_path / "graded.jsonl").read_text().splitlines()]
    assert [row["mine"] for row in graded] == list(range(len(FORMS)))
    assert graded[4]["resps"] == FORMS["lm-eval"]["resps"]


def test_two_filters_of_lm_eval_are_one_answer_and_further_samples_are_counted(tmp_path):
    row = {**FORMS["lm-eval"], "resps": [[*FORMS["lm-eval"]["resps"][0], "another", "a third"]]}
    rows = [{**row, "filter": name} for name in ("strict-match", "flexible-extract")]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = grade_file(str(tmp_path / "samples.jsonl"), str(tmp_path / "graded.jsonl"))
    assert counts == {"rows": 1, "correct": 1, "correct_by_reference": 1, "filtered": 1, "further": 2, "no_answer": 0}
    assert len((tmp_path / "graded.jsonl").read_text().splitlines()) == 2
    assert read_answers(str(tmp_path / "samples.jsonl"))[1] == {AGAIN: 3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"output": "7"}, 8]', ":2: expected an object, found int"),
        ('[{"output": "7"},\n', ":1: not JSON"),
        ('{"output": "7"}\n["x"]\n', ":2: expected an object, found list"),
    ],
)
def test_a_broken_array_is_refused_by_its_item(tmp_path, text, says):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(InputError, match=says):
        list(read_rows(str(tmp_path / "mine.json")))


def test_an_array_comes_through_a_pipe(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'[\n{"id": 1},\n{"id": 2}]')))
    assert list(read_rows("-")) == [("-:1", {"id": 1}), ("-:2", {"id": 2})]


def test_an_empty_field_does_not_hide_the_one_that_is_filled():
    turns = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]
    found = read_answer({"messages": None, "conversations": turns, "answer": "", "target": "7"})
    assert (found.question, found.output, found.gold) == (ASKED, SAID, "7")
    row = {"question": "", "problem": ASKED, "output": "", "model_output": SAID, "answer": "7"}
    found = read_answer({**row, "messages": [], "chain_tokens": None, "cot_length": 9})
    assert (found.question, found.output, found.chain_tokens) == (ASKED, SAID, 9)
    assert read_answer({"output": "", "answer": "7"}).output == ""  # an answer without a word is an answer
