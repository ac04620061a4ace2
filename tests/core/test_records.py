"""Records and the JSONL store: what is written comes back, a kill costs one line, a user's mistake is named."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenskip_lib.core.records import InputError, Problem, PrunedChain, ScoredChain
from tokenskip_lib.core.store import RecordLog, RecordStore, read_jsonl

a_text = st.text(max_size=40) | st.text(alphabet='ab"\\\n\r\t\u2028\u0085×é', max_size=20)
some_problems = st.lists(
    st.builds(Problem, id=a_text, question=a_text, answer=a_text, solution=a_text), max_size=6, unique_by=lambda p: p.id
)


def _problem(name: str) -> Problem:
    return Problem(id=name, question=f"What is {name}?", answer="1", solution="1 × 1 = 1")


@given(some_problems)
def test_records_come_back_as_they_were_written(records):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        RecordStore(path, Problem).append(records)
        assert list(RecordStore(path, Problem)) == records
        if records:
            assert path.read_bytes().count(b"\n") == len(records)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(51, 99)), max_size=5),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
)
def test_spans_and_scores_come_back_exactly(spans, importance):
    record = ScoredChain(id="a", scorer="s", text="t\n", spans=spans, importance=importance)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.jsonl"
        RecordStore(path, ScoredChain).append([record])
        assert list(RecordStore(path, ScoredChain)) == [record]


@given(st.data())
def test_a_line_torn_at_any_byte_is_done_again_and_the_others_are_kept(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        records = [_problem("a"), _problem("b"), _problem("c")]
        RecordStore(path, Problem).append(records)
        whole = path.read_bytes()
        last = whole[:-1].rindex(b"\n") + 1
        path.write_bytes(whole[: data.draw(st.integers(last, len(whole) - 2))])
        torn, store = path.read_bytes(), RecordStore(path, Problem)
        assert list(store) == records[:2]
        assert path.read_bytes() == torn  # another process may be writing it just now
        store.append(records)
        assert path.read_bytes() == whole


def test_a_file_of_one_torn_line_is_an_empty_store(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "a", "quest')
    store = RecordStore(path, Problem)
    assert len(store) == 0
    store.append([_problem("b")])
    assert path.read_text() == _problem("b").model_dump_json() + "\n"


def test_a_whole_last_line_without_its_end_is_a_record(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(_problem("a").model_dump_json())
    store = RecordStore(path, Problem)
    store.append([_problem("a"), _problem("b")])
    assert list(RecordStore(path, Problem)) == [_problem("a"), _problem("b")]


def test_the_same_key_is_written_once(tmp_path):
    path = tmp_path / "p.jsonl"
    store = RecordStore(path, Problem)
    store.append([_problem("a")])
    store.append([_problem("a"), _problem("b"), _problem("b")])
    RecordStore(path, Problem).append([_problem("b")])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b"]
    assert ("a",) in store and ("c",) not in store and len(store) == 2


def test_the_key_of_a_pruned_chain_includes_scorer_and_ratio(tmp_path):
    base = PrunedChain(id="a", scorer="s", ratio=0.5, text="x", kept=[0], tokens=1, original_tokens=2)
    other_ratio, other_scorer = base.model_copy(update={"ratio": 0.6}), base.model_copy(update={"scorer": "r"})
    store = RecordStore(tmp_path / "p.jsonl", PrunedChain)
    store.append([base, other_ratio, other_scorer, base])
    assert list(RecordStore(tmp_path / "p.jsonl", PrunedChain)) == [base, other_ratio, other_scorer]
    assert base.actual_ratio == 0.5


def test_appending_nothing_makes_no_file(tmp_path):
    RecordStore(tmp_path / "p.jsonl", Problem).append([])
    assert not (tmp_path / "p.jsonl").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "b", "question": ', "not JSON"),
        ('["b"]', "list"),
        ('{"id": "b", "question": "q", "answer": 3}', "answer"),
        ('{"id": "b", "question": "q"}', "answer"),
        ('{"id": "b", "question": "q", "answer": "3", "colour": "red"}', "colour"),
    ],
)
def test_a_line_that_is_no_record_is_refused_with_file_line_and_field(tmp_path, line, says):
    path = tmp_path / "p.jsonl"
    good = _problem("a").model_dump_json()
    path.write_text(f"{good}\n{line}\n{good}\n")
    for read in (lambda: RecordStore(path, Problem), lambda: read_jsonl(path, Problem)):
        with pytest.raises(InputError) as caught:
            read()
        message = str(caught.value)
        assert f"{path}:2" in message and says in message and "\n" not in message
    assert path.read_text().splitlines()[1] == line  # only a torn last line is ever repaired


def test_bytes_that_are_not_utf8_are_refused_with_the_file(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        _problem("a").model_dump_json().encode() + b'\n{"id": "b", "question": "caf\xe9", "answer": "1"}\n'
    )
    with pytest.raises(InputError, match=r"p\.jsonl"):
        read_jsonl(path, Problem)


def test_empty_lines_are_ignored_but_counted(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(f"\n{_problem('a').model_dump_json()}\n\n{{}}\n")
    with pytest.raises(InputError, match=r"p\.jsonl:4: "):
        read_jsonl(path, Problem)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_jsonl(tmp_path / "none.jsonl", Problem)


def test_a_log_holds_keys_and_no_records(tmp_path):
    log = RecordLog(tmp_path / "p.jsonl", Problem)
    log.append([_problem("a"), _problem("b")])
    for opened in (log, RecordLog(tmp_path / "p.jsonl", Problem)):
        assert len(opened) == 2 and ("a",) in opened and ("c",) not in opened
        assert not any(isinstance(value, Problem) for value in vars(opened).values())
        assert not any(isinstance(record, Problem) for record in opened._records.values())
        with pytest.raises(TypeError):
            iter(opened)


def test_a_log_and_a_store_write_the_same_file(tmp_path):
    records = [_problem("a"), _problem("b"), _problem("a")]
    RecordLog(tmp_path / "log.jsonl", Problem).append(records)
    RecordStore(tmp_path / "store.jsonl", Problem).append(records)
    assert (tmp_path / "log.jsonl").read_bytes() == (tmp_path / "store.jsonl").read_bytes()
    assert list(RecordStore(tmp_path / "log.jsonl", Problem)) == records[:2]


def test_a_log_resumes_with_the_keys_that_are_on_disk(tmp_path):
    path = tmp_path / "p.jsonl"
    RecordLog(path, Problem).append([_problem("a")])
    log = RecordLog(path, Problem)
    log.append([_problem("a"), _problem("b")])
    log.append([_problem("b"), _problem("c")])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


@given(st.data())
def test_a_log_removes_a_torn_last_line_and_does_its_record_again(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.jsonl"
        records = [_problem("a"), _problem("b"), _problem("c")]
        RecordLog(path, Problem).append(records)
        whole = path.read_bytes()
        last = whole[:-1].rindex(b"\n") + 1
        path.write_bytes(whole[: data.draw(st.integers(last, len(whole) - 2))])
        log = RecordLog(path, Problem)
        assert len(log) == 2 and ("c",) not in log
        log.append(records)
        assert path.read_bytes() == whole


def test_a_log_refuses_a_line_that_is_no_record(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(_problem("a").model_dump_json() + '\n{"id": "b"}\n')
    with pytest.raises(InputError, match=r"p\.jsonl:2: question"):
        RecordLog(path, Problem)
