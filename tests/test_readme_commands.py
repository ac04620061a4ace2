"""README's commands, copied from its code blocks, run as written in a fresh clone whose .venv is the environment here.

The clone holds what is committed. The files that a command reads are made beside it; nothing is downloaded.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ACTIVATE = "source .venv/bin/activate"
# Minutes; in README's order, because each reads what the one before has made.
LONG = ["make demo", "tokenskip run --profile demo --from 03", "tokenskip generate --profile demo",
        "tokenskip export --profile demo --format llamafactory -o DIR", "tokenskip publish --profile demo"]  # fmt: skip
# These tests are `make test`, and a study takes hours.
NOT_RUN = ["make test", "tokenskip study control --profile demo-full"]
# The published model's tokenizer is on the hub: without a network the command says so.
OF_THE_HUB = "tokenskip place"


def readme_commands(root: Path) -> list[str]:
    """The lines of README's shell blocks, without their comments."""
    text = (root / "README.md").read_text(encoding="utf-8")
    shell = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return [shlex.join(words) for line in shell.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def clone(root, tmp_path_factory) -> Path:
    environment = Path(sys.prefix)
    if not (root / ".git").exists() or not (environment / "bin" / "activate").exists():
        pytest.skip("needs a git checkout, and an environment made by venv")
    folder = tmp_path_factory.mktemp("readme") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", root, folder], check=True)
    (folder / ".venv").mkdir()
    for path in environment.iterdir():
        if path.name != ".ready":
            (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / ".ready").touch()  # newer than the clone's pyproject.toml: make installs nothing
    rows = [
        {"id": "a", "question": "Tom has 3 apples and buys 4. How many?", "chain": "He has 3 + 4 = 7.", "answer": "7"},
        {"id": "b", "question": "What do two pens at $5 cost?", "chain": "They cost 2 * 5 = 10.", "answer": "10"},
    ]
    for name, more in [("CHAINS.jsonl", {}), ("PREDICTIONS.jsonl", {"output": "It is \\boxed{7}."})]:
        (folder / name).write_text("".join(f"{json.dumps(row | more)}\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def typed(clone):
    """A function: type a line into a new terminal in the clone, after its environment is activated."""

    def type_line(line: str) -> subprocess.CompletedProcess:
        shell = ["bash", "-c", f"{ACTIVATE}\n{line}"]
        variables = {**os.environ, "PYTHONPATH": str(clone), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(shell, cwd=clone, env=variables, capture_output=True, text=True)

    return type_line


def test_the_readme_activates_the_environment_before_it_calls_the_program(root):
    commands = readme_commands(root)
    assert ACTIVATE in commands and {*LONG, *NOT_RUN} <= set(commands)
    before = commands[: commands.index(ACTIVATE)]
    assert all(line.startswith("make ") for line in before)


def test_every_command_of_seconds_runs_as_written(root, clone, typed):
    quick = [line for line in readme_commands(root) if line not in LONG and line not in NOT_RUN]
    assert len(quick) >= 5
    for line in quick:
        done = typed(line)
        if line.startswith(OF_THE_HUB):
            assert (done.returncode, done.stdout) == (2, "") and "Qwen" in done.stderr, (line, done.stderr)
            assert "Traceback" not in done.stderr
        else:
            assert done.returncode == 0, (line, done.stderr)
            assert "warning" not in done.stderr.lower(), (line, done.stderr)
    graded = [json.loads(line) for line in (clone / "GRADED.jsonl").read_text().splitlines()]
    assert [row["is_correct"] for row in graded] == [True, False]
    assert len((clone / "OUT.jsonl").read_text().splitlines()) == 6  # two chains at three ratios


def test_what_make_would_do_is_known_to_make(typed):
    for line in ("make demo", "make test"):
        done = typed(line.replace("make", "make -n"))
        assert done.returncode == 0 and "pip" not in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_the_long_commands_run_as_written_one_after_the_other(clone, typed):
    for line in LONG:
        done = typed(line)
        assert done.returncode == 0, (line, done.stderr)
        assert "warning" not in (done.stdout + done.stderr).lower(), (line, done.stderr)
        if line == "make demo":
            assert "This run beside the published one" in done.stdout
    assert (clone / "DIR").is_dir()
    shutil.rmtree(clone / "data/runs")
