"""One writer at a time: others are refused by name, a kill leaves no lock, no file of someone else is touched."""

import errno
import fcntl
import json
import os
import re
import time

import pytest

from tokenskip_lib.core.locks import lock_open_file, only_writer
from tokenskip_lib.core.records import InputError, Problem
from tokenskip_lib.core.store import RecordStore, write_json


def child(work) -> int:
    """Start a process that does some work, and return its number."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ended(*pids: int) -> list[int]:
    """Wait for processes, and return their exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_a_second_writer_is_refused_with_the_number_machine_and_time_of_the_first(tmp_path, written_by_another):
    with (
        written_by_another(tmp_path, tmp_path / "lock") as pid,
        pytest.raises(InputError) as caught,
        only_writer(tmp_path, tmp_path / "lock"),
    ):
        pytest.fail("two writers")
    line = rf"{re.escape(str(tmp_path))}: process {pid} on \S+ has been writing here since 2\S+; wait until .*"
    assert re.fullmatch(line, str(caught.value))


def test_a_killed_writer_leaves_no_lock(tmp_path, written_by_another):
    with written_by_another(tmp_path, tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").exists()
    with only_writer(tmp_path, tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_what_a_writer_starts_writes_too_and_the_lock_stays_the_writers(tmp_path):
    def work():
        with only_writer(tmp_path, tmp_path / "lock"):
            pass

    with only_writer(tmp_path, tmp_path / "lock"):
        work()  # in the same process, and in one that it starts
        assert ended(child(work)) == [0] and (tmp_path / "lock").exists()


@pytest.mark.parametrize("content", ["mine\n", "[1]", '{"pid": 1}', "\udcff"])
def test_a_file_of_someone_else_is_no_lock(tmp_path, content):
    lock = tmp_path / "lock"
    lock.write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=r"^[^\n]*there already, and not a lock[^\n]*$"), only_writer(tmp_path, lock):
        pytest.fail("locked")
    assert lock.read_text(errors="surrogateescape") == content


def test_a_link_or_folder_is_no_lock(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder"):
        with pytest.raises(InputError, match="not a lock"), only_writer(tmp_path, tmp_path / name):
            pytest.fail("locked")
    assert not (tmp_path / "mine").exists()


def test_where_there_are_no_locks_it_is_said_once_and_work_goes_on(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOSYS, "none")

    monkeypatch.setattr(fcntl, "flock", none)
    for _ in range(2):
        with only_writer(tmp_path, tmp_path / "lock"):
            RecordStore(tmp_path / "p.jsonl", Problem).append([_problem("a")])
    assert capsys.readouterr().err.count("no locks in this file system") == 1


def _problem(name: str) -> Problem:
    return Problem(id=name, question="q", answer="1")


def test_a_line_that_another_process_is_writing_is_not_taken_for_a_torn_one(tmp_path):
    path, (ready, told) = tmp_path / "p.jsonl", os.pipe()
    line = _problem("a").model_dump_json().encode() + b"\n"

    def work():
        with path.open("ab") as file:
            lock_open_file(file, wait=True)  # as an append does
            file.write(line[:9])
            file.flush()
            os.write(told, b"x")
            time.sleep(0.1)
            file.write(line[9:])

    pid = child(work)
    os.read(ready, 1)
    RecordStore(path, Problem).append([_problem("b")])
    assert ended(pid) == [0]
    assert list(RecordStore(path, Problem)) == [_problem("a"), _problem("b")]


def test_two_processes_that_write_one_json_file_never_see_half_of_it(tmp_path):
    path = tmp_path / "profile.json"
    write_json(path, [0])

    def work():
        for number in range(100):
            write_json(path, [number] * 1000)
            assert json.loads(path.read_text())

    assert ended(*(child(work) for _ in range(2))) == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["profile.json"]
