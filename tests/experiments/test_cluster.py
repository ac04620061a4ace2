"""Stages on a real Ray cluster of two nodes: the bytes of a local run, whoever is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import zip_longest
from pathlib import Path

import pytest
import yaml

from tokenskip_lib.core import windows
from tokenskip_lib.core.profiles import with_overrides
from tokenskip_lib.core.records import Chain, Problem
from tokenskip_lib.core.settings import ExecutionSettings
from tokenskip_lib.core.store import RecordLog, RecordStore
from tokenskip_lib.evaluation import own_predictions
from tokenskip_lib.evaluation.own_predictions import grade_file
from tokenskip_lib.experiments import steps
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.stages import evaluate, generate, prune, score

pytestmark = pytest.mark.cluster
STAGES = {
    "generate": (generate, [steps.TRAIN_PROBLEMS, steps.CHAINS]),
    "score": (score, [steps.SCORED]),
    "prune": (prune, [steps.PRUNED, steps.SFT_ROWS]),
    "evaluate": (evaluate, [steps.PREDICTIONS]),
}


@pytest.fixture
def many(problems) -> list[Problem]:
    """Twenty problems, four of each kind."""
    return [
        p.model_copy(update={"id": f"{p.id}-{n}", "question": f"{n} friends meet. {p.question}"})
        for n in range(4)
        for p in problems
    ]


@pytest.fixture
def start(tiny_profile, many, chain_of, make_adapter, tmp_path, monkeypatch):
    """A function name, overrides -> a run in a folder of its own; windows have two chains."""
    monkeypatch.setattr(windows, "WINDOW", 2)
    adapter, train, test = make_adapter(1), tmp_path / "many.jsonl", tmp_path / "test.jsonl"
    test.unlink()
    RecordStore(train, Problem).append(many)
    RecordStore(test, Problem).append(
        p.model_copy(update={"id": f"t{n}", "question": f"At noon: {p.question}"}) for n, p in enumerate(many)
    )

    def make(name: str, chains: bool, **overrides) -> Run:
        changed = {
            "run_dir": str(tmp_path / name),
            "problems.train": str(train),
            "importance.compare_with": [],
            "evaluation.adapter": str(adapter),
            "evaluation.methods": {"original": [], "tokenskip": [0.5, 1.0], "be_concise": []},
        }
        run = Run.create(with_overrides(tiny_profile, {**changed, **overrides}, where="test"))
        if chains:
            run.store(steps.TRAIN_PROBLEMS, Problem).append(many)
            run.store(steps.CHAINS, Chain).append(chain_of(problem) for problem in many)
        return run

    return make


def _on(cluster) -> dict:
    return {"execution.kind": "ray", "execution.workers": 2, "execution.address": cluster.address}


def _differ(run: Run, other: Run, files: list[str]) -> list[str]:
    """The first line of each file that two runs do not have in common, the seconds that answers took apart."""
    found = []
    for name in files:
        both = [re.sub(r'"seconds":[0-9.e-]+', "", (r.folder / name).read_text()).splitlines() for r in (run, other)]
        found += [f"{name}: {a[:200]} | {b[:200]}" for a, b in zip_longest(*both, fillvalue="") if a != b][:1]
    return found


def _workers() -> list[int]:
    """The processes of Ray's actors of this machine that have the model."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::Worker"):
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def _at(monkeypatch, number: int, act, sink: type = RecordLog) -> None:
    """Call `act` once, when the driver has written so many batches of records."""
    append, count = sink.append, []

    def counting(log, records):
        append(log, records)
        count.append(log)
        if len(count) == number:
            act()

    monkeypatch.setattr(sink, "append", counting)


def _kill_workers() -> list[int]:
    killed = _workers()
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    return killed


def _run(run: Run, stage: str) -> None:
    if stage == "prune":
        score(run)
    STAGES[stage][0](run)


@pytest.mark.parametrize("stage", list(STAGES))
def test_a_worker_is_killed_in_the_middle_of_a_stage(cluster, start, stage, monkeypatch):
    local, remote = start("local", stage != "generate"), start("remote", stage != "generate", **_on(cluster))
    _run(local, stage)
    if stage == "prune":
        score(remote)
    killed = []
    with monkeypatch.context() as patch:
        _at(patch, 4, lambda: killed.extend(_kill_workers()))
        STAGES[stage][0](remote)
    assert killed
    assert not _differ(remote, local, STAGES[stage][1])
    assert local.state["stages"][stage].keys() == remote.state["stages"][stage].keys()


@pytest.fixture
def predictions(tmp_path, monkeypatch) -> Path:
    """Forty predictions, right, wrong and without an answer, some without an id; windows have two of them."""
    monkeypatch.setattr(windows, "WINDOW", 2)
    said = ["3 + 4 = 7.\nThe final answer is: $\\boxed{7}$", "so \\boxed{8}", "3 + 4 = 7 apples", "answer is 14/2."]
    rows = [{"answer": "7", "output": said[n % 4], "mine": n, **({"id": n} if n % 5 else {})} for n in range(40)]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_grading_whose_workers_are_killed_goes_on_after_its_driver(cluster, predictions, tmp_path, monkeypatch):
    local, remote = tmp_path / "local.jsonl", tmp_path / "remote.jsonl"
    counts, killed = grade_file(str(predictions), str(local)), []
    assert counts["rows"] == 40 and counts["correct"] == 20
    two = ExecutionSettings(kind="ray", workers=2)
    with monkeypatch.context() as patch:
        _at(patch, 4, lambda: killed.extend(_kill_workers()), own_predictions._Graded)
        assert grade_file(str(predictions), str(remote), execution=two) == counts
    assert killed and remote.read_bytes() == local.read_bytes()
    remote.write_bytes(local.read_bytes()[:-1000])  # as a driver leaves it that is killed
    assert grade_file(str(predictions), str(remote), execution=two) == counts
    assert remote.read_bytes() == local.read_bytes()


def test_a_prediction_that_kills_its_worker_is_named_and_left_out(cluster, predictions, tmp_path, monkeypatch, capsys):
    build, output = own_predictions._build_grading, tmp_path / "graded.jsonl"

    def poisoned(*settings):
        grade = build(*settings)

        def work(rows):
            if any(each.row["mine"] == 17 for each in rows):
                os._exit(1)
            return grade(rows)

        return work

    two = ExecutionSettings(kind="ray", workers=2, tries=2)
    with monkeypatch.context() as patch:
        patch.setattr(own_predictions, "_build_grading", poisoned)
        assert grade_file(str(predictions), str(output), execution=two)["rows"] == 39
    assert "grade: 1 row is left out (" in (said := capsys.readouterr().err) and "predictions.jsonl:18: its" in said
    assert [json.loads(line)["mine"] for line in output.read_text().splitlines()] == [n for n in range(40) if n != 17]
    assert grade_file(str(predictions), str(output)) == grade_file(str(predictions), str(tmp_path / "local.jsonl"))
    assert json.loads(output.read_text().splitlines()[-1])["mine"] == 17  # tried again, and nothing doubled
    assert len(output.read_text().splitlines()) == 40


def test_a_node_goes_and_another_comes_in_the_middle_of_a_stage(cluster, start, monkeypatch):
    local, remote = start("local", True), start("remote", True, **_on(cluster))
    score(local)
    with monkeypatch.context() as patch:
        _at(patch, 3, cluster.remove_other)
        _at(patch, 8, cluster.add_other)
        score(remote)
    assert not _differ(remote, local, [steps.SCORED])


def _profile_file(run: Run, folder: Path) -> Path:
    file = folder / f"{run.folder.name}.yaml"
    file.write_text(yaml.safe_dump(run.profile.model_dump()))
    return file


def test_a_killed_driver_goes_on_with_another_number_of_workers(cluster, start, tmp_path, root):
    (tmp_path / "slow_scorer.py").write_text(
        "import time\n\n\ndef slow(chains):\n"
        "    from tokenskip_lib.pruning.spans import segment\n\n"
        "    time.sleep(1)\n"
        "    return [[float(end - start) for start, end in segment(chain.chain)] for chain in chains]\n"
    )
    own = {"importance.scorer": "slow_scorer:slow", "importance.compare_with": []}
    remote = start("remote", False, **own, **_on(cluster))
    folder = start("chains", True).folder
    chains = [json.loads(line) for line in (folder / steps.CHAINS).read_text().splitlines()]
    many = [{**chain, "id": f"{chain['id']}-{n}"} for n in range(70) for chain in chains]  # six windows of 256
    source = tmp_path / "chains.jsonl"
    source.write_text(
        "".join(json.dumps({k: c[k] for k in ("id", "question", "answer", "chain")}) + "\n" for c in many)
    )
    words = [sys.executable, "-m", "tokenskip_lib", "score", str(source), "-p", str(_profile_file(remote, tmp_path))]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"}

    def call(output: str, *settings: str) -> subprocess.Popen:
        more = [word for setting in settings for word in ("--set", setting)]
        command = [*words, "-o", str(tmp_path / output), *more]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    alone = call("local.jsonl", "execution.kind=local")
    assert alone.wait(120) == 0, alone.stderr.read()
    driver = call("remote.jsonl")
    deadline = time.monotonic() + 120
    while not (tmp_path / "remote.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    there = len((tmp_path / "remote.jsonl").read_text().splitlines())
    assert 0 < there < len(many)
    again = call("remote.jsonl", "execution.workers=1")
    assert again.wait(120) == 0, again.stderr.read()
    same = (tmp_path / "remote.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    assert same  # pytest would take minutes to show how they differ


def test_a_chain_that_kills_its_worker_is_named_and_left_out(cluster, start, tmp_path, monkeypatch, capsys):
    (tmp_path / "poisoned.py").write_text(
        "import os\n\n\ndef scores(chains):\n"
        "    from tokenskip_lib.pruning.spans import segment\n\n"
        "    if any('9 / 3' in chain.chain and chain.id == 'p2-1' for chain in chains):\n"
        "        os._exit(1)\n"
        "    return [[float(end - start) for start, end in segment(chain.chain)] for chain in chains]\n"
    )
    monkeypatch.chdir(tmp_path)
    own = {"importance.scorer": "poisoned:scores", "importance.compare_with": [], "execution.tries": 2}
    run = start("remote", True, **_on(cluster), **own)
    scored = score(run)
    assert {chain.id for chain in run.store(steps.CHAINS, Chain)} - {chain.id for chain in scored} == {"p2-1"}
    assert len(scored) == 19
    assert run.state["stages"]["score"]["chains_left_out"] == {"p2-1": "its worker died, ActorDiedError, 2 times"}
    assert "score: 1 chain is left out (p2-1: its worker died" in capsys.readouterr().err
    assert len({row.id for row in prune(run)}) == 19  # the next stage goes on without it


def test_a_full_disk_of_the_driver_ends_a_stage_in_one_line_and_loses_nothing(cluster, start, full_disk):
    from tokenskip_lib.core.records import InputError

    local, remote = start("local", True), start("remote", True, **_on(cluster))
    score(local)
    with full_disk(6000), pytest.raises(InputError, match="cannot be written"):
        score(remote)
    score(remote)
    assert not _differ(remote, local, [steps.SCORED])
