"""Twenty seeded SIGKILLs: a killed command, called again, leaves the same records, weights and metrics. Two commands
at once, and a full disk, lose nothing either.

A kill comes at a random moment between the first sign of work, which is the command's lock or its first records, and
the moment at which the command ended when it was left alone.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from tokenskip_lib.core.outputs import lock_path
from tokenskip_lib.core.processes import LOCK
from tokenskip_lib.experiments.steps import ADAPTER, METRICS, RESULTS

pytestmark = pytest.mark.faults
PATIENCE = 120  # seconds; what takes longer hangs


@dataclass(frozen=True)
class Command:
    """Words of the command line, and a path that is there as soon as it works."""

    words: list[str]
    sign: Path

    def start(self, root: Path) -> subprocess.Popen:
        """Start it, in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "tokenskip_lib", *self.words],
            cwd=root,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, root: Path) -> str:
        """Call it and return what it printed."""
        process = self.start(root)
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, printed
        return printed

    def seconds_at_work(self, root: Path) -> float:
        """Call it, and measure how long after the first sign of work it ended."""
        process = self.start(root)
        began = self._wait_for_sign(process)
        printed, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, printed
        return time.monotonic() - began

    def kill(self, root: Path, after: float, whole_group: bool) -> bool:
        """Start it and kill it so many seconds after the first sign of work; False if it had ended by then."""
        process = self.start(root)
        self._wait_for_sign(process)
        try:
            process.wait(after)
            return False
        except subprocess.TimeoutExpired:
            kill = os.killpg if whole_group else os.kill
            kill(process.pid, signal.SIGKILL)
            process.wait()
            return True

    def _wait_for_sign(self, process: subprocess.Popen) -> float:
        limit = time.monotonic() + PATIENCE
        while not self.sign.exists() and process.poll() is None:
            assert time.monotonic() < limit, "no sign of work"
            time.sleep(0.002)
        return time.monotonic()


def _content(folder: Path) -> dict[str, object]:
    """Every record, weight and metric below a folder, but for seconds, which differ from call to call."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.name] = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    for path in folder.rglob("adapter_model.safetensors"):
        found[path.name] = path.read_bytes()
    if (metrics := folder / RESULTS / METRICS).exists():
        found[METRICS] = pd.read_csv(metrics).drop(columns="seconds_per_problem").to_csv()
    return found


def _killed_again_and_again(
    command: Command, place: Path, before: Path, root: Path, moments: Iterator[float], kills: Sequence[bool]
) -> int:
    """Kill a command again and again, and call it once more each time; how many ended with the same content.

    Args:
        place, before: where it writes, and what is there when it is called.
        moments: shares of its time at work.
        kills: for each, whether the processes that it started are killed with it.
    """
    _put(before, place)
    seconds = command.seconds_at_work(root)
    expected, same = _content(place), 0
    for group in kills:
        moment = next(moments)
        _put(before, place)
        while not command.kill(root, moment * seconds, group):  # it was faster this time
            _put(before, place)
            moment *= 0.8
        command.finish(root)
        assert _content(place) == expected
        same += 1
    return same


def _put(before: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(before, place)


@pytest.fixture(scope="module")
def moments() -> Iterator[float]:
    drawn = random.Random(0)
    return iter(lambda: drawn.uniform(0.02, 0.98), None)


def test_every_stage(settings_file, tmp_path, root, moments, figure):
    place, before, same = tmp_path / "run", tmp_path / "before", 0
    before.mkdir()
    for stage in ("generate", "score", "prune", "train", "evaluate"):
        words = [stage, "--profile", str(settings_file), "--set", f"run_dir={place}"]
        same += _killed_again_and_again(Command(words, place / LOCK), place, before, root, moments, [True] * 2)
        _put(place, before)  # the next stage goes on from here
    assert (place / ADAPTER).is_dir() and (place / RESULTS / METRICS).exists()
    figure("kills of stages with the same records, weights and metrics", f"{same} of 10")


def test_a_run_with_its_notebooks(settings_file, tmp_path, root, moments, figure):
    place, before = tmp_path / "run", tmp_path / "before"
    before.mkdir()
    words = ["run", "--profile", str(settings_file), "--set", f"run_dir={place}"]
    command = Command(words, place / "01_chains.jsonl")
    # A kernel whose command is killed alone ends by itself.
    same = _killed_again_and_again(command, place, before, root, moments, [True, False])
    figure("kills of a run, with its kernels and without, with the same records, weights and metrics", f"{same} of 2")


@pytest.mark.parametrize(("name", "kills"), [("prune", 3), ("score", 2), ("grade", 3)])
def test_a_command_on_files(solver, tmp_path, root, moments, figure, name, kills):
    place, before, source = tmp_path / "out", tmp_path / "before", tmp_path / "rows.jsonl"
    before.mkdir()
    solution = solver[1][0].solution
    rows = [
        {"id": f"r{i}", "chain": f"{solution} It is {i}.", "output": f"So it is \\boxed{{{i % 7}}}.", "answer": "3"}
        for i in range(3000)
    ]
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    output = place / "made.jsonl"
    more: list[str] = [] if name == "grade" else ["--scorer", "position", "--model", str(solver[0])]
    more += ["--ratios", "0.9,0.5"] if name == "prune" else []
    command = Command([name, str(source), "-o", str(output), *more], lock_path(output))
    same = _killed_again_and_again(command, place, before, root, moments, [True] * kills)
    assert len(output.read_text().splitlines()) == len(rows) * (2 if name == "prune" else 1)
    figure(f"kills of {name} on a file with the same records", f"{same} of {kills}")


def test_two_commands_on_one_run(settings_file, tmp_path, root, figure):
    place = tmp_path / "run"
    command = Command(["generate", "--profile", str(settings_file), "--set", f"run_dir={place}"], place / LOCK)
    first = command.start(root)
    command._wait_for_sign(first)
    second = command.start(root)
    printed = second.communicate(timeout=PATIENCE)[0]
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 0
    ids = [json.loads(line)["id"] for line in (place / "01_chains.jsonl").read_text().splitlines()]
    assert len(ids) == len(set(ids)) == 24
    # The second was refused, unless it came when the first had finished.
    assert second.returncode == 0 or (second.returncode == 2 and f"process {first.pid}" in printed)
    figure("two commands on one run", f"{len(ids)} of 24 records, none twice")


def test_a_full_disk(tmp_path, root, figure):
    source, output = tmp_path / "rows.jsonl", tmp_path / "graded.jsonl"
    rows = [{"id": f"r{i}", "output": f"So it is \\boxed{{{i}}}.", "answer": "3"} for i in range(2000)]
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    call = f"{sys.executable} -m tokenskip_lib grade {source} -o {output}"
    full = subprocess.run(["bash", "-c", f"ulimit -f 64; exec {call}"], cwd=root, capture_output=True, text=True)
    there = output.read_text().splitlines(keepends=True)
    [said] = [line for line in full.stderr.splitlines() if line.startswith("error:")]
    assert full.returncode == 2 and "cannot be written" in said and "Traceback" not in full.stderr
    subprocess.run(call.split(), cwd=root, check=True, capture_output=True)
    graded = output.read_text().splitlines(keepends=True)
    whole = [line for line in there if line.endswith("\n")]
    assert graded[: len(whole)] == whole and len(graded) == len(rows)
    figure("rows graded when the disk became full, and after there was room", f"{len(whole)} and {len(graded)} of 2000")
