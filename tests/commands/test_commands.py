"""The command line: what a user gets wrong is one line on stderr and exit code 2, and nothing is left half written."""

import errno
import json
import subprocess
import sys
from unittest.mock import Mock

import pytest

import tokenskip_lib
from tokenskip_lib import __main__ as program
from tokenskip_lib.core import paths
from tokenskip_lib.core.profiles import load_profile, profile_names
from tokenskip_lib.core.records import Chain, InputError, Problem
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.experiments import stages
from tokenskip_lib.experiments.chains import kept_chains
from tokenskip_lib.experiments.plan import report
from tokenskip_lib.experiments.run import Run


@pytest.fixture
def command(tokenskip, tmp_path):
    """A function of arguments: run the command line on the smoke profile, outputs below tmp_path."""

    def call(*arguments: str, profile: str = "smoke"):
        return tokenskip(*arguments, "--profile", profile, "--set", f"run_dir={tmp_path / 'run_dir'}")

    return call


def _assert_refused(done, tmp_path, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert done.stdout == ""
    written = [p.relative_to(tmp_path) for p in tmp_path.glob("*_dir/**/*") if p.is_file() and p.name != "profile.json"]
    assert written == []


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("pruning.ratios=[0,1]", ["pruning.ratios", "greater than 0"]),
        ("pruning.ratios=[0.5,1.5]", ["pruning.ratios", "1.5"]),
        ("trainin.epochs=1", ["trainin", "did you mean 'training'"]),
        ("training.epoch=1", ["training.epoch", "did you mean 'epochs'"]),
        ("training.epochs", ["training.epochs", "key=value"]),
    ],
)
def test_a_bad_setting_is_refused_before_any_folder_is_made(command, tmp_path, setting, words):
    _assert_refused(command("generate", "--set", setting), tmp_path, *words)
    assert not (tmp_path / "run_dir").exists()


def test_an_unknown_profile_is_refused_with_the_nearest_name(command, tmp_path):
    _assert_refused(command("generate", profile="smok"), tmp_path, "did you mean 'smoke'")


def test_a_model_that_is_nowhere_is_refused(command, tmp_path):
    done = command("generate", "--set", "target.model=nobody/nothing", "--set", "target.adapter=null")
    _assert_refused(done, tmp_path, "nobody/nothing")


def test_a_broken_line_of_a_problem_file_is_refused_with_file_and_line(command, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"question": "q", "answer": "1"}\n{"question": "r", "answ\n')
    done = command("generate", "--set", f"problems.train={own}", "--set", "problems.train_size=null")
    _assert_refused(done, tmp_path, f"{own}:2", "not JSON")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("name=../../x", "name: a name of files"),
        ("name=$\\frac{$", "name: a name of files"),
        ("seed=2024-01-01", "a value of the kind timestamp"),
        ("seed=!!int x", "'x' is no int"),
        ("seed=" + "[" * 500, "nested too deeply"),
        ("\x1b[31mx\n=1", r"unknown setting '\x1b[31mx'"),
    ],
)
def test_a_hostile_setting_is_one_printable_line(command, tmp_path, setting, says):
    _assert_refused(command("generate", "--set", setting), tmp_path, says)


@pytest.mark.parametrize("name", ["grade", "prune", "score"])
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "b", "chain": "x", "output": "o", "answer": "7", "z": ' + "[" * 100_000, "nested too deeply"),
        ('{"id": "b", "chain": "x", "output": "o", "answer": NaN}', "NaN is no number"),
        ('{"id": "\\u001b[31ma\\n", "chain": "x", "output": "o", "answer": "7"}', r"id '\x1b[31ma\n' was there before"),
    ],
)
def test_a_hostile_row_is_one_printable_line(tokenskip, tmp_path, name, line, says):
    own, out = tmp_path / "own.jsonl", tmp_path / "out_dir" / "out.jsonl"
    own.write_text('{"id": "\\u001b[31ma\\n", "chain": "y", "output": "o", "answer": "7"}\n' + line + "\n")
    options = [] if name == "grade" else ["--scorer", "position"]
    done = tokenskip(name, own, *options, "-o", out)
    last = done.stderr.splitlines()[-1]  # progress bars come before
    assert done.returncode == 2 and last.startswith(f"error: {own}:2: ") and says in last and last.isprintable()


def test_grade_takes_the_settings_of_where_it_works_and_no_others(tokenskip, tmp_path):
    row = {"id": "a", "answer": "7", "output": "\\boxed{7}"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    words = ["grade", str(tmp_path / "rows.jsonl"), "-o", str(tmp_path / "graded.jsonl"), "--set"]
    assert tokenskip(*words, "execution.kind=local").returncode == 0
    refused = tokenskip(*words, "training.epochs=1")
    assert refused.returncode == 2 and refused.stderr == "error: unknown setting 'training' (one of: execution)\n"


def test_an_unknown_problem_set_is_refused_with_the_nearest_name(command, tmp_path):
    _assert_refused(command("generate", "--set", "problems.train=gsm9k"), tmp_path, "did you mean 'gsm8k'")


def test_scoring_a_run_whose_every_chain_was_dropped_is_refused(command, tmp_path, problems, chain_of):
    folder = tmp_path / "run_dir"
    assert command("score").returncode == 2  # no chains yet
    RecordStore(folder / "01_train_problems.jsonl", Problem).append(problems[:2])
    RecordStore(folder / "01_chains.jsonl", Chain).append([chain_of(p, "", dropped="empty") for p in problems[:2]])
    done = command("score")
    assert done.returncode == 2 and "every chain was dropped (2 empty)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "01_chains.jsonl",
        "01_train_problems.jsonl",
        "profile.json",
    ]


def test_problems_that_the_model_cannot_solve_end_with_one_line_and_an_answer(command, tmp_path, problems, chain_of):
    folder = tmp_path / "run_dir"
    assert command("score").returncode == 2  # the folder is a run now
    RecordStore(folder / "01_train_problems.jsonl", Problem).append(problems[:2])
    dropped = [chain_of(problems[0], "", dropped="no_answer"), chain_of(problems[1], dropped="wrong")]
    RecordStore(folder / "01_chains.jsonl", Chain).append(dropped)
    run = Run.open(load_profile("smoke", {"run_dir": str(folder)}))
    with pytest.raises(InputError) as caught:
        kept_chains(run)
    said = str(caught.value)
    assert "dropped (1 no_answer, 1 wrong); problem 'p1' has the answer 60, and the model wrote: " in said
    assert "the demo's model knows gsm_symbolic alone" in said and said.endswith("and target.adapter=null")


def test_generating_without_a_chain_to_keep_is_no_success(tiny_profile, tmp_path):
    with pytest.raises(InputError, match="every chain was dropped"):  # a random model's
        stages.run_stage(tiny_profile, "generate")
    noted = json.loads((tmp_path / "run" / "profile.json").read_text())["stages"]["generate"]
    assert noted["chains"] == 3 and noted["kept"] == 0


def test_outside_a_checkout_the_demo_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    for work in (lambda: stages.run_stage(load_profile("demo"), "generate"), lambda: report(load_profile("demo"))):
        with pytest.raises(InputError, match="the adapter data/target_adapter is only in a checkout"):
            work()
    assert not list(tmp_path.iterdir())


def test_a_stage_runs_and_reports_what_it_noted(command, tmp_path, problems, chain_of):
    folder = tmp_path / "run_dir"
    at_random = ("score", "--set", "importance.scorer=random", "--set", "importance.compare_with=[]")
    assert command(*at_random).returncode == 2  # no chains yet
    RecordStore(folder / "01_train_problems.jsonl", Problem).append(problems[:2])
    RecordStore(folder / "01_chains.jsonl", Chain).append([chain_of(p) for p in problems[:2]])
    done = command(*at_random)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.partition(": ")[2]) == {"chains": 2, "scorers": ["random"]}
    assert len((folder / "02_scored.jsonl").read_text().splitlines()) == 2


def test_own_chains_are_pruned_at_the_ratios_asked_for(tokenskip, tmp_path, problems):
    own, out = tmp_path / "own.jsonl", tmp_path / "out.jsonl"
    own.write_text("".join(json.dumps({"id": p.id, "chain": p.solution}) + "\n" for p in problems))
    command = ["prune", own, "--scorer", "position", "--ratios", "0.9,0.5"]
    done = tokenskip(*command, "-o", out)
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["ratio"]) for row in made] == [(p.id, r) for p in problems for r in (0.5, 0.9)]
    assert all(p.solution.startswith(row["text"]) for p, row in zip(problems, made[::2], strict=True))
    again = tokenskip(*command, "--set", "seed=1", "-o", out)
    assert again.returncode == 2 and "made with other settings" in again.stderr
    assert len(again.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--scorer", "positon"], "did you mean 'position'"),
        (["--scorer", "position", "--ratios", "0.9,half"], "--ratios 0.9,half"),
        (["--scorer", "position", "--layout", "thinks"], "prompts.layout: Input should be 'answer' or 'think'"),
        (["--scorer", "llmlingua2", "--set", "importance.classifier=/nowhere"], "importance.classifier '/nowhere'"),
    ],
)
def test_what_is_wrong_with_own_chains_is_one_line(tokenskip, tmp_path, arguments, says):
    own = tmp_path / "own.jsonl"
    own.write_text('{"id": "a", "chain": "x"}\n')
    done = tokenskip("prune", own, *arguments, "-o", tmp_path / "out.jsonl")
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(("style", "field"), [("trl", "completion"), ("llamafactory", "output")])
def test_own_chains_become_training_rows_for_another_trainer(
    tokenskip, tmp_path, problems, tiny_target, tiny_tokenizer, style, field
):
    own, folder = tmp_path / "own.jsonl", tmp_path / "rows"
    rows = [{"id": p.id, "question": p.question, "answer": p.answer, "chain": p.solution} for p in problems]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["export", own, "--scorer", "position", "--ratios", "0.5,1.0", "--model", tiny_target, "--format", style]
    every = ["--set", "training.ratios_a_problem=all", "--set", "training.held_out=0.2"]
    done = tokenskip(*command, *every, "-o", folder)
    assert done.returncode == 0, done.stderr
    made = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("train", "held_out")}
    assert {name: len(lines) for name, lines in made.items()} == {"train": 8, "held_out": 2}
    asked = json.dumps([json.loads(line) for lines in made.values() for line in lines])
    assert asked.count("<|im_end|>0.5<|im_end|>") == 5 and field in json.loads(made["train"][0])
    answers = asked.count("The final answer is")
    assert answers == 10 and all(asked.count(json.dumps(p.question)[1:-1]) == 2 for p in problems)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "alpaca"], "unknown format 'alpaca' (one of: trl, llamafactory, peft, peft-8bit, merged)"),
        (["--format", "peft"], "takes no CHAINS"),
        (["--scorer", "position"], "own.jsonl:1: no 'question'"),
        (["--set", "execution.kind=ray"], "export works in this process"),
    ],
)
def test_what_is_wrong_with_an_export_is_one_line(tokenskip, tmp_path, arguments, says):
    (tmp_path / "own.jsonl").write_text('{"id": "a", "chain": "x"}\n')
    done = tokenskip("export", tmp_path / "own.jsonl", *arguments, "-o", tmp_path / "out")
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_options_for_own_chains_need_a_file_of_them(command, tmp_path):
    _assert_refused(command("score", "--scorer", "random"), tmp_path, "--scorer goes with a file of CHAINS")
    _assert_refused(command("prune", "--layout", "think"), tmp_path, "--layout goes with a file of CHAINS")
    _assert_refused(command("prune", "-o", "x.jsonl"), tmp_path, "--output goes with a file of CHAINS")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "standard output: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "x.yaml"), "x.yaml: Permission denied"),
    ],
)
def test_what_the_file_system_refuses_is_one_line(tokenskip, monkeypatch, error, says):
    monkeypatch.setattr(program, "app", Mock(side_effect=error))
    done = tokenskip("profiles")
    assert (done.returncode, done.stderr) == (2, f"error: {says}\n")


def test_help_lists_every_command_and_profiles_lists_every_profile(root):
    def say(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tokenskip_lib", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout

    shown = say("--help")
    commands = (
        "run",
        "profiles",
        "plan",
        "prepare-target",
        "place",
        "generate",
        "score",
        "prune",
        "train",
        "evaluate",
        "export",
        "average",
        "publish",
    )
    assert all(command in shown for command in commands)
    listed = say("profiles").splitlines()
    assert [line.split()[0] for line in listed] == profile_names()
    column = max(map(len, profile_names())) + 2
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in listed)
    assert say("--version") == f"tokenskip {tokenskip_lib.__version__}\n"
