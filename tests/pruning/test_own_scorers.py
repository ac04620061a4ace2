"""Your own scorer and your own chains on the command line: named by module and function, the same everywhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import tokenskip_lib as ts
from tokenskip_lib.__main__ import app
from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import InputError, PrunedChain, ScoredChain
from tokenskip_lib.core.settings import ImportanceSettings, KeepSettings
from tokenskip_lib.core.store import read_jsonl
from tokenskip_lib.experiments import stages
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import CHAINS, TRAIN_PROBLEMS
from tokenskip_lib.pruning.registry import SCORERS
from tokenskip_lib.pruning.spans import segment

MODULE = """
from tokenskip_lib.pruning.spans import segment

LENGTH = 3


def longest(chains):
    return [[end - start for start, end in segment(chain.chain)] for chain in chains]
"""


@pytest.fixture
def folder(tmp_path, problems, monkeypatch) -> Path:
    """The working directory, with own chains and a module of own scores in it."""
    rows = [{"id": p.id, "question": p.question, "answer": p.answer, "chain": p.solution} for p in problems]
    (tmp_path / "chains.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_cli_scores.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def call(folder, root):
    """A function of arguments: run the command line in the folder, in a process of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
        return subprocess.run(
            [sys.executable, "-m", "tokenskip_lib", *arguments],
            cwd=folder, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    return run


def lengths(text: str) -> list[float]:
    return [end - start for start, end in segment(text)]


def test_your_own_scorer_scores_and_prunes_on_the_command_line(call, folder, tiny_target):
    name = "own_cli_scores:longest"
    done = call("score", "chains.jsonl", "--scorer", name, "-o", "scored.jsonl")
    assert done.returncode == 0, done.stderr
    scored = read_jsonl(folder / "scored.jsonl", ScoredChain)
    assert {chain.scorer for chain in scored} == {name}
    assert [chain.importance for chain in scored] == [lengths(chain.text) for chain in scored]
    model = ["--model", str(tiny_target), "--ratios", "0.5"]
    done = call("prune", "chains.jsonl", "--scorer", name, *model, "-o", "pruned.jsonl")
    assert done.returncode == 0, done.stderr
    assert {chain.scorer for chain in read_jsonl(folder / "pruned.jsonl", PrunedChain)} == {name}


def test_a_profile_names_your_own_scorer_for_a_run_and_for_own_chains(folder, tiny_profile, problems, chain_of):
    name = "own_cli_scores:longest"
    values = tiny_profile.model_dump()
    values["importance"] |= {"scorer": name, "compare_with": ["random", name], "compare_size": 1}
    Path("mine.yaml").write_text(yaml.safe_dump(values))
    profile = load_profile("mine.yaml")
    stages.check_names(profile)
    run = Run.create(profile)
    run.store(TRAIN_PROBLEMS, type(problems[0])).append(problems[:2])
    run.store(CHAINS, type(chain_of(problems[0]))).append([chain_of(problem) for problem in problems[:2]])
    scored = [chain for chain in stages.score(run) if chain.scorer == name]
    assert [chain.importance for chain in scored] == [lengths(problem.solution) for problem in problems[:2]]
    assert {row.id for row in stages.prune(run)} == {"p0", "p1"}
    done = CliRunner().invoke(app, ["score", "chains.jsonl", "--profile", "mine.yaml", "-o", "scored.jsonl"])
    assert done.exit_code == 0, done.output
    assert {chain.scorer for chain in read_jsonl(folder / "scored.jsonl", ScoredChain)} == {name}


def test_a_scorer_that_is_not_there_is_one_line_on_stderr(call, folder):
    done = call("score", "chains.jsonl", "--scorer", "own_cli_scores:shortest", "-o", "scored.jsonl")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "has no 'shortest'" in done.stderr, done.stderr
    assert not (folder / "scored.jsonl").exists()


@pytest.mark.parametrize(
    ("scorer", "says"),
    [
        ("no_such_module_here:longest", "cannot import 'no_such_module_here'"),
        ("own_cli_scores:LENGTH", "of type int, not a function of chains"),
        ("longest_of_all", "unknown scorer 'longest_of_all'"),
    ],
)
def test_what_is_wrong_with_a_scorers_name_is_said(folder, scorer, says):
    for command in ("score", "prune"):
        done = CliRunner().invoke(app, [command, "chains.jsonl", "--scorer", scorer, "--output", "out.jsonl"])
        assert isinstance(done.exception, InputError) and says in str(done.exception)
        assert "\n" not in str(done.exception)
        assert not list(folder.glob("out*"))


def own(*arguments: str) -> None:
    done = CliRunner().invoke(app, [*arguments, "--output", "out.jsonl"])
    assert done.exit_code == 0, done.output or done.exception


def test_command_line_and_api_prune_own_chains_alike(folder, tiny_target):
    own("prune", "chains.jsonl", "--model", str(tiny_target), "--ratios", "0.9,0.5", "--set", "target.dtype=float32")
    rows = [json.loads(line) for line in Path("chains.jsonl").read_text().splitlines()]
    model = ts.load(tiny_target, dtype="float32")
    pruned = ts.prune(ts.score(rows, model), ratios=[0.5, 0.9], model=model)
    assert read_jsonl(folder / "out.jsonl", PrunedChain) == list(pruned)
    assert {chain.scorer for chain in pruned} == {"selective_context"}


def test_without_a_profile_nothing_is_kept_by_force_and_no_adapter_is_asked_for(folder, tiny_target):
    own("prune", "chains.jsonl", "--model", str(tiny_target), "--scorer", "random", "--ratios", "0.3")
    made_with = json.loads(Path("out.jsonl.settings.json").read_text())["settings"]
    assert made_with == {
        "seed": 0,
        "target.model": str(tiny_target),
        "target.revision": None,
        "target.adapter": None,
        "target.dtype": "auto",
        "target.attention": "sdpa",
        "prompts": ts.load(tiny_target).prompts.model_dump(),
        "importance.scorer": "random",
        "importance.classifier": ImportanceSettings().classifier,
        "importance.classifier_revision": None,
        "importance.classifier_dtype": "auto",
        "importance.alpha": ImportanceSettings().alpha,
        "importance.whole_latex": False,
        "pruning.mode": "spans",
        **{f"pruning.{name}": value for name, value in KeepSettings().model_dump().items()},
    }


def test_a_profile_that_is_named_is_used_as_it_is_and_set_comes_after_it(folder, tiny_target):
    given = ["--model", str(tiny_target), "--scorer", "random", "--ratios", "0.3", "--profile", "demo"]
    own("prune", "chains.jsonl", *given, "--set", "pruning.skip_spaces=false")
    made_with = json.loads(Path("out.jsonl.settings.json").read_text())["settings"]
    demo = load_profile("demo").pruning
    assert demo.keep_digits and demo.keep_operators and demo.skip_spaces
    assert made_with["pruning.keep_digits"] and made_with["pruning.keep_operators"]
    assert made_with["pruning.skip_spaces"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "pruning.keep_digit=true"], "did you mean 'keep_digits'"),
        (["--set", "training.epochs=1"], "unknown setting 'training"),
        (["--scorer", "cts", "--set", "pruning.mode=llmlingua"], "--scorer has no say in pruning.mode llmlingua"),
        (["--ratios", "1.5"], "--ratios 1.5"),
    ],
)
def test_settings_that_own_chains_do_not_have_are_refused(folder, arguments, says):
    done = CliRunner().invoke(app, ["prune", "chains.jsonl", "--output", "out.jsonl", *arguments])
    assert says in str(done.exception) and "\n" not in str(done.exception)
    assert not list(folder.glob("out*"))


def test_help_describes_every_scorer():
    for command in ("score", "prune"):
        done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        shown = " ".join(done.output.replace("│", " ").split())
        for name, spec in SCORERS.items():
            assert f"{name}, if {spec.description}" in shown
        assert "mypackage.module:function" in shown
