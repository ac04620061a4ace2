"""Records and the JSONL store: what is written comes back, a kill costs one line, a user's mistake is named."""

import json
import math
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tokenskip_lib.core.records import (
    LONGEST_MESSAGE,
    Chain,
    DeletionCurve,
    FirstCall,
    InputError,
    Prediction,
    Problem,
    PrunedChain,
    ScoredChain,
    SFTRow,
    few_of,
)
from tokenskip_lib.core.store import RecordLog, RecordStore, read_json, read_jsonl, write_json

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


@given(st.data())
def test_spans_and_scores_come_back_exactly(data):
    edges = sorted(data.draw(st.sets(st.integers(0, 99), max_size=10)))
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    scores = st.floats(allow_nan=False, allow_infinity=False)
    importance = data.draw(st.lists(scores, min_size=len(spans), max_size=len(spans)))
    record = ScoredChain(id="a", scorer="s", text="t\n" * 50, spans=spans, importance=importance)
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


def test_a_full_disk_is_one_line_and_what_was_written_stays(tmp_path, full_disk):
    path = tmp_path / "p.jsonl"
    RecordStore(path, Problem).append([_problem("a")])
    store = RecordStore(path, Problem)
    with full_disk(path.stat().st_size + 9), pytest.raises(InputError, match=r"^[^\n]*p\.jsonl: cannot be written \("):
        store.append([_problem("b"), _problem("c")])
    assert list(RecordStore(path, Problem)) == [_problem("a")]
    store.append([_problem("b"), _problem("c")])
    assert list(RecordStore(path, Problem)) == [_problem("a"), _problem("b"), _problem("c")]


def test_a_whole_file_that_does_not_fit_leaves_the_one_there_was(tmp_path, full_disk):
    write_json(tmp_path / "summary.json", "before")
    with full_disk(9), pytest.raises(InputError, match=r"^[^\n]*summary\.json: cannot be written \("):
        write_json(tmp_path / "summary.json", "after " * 9)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['"before"\n']


def test_names_as_long_as_a_file_may_have_are_written_and_longer_ones_are_one_line(tmp_path):
    write_json(tmp_path / ("é" * 127), 1)
    for use in (lambda path: write_json(path, 1), lambda path: RecordStore(path, Problem).append([_problem("a")])):
        with pytest.raises(InputError, match=r"^[^\n]*: cannot be (read|written) \(File name too long\)$"):
            use(tmp_path / ("é" * 128))


def test_a_read_only_folder_is_one_line(tmp_path, modes_count):
    (tmp_path / "p.jsonl").write_text("")
    (tmp_path / "p.jsonl").chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        for name in ("p.jsonl", "q.jsonl", "new/q.jsonl"):
            with pytest.raises(InputError, match=rf"^[^\n]*{name}: cannot be written \(Permission denied\)$"):
                RecordStore(tmp_path / name, Problem).append([_problem("a")])
    finally:
        tmp_path.chmod(0o755)


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
        ('{"id": "b", "deep": ' + "[" * 100_000, "nested too deeply"),
        ('{"id": "b", "n": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"id": "b", "n": NaN}', "NaN is no number in JSON"),
        ('{"id": "b", "n": -Infinity}', "-Infinity is no number in JSON"),
        ('{"id": "b", "n": 1e999}', "1e999 is too large"),
        ('{"id": "b", "question": "q \\ud83d", "answer": "3"}', "half of a surrogate pair ('\\ud83d')"),
        ('{"id": "b", "\\uDE00": "q"}', "half of a surrogate pair ('\\ude00')"),
        ('{"id": "b", "question": "q", "answer": "3", "\\u001b[31m\\n": 1}', "\\x1b[31m\\n: Extra inputs"),
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
        assert f"{path}:2: " in message and says in message and message.isprintable()
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


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "a", "question": "\\ud83d\\ude00", "answer": "3"}\n')
    assert read_jsonl(tmp_path / "p.jsonl", Problem)[0].question == "😀"


def test_a_torn_last_line_may_be_nested_as_deeply_as_it_likes(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(_problem("a").model_dump_json() + "\n" + "[" * 100_000)
    RecordStore(path, Problem).append([_problem("b")])
    assert list(RecordStore(path, Problem)) == [_problem("a"), _problem("b")]


def test_what_is_no_file_is_named_for_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "a pipe or a device"),
        ("/dev/null", "a pipe or a device"),
        (tmp_path / "none.jsonl" / "below", "no such file"),
        (tmp_path / ("n" * 300), "cannot be read (File name too long)"),
        (f"{tmp_path}/a\0b", "a\\x00b: no such file"),
    ):
        with pytest.raises(InputError) as caught:
            read_jsonl(path, Problem)
        assert says in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "expected an object, found list; put it back"),
        (b"null", "expected an object, found NoneType; put it back"),
        (b'{"a": 1', "not JSON (Expecting ',' delimiter); put it back"),
        (b"", "not JSON (Expecting value); put it back"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[" * 100_000, "nested too deeply; put it back"),
    ],
)
def test_a_damaged_json_file_is_one_line_with_what_to_do(tmp_path, content, says):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_json(path, advice="put it back")
    assert str(caught.value).startswith(f"{path}: {says}")


def test_an_error_is_one_printable_line_whatever_it_quotes():
    assert str(InputError("id 'a\x1b[31m\n\u202eb\ud83d é 漢'")) == r"id 'a\x1b[31m\n\u202eb\ud83d é 漢'"
    long = str(InputError("f:1: id '" + "i" * 100_000 + "' was there before"))
    assert len(long) < LONGEST_MESSAGE + 10 and long.startswith("f:1: id 'iii") and long.endswith("i' was there before")
    assert few_of(["a\n", "b\x1b"]) == r"a\n, b\x1b"


RECORDS = {
    "scored": ScoredChain(id="a", scorer="s", text="abc def", spans=[(0, 3), (4, 7)], importance=[1.0, 2.0]),
    "pruned": PrunedChain(id="a", scorer="s", ratio=0.5, text="abc", kept=[0, 1], tokens=1, original_tokens=2),
    "chain": Chain(
        id="a", chain="c", output="c", prediction=None, is_correct=False, chain_tokens=1, output_tokens=1,
        cut_off=False, dropped="no_answer",
    ),
    "curve": DeletionCurve(id="a", removed=[0], texts=["a b", "b"], answer_log_probs=[-1.0, -2.0]),
    "row": SFTRow(id="a", ratio=1.0, prompt="p", completion="c", held_out=False),
    "call": FirstCall(id="a", method="m", ratio=1.0, output="o", budget=5, tokens=3, cut_off=False, seconds=1.0),
    "prediction": Prediction(
        id="a", method="adapter_scaling", ratio=1.5, answer="7", output="o", chain="c", prediction="7", is_correct=True,
        chain_tokens=0, answer_tokens=0, max_new_tokens=5, cut_off=False, seconds=0.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *[("scored", {"importance": [value, 1.0]}) for value in (math.nan, math.inf)],
        *[("scored", {"importance": values}) for values in ([1.0], [1.0, 2.0, 3.0])],
        ("scored", {"spans": [(0, 3), (4, 8)]}),  # beyond the text
        ("scored", {"spans": [(4, 7), (0, 3)]}),
        ("scored", {"spans": [(0, 4), (3, 7)]}),
        ("scored", {"spans": [(0, 0), (4, 7)]}),
        ("scored", {"spans": [(3, 0), (4, 7)]}),
        ("scored", {"spans": [(-1, 3), (4, 7)]}),
        *[(kind, {"ratio": ratio}) for kind in ("pruned", "row") for ratio in (0, -0.5, 1.1, math.nan)],
        *[("pruned", {"kept": kept}) for kept in ([1, 0], [0, 0], [-1])],
        *[("pruned", {name: -1}) for name in ("tokens", "original_tokens", "tokens_cut")],
        *[("chain", {name: -1}) for name in ("chain_tokens", "output_tokens")],
        ("chain", {"dropped": "dull"}),
        ("curve", {"texts": ["a b"]}),
        ("curve", {"answer_log_probs": [-1.0]}),
        ("curve", {"answer_log_probs": [-1.0, math.nan]}),
        ("curve", {"removed": [-1]}),
        *[(kind, {"ratio": level}) for kind in ("call", "prediction") for level in (-0.1, 1.6, math.nan)],
        *[(kind, {"seconds": value}) for kind in ("call", "prediction") for value in (-1.0, math.nan, math.inf)],
        *[("call", {name: -1}) for name in ("budget", "tokens")],
        *[
            ("prediction", {name: -1})
            for name in ("chain_tokens", "answer_tokens", "max_new_tokens", "first_call_tokens")
        ],
    ],
)
def test_a_record_with_an_impossible_value_is_refused(tmp_path, kind, changes):
    record = RECORDS[kind]
    with pytest.raises(ValidationError):
        type(record)(**{**record.model_dump(), **changes})
    path = tmp_path / "r.jsonl"
    path.write_text(record.model_dump_json() + "\n" + json.dumps({**record.model_dump(), **changes}) + "\n")
    with pytest.raises(InputError, match=r"r\.jsonl:2: "):
        read_jsonl(path, type(record))
