"""Work that processes share: each writes its part, the whole is as one process writes it, a kill loses nothing."""

import pytest

from tokenskip_lib.core import processes
from tokenskip_lib.core.records import ChainText, ScoredChain
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.core.windows import WINDOW, write_windows
from tokenskip_lib.experiments import steps
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.pruning.controls import RandomScorer

CHAINS = [ChainText(id=f"c{number}", chain="3 + 4 = 7") for number in range(3 * WINDOW + 1)]
KEYS = [(chain.id, "random") for chain in CHAINS]


@pytest.fixture
def score(tiny_profile, monkeypatch):
    """A function rank, processes, ... -> score the chains as that process of so many would, one after the other."""
    monkeypatch.setattr(processes, "wait_for_all", lambda: None)
    scorer = RandomScorer(0)
    Run.create(tiny_profile)  # as the first process does at once

    def run(rank: int, count: int, make=scorer.score) -> Run:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))
        made = Run.create(tiny_profile)
        with processes.shared_store(made.folder / steps.SCORED, ScoredChain, KEYS) as store:
            write_windows(CHAINS, store, make, lambda c: [(c.id, "random")], total=len(CHAINS), label="test")
        return made

    return run


def test_shares_put_together_are_what_one_process_writes(score):
    expected = sorted((score(0, 1).folder / steps.SCORED).read_bytes().splitlines())
    (score(0, 1).folder / steps.SCORED).unlink()
    for rank in (1, 2, 0):  # the first puts together what the others have left
        run = score(rank, 3)
    assert sorted((run.folder / steps.SCORED).read_bytes().splitlines()) == expected
    assert not list(run.folder.glob("*part*"))


def test_a_killed_share_is_kept_and_not_done_again(score):
    asked = []

    def killed(window):
        if asked:
            raise KeyboardInterrupt
        asked.append(window)
        return RandomScorer(0).score(window)

    with pytest.raises(KeyboardInterrupt):
        score(1, 2, killed)  # its windows are the second and the fourth
    again = []
    run = score(0, 1, lambda window: again.append(window[0].id) or RandomScorer(0).score(window))
    assert again == ["c0", f"c{2 * WINDOW}", f"c{3 * WINDOW}"]
    assert {record.key for record in run.store(steps.SCORED, ScoredChain)} == set(KEYS)


def test_a_log_beside_another_takes_what_stands_there_as_done(tmp_path):
    first, second = (RandomScorer(0).score(CHAINS[:2])[i] for i in range(2))
    main = RecordStore(tmp_path / "main.jsonl", ScoredChain)
    main.append([first])
    part = RecordStore(tmp_path / "part.jsonl", ScoredChain, beside=main)
    part.append([first, second])
    assert [record.key for record in part] == [second.key] and first.key in part
