"""Several launched processes: training takes the same rows a step, and every other stage refuses them."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import InputError, PrunedChain, SFTRow
from tokenskip_lib.core.settings import PromptSettings
from tokenskip_lib.experiments import steps
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.stages import run_stage
from tokenskip_lib.training.rows import build_sft_rows


@pytest.fixture
def profile_file(tiny_profile, problems, tiny_tokenizer, tmp_path):
    """A function name -> the YAML of a profile whose run folder holds 30 training rows, six of them held out."""
    chains = [
        PrunedChain(id=p.id, scorer="s", ratio=r / 10, text=p.solution[: 4 * r], kept=[], tokens=1, original_tokens=1)
        for p in problems
        for r in range(5, 11)
    ]
    by_id = {problem.id: problem for problem in problems}
    rows = build_sft_rows(chains, by_id, tiny_tokenizer, PromptSettings(), held_out=0.2, seed=0)

    def make(name: str, **training):
        settings = {
            "batch_size": 2,
            "accumulation": 4,
            "epochs": 2.25,
            "learning_rate": 0.01,
            "log_every": 1,
        } | training
        made = tiny_profile.model_copy(
            update={
                "run_dir": str(tmp_path / name),
                "training": tiny_profile.training.model_copy(update=settings | training),
            }
        )
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(made.model_dump()))
        Run.create(load_profile(str(file))).store(steps.SFT_ROWS, SFTRow).append(rows)
        return file

    return make


def _launch(root, stage, profile, *launcher) -> subprocess.CompletedProcess:
    command = [sys.executable, *launcher, "-m", "tokenskip_lib", stage, "--profile", str(profile)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


TWO_PROCESSES = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
TWO_PROCESSES += ["--mixed_precision", "no", "--dynamo_backend", "no"]


def _log(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / steps.ADAPTER / "training_log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_processes_train_as_one_does(root, profile_file, tmp_path, checkpointing):
    done = {
        name: _launch(root, "train", profile_file(name, checkpointing=checkpointing), *launcher)
        for name, launcher in (("one", ()), ("two", TWO_PROCESSES))
    }
    assert all(process.returncode == 0 for process in done.values()), done["two"].stderr[-3000:]
    one, two = (_log(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] and len(one) >= 6
    for line, other in zip(one, two, strict=True):
        for key in line.keys() & {"loss", "eval_loss"}:
            assert line[key] == pytest.approx(other[key], abs=2e-3)
    weights, others = (
        load_file(tmp_path / name / steps.ADAPTER / "adapter_model.safetensors") for name in ("one", "two")
    )
    assert all(torch.allclose(weights[name], others[name], atol=2e-3) for name in weights)
    summary = json.loads((tmp_path / "two" / steps.ADAPTER / "summary.json").read_text())
    assert summary["processes"] == 2 and not (tmp_path / "two" / steps.ADAPTER / "checkpoints").exists()


@pytest.mark.slow
def test_processes_that_cannot_share_a_batch_are_refused_in_one_line(root, profile_file):
    done = _launch(root, "train", profile_file("odd", batch_size=8, accumulation=1), *TWO_PROCESSES)
    assert done.returncode != 0
    assert "error: training.accumulation: 2 processes cannot share an accumulation of 1 evenly" in done.stderr


@pytest.mark.parametrize("stage", ["generate", "score", "prune", "evaluate"])
def test_what_processes_would_write_over_each_other_is_refused(tiny_profile, monkeypatch, stage):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=f"{stage} runs in one process; for several GPUs see docs/scale-out.md"):
        run_stage(tiny_profile, stage)
