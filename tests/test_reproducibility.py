"""The same seed gives the same records, and a killed stage goes on to the same records: the demo's real model."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tokenskip_lib.core.records import Prediction
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.experiments import steps


def _in_a_fresh_process(folder: Path, *names: str) -> None:
    """Stages as a user runs them, in a process that begins with nothing; the committed adapter answers."""
    methods = {"original": [], "tokenskip": [0.5], "truncation": [0.5]}
    fewer = {"problems.train_size": 4, "importance.compare_with": ["mist"], "evaluation.methods": methods}
    overrides = {"run_dir": str(folder), "evaluation.adapter": "data/tokenskip_adapter", **fewer}
    code = (
        "from tokenskip_lib.core.profiles import load_profile; from tokenskip_lib.experiments import stages; "
        "from tokenskip_lib.experiments.run import Run; "
        f"run = Run.create(load_profile('smoke', {overrides!r})); " + "; ".join(f"stages.{name}(run)" for name in names)
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run with every stage but the training."""
    folder = tmp_path_factory.mktemp("reproducibility") / "run"
    _in_a_fresh_process(folder, "generate", "score", "prune", "evaluate")
    return folder


def test_the_same_seed_gives_the_same_records_to_the_byte(finished, tmp_path):
    _in_a_fresh_process(tmp_path, "generate", "score", "prune")
    for name in (steps.TRAIN_PROBLEMS, steps.CHAINS, steps.SCORED, steps.PRUNED, steps.SFT_ROWS):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name


def test_an_interrupted_evaluation_continues_to_the_same_predictions(finished, tmp_path):
    # A kill loses whole lines and tears one. The resumed run must give the same records, except for the seconds.
    lines = (finished / steps.PREDICTIONS).read_text().splitlines(keepends=True)
    folder = tmp_path / "resumed"
    folder.mkdir()
    shutil.copy(finished / "profile.json", folder)
    (folder / steps.TRAIN_PROBLEMS).symlink_to(finished / steps.TRAIN_PROBLEMS)
    (folder / steps.PREDICTIONS).write_text("".join(lines[:-3]) + lines[-3][:40])
    _in_a_fresh_process(folder, "evaluate")

    def content(path: Path) -> list[dict]:
        return [p.model_dump(exclude={"seconds"}) for p in RecordStore(path, Prediction)]

    assert content(folder / steps.PREDICTIONS) == content(finished / steps.PREDICTIONS)
