"""Windows of chains: their records go into a file or a pipe, and a window that is done is not done again."""

import pytest

from tokenskip_lib.core import windows
from tokenskip_lib.core.records import ChainText, ScoredChain, ScoredKey
from tokenskip_lib.core.settings import ExecutionSettings
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.core.windows import write_windows

CHAINS = [ChainText(id=f"c{number}", chain="3 + 4 = 7") for number in range(5)]


class Pipe:
    """A sink that is no file."""

    def __init__(self):
        self.batches: list[list[str]] = []

    def __contains__(self, key: tuple) -> bool:
        return False

    def append(self, records) -> None:
        self.batches.append([record.id for record in records])


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW", 2)


def _write(sink, made: list[str]) -> int:
    def make(window):
        made.extend(chain.id for chain in window)
        return [ScoredChain(id=c.id, scorer="s", text=c.chain, spans=[], importance=[]) for c in window]

    def build():
        made.append("built")
        return make

    def keys(chain):
        return [ScoredKey(chain.id, "s")]

    lost = write_windows(CHAINS, sink, build, keys, execution=ExecutionSettings(), total=None, label="test")
    assert lost == {}


def test_a_pipe_is_written_to_as_a_log_is(tmp_path):
    pipe, log = Pipe(), RecordStore(tmp_path / "scored.jsonl", ScoredChain)
    _write(pipe, [])
    _write(log, [])
    assert pipe.batches == [["c0", "c1"], ["c2", "c3"], ["c4"]]
    assert [record.id for record in log] == [chain.id for chain in CHAINS]


def test_windows_that_are_done_are_not_made_again(tmp_path):
    log, made = RecordStore(tmp_path / "scored.jsonl", ScoredChain), []
    log.append([ScoredChain(id=f"c{n}", scorer="s", text="", spans=[], importance=[]) for n in (0, 1, 2)])
    _write(log, made)
    assert made == ["built", "c2", "c3", "c4"]  # c2 again, because its window is not whole
    assert [record.text for record in log][:3] == ["", "", ""]
    made.clear()
    _write(log, made)
    assert made == []  # nothing is loaded either


def test_a_window_may_have_a_size_of_its_own():
    assert [len(window) for window in windows.windows(CHAINS, 3)] == [3, 2]
