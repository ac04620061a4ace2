"""The wheel outside a checkout: commands, the API and its data files work in an empty folder; extras are optional.

The wheel is installed into an environment of its own. It takes its dependencies from the environment of the tests.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

# What a small core does without; a module that is None cannot be imported.
OPTIONAL = [
    "bpe_openai",
    "datasets",
    "gguf",
    "ipywidgets",
    "llmlingua",
    "matplotlib",
    "nbformat",
    "openai",
    "papermill",
]
OPTIONAL += ["reasoning_gym", "seaborn", "sklearn"]
WITHOUT_EXTRAS = """
import os, sys
for name in os.environ.get("HIDDEN_PACKAGES", "").split():
    sys.modules[name] = None
"""


@pytest.fixture(scope="session")
def wheel(root, tmp_path_factory) -> Path:
    """The wheel, built from a copy so that nothing is written into the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "tokenskip_lib", copy / "tokenskip_lib", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, copy], check=True, capture_output=True, text=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of the scripts of an environment that holds the wheel."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    scripts = environment / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, capture_output=True, text=True)
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    (packages / "sitecustomize.py").write_text(WITHOUT_EXTRAS)
    return scripts


@pytest.fixture
def call(installed, tmp_path):
    """A function of a program of the environment and its arguments: run it in an empty folder, without extras."""
    folder = tmp_path / "empty"
    folder.mkdir()

    def run(program: str, *arguments: str, hidden: list[str] = OPTIONAL, text: str = "") -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "HIDDEN_PACKAGES": " ".join(hidden)}
        command = [str(installed / program), *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, input=text, capture_output=True, text=True)

    run.folder = folder
    return run


def test_the_wheel_holds_the_package_and_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {"tokenskip_lib"}
    parts = ["py.typed", "profiles/demo.yaml", "figures/style.mplstyle", "evaluation/published_results.csv"]
    for part in [*parts, "analyses/page.html", "analyses/page.css", "analyses/page.js"]:
        assert f"tokenskip_lib/{part}" in names
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    core = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not [line for line in core for name in OPTIONAL if name.replace("_", "-") in line]
    assert {"demo", "notebooks", "figures", "server", "llmlingua", "slides", "audit", "book", "ray", "dev"} == {
        line.partition(": ")[2] for line in metadata.splitlines() if line.startswith("Provides-Extra")
    }


def test_the_console_script_says_what_it_can_do(call):
    shown = call("tokenskip", "--help")
    assert shown.returncode == 0 and "Usage: tokenskip" in shown.stdout and "prune" in shown.stdout
    assert call("tokenskip", "--version").stdout.startswith("tokenskip 0.")
    assert "qwen2.5-7b-gsm8k" in call("tokenskip", "profiles").stdout
    assert list(call.folder.iterdir()) == []


def test_grade_works_without_extras(call):
    (call.folder / "predictions.jsonl").write_text('{"id": 1, "answer": "7", "output": "so \\\\boxed{7}"}\n')
    done = call("tokenskip", "grade", "predictions.jsonl", "-o", "graded.jsonl")
    assert done.returncode == 0, done.stderr
    assert json.loads((call.folder / "graded.jsonl").read_text())["is_correct"] is True


# Several commands, one a line, in one process: loading torch takes longer than all of them.
COMMANDS = """
import sys
from tokenskip_lib.__main__ import app
from tokenskip_lib.core.records import InputError
for line in sys.stdin.read().splitlines():
    try:
        app(line.split(), standalone_mode=False)
    except InputError as error:
        print("error:", error)
"""


def test_score_prune_plan_and_the_api_work_in_an_empty_folder_without_extras(call, tiny_target, root):
    (call.folder / "own.jsonl").write_text('{"id": "a", "question": "q", "answer": "7", "chain": "3 + 4 = 7"}\n')
    problems = "--set problems.train=own.jsonl --set problems.test=own.jsonl --set problems.train_size=1"
    lines = [
        f"score own.jsonl --scorer selective_context --model {tiny_target} -o scored.jsonl",
        f"prune own.jsonl --scorer random --ratios 0.9,0.5 --model {tiny_target} -o pruned.jsonl",
        f"plan --profile smoke --card H100 {problems} --set problems.test_size=1 --set target.model={tiny_target} "
        "--set target.adapter=null",
    ]
    example = _example(root).replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_target))
    done = call("python", "-c", COMMANDS + example + "\nprint(repr(answers), ts.__file__)", text="\n".join(lines))
    assert done.returncode == 0 and "error:" not in done.stdout, done.stderr + done.stdout
    assert "H100" in done.stdout and "Answers of 2: 0, 1" in done.stdout and str(root) not in done.stdout
    assert len((call.folder / "pruned.jsonl").read_text().splitlines()) == 2
    note = json.loads((call.folder / "pruned.jsonl.settings.json").read_text())
    assert note["commit"] is None and note["versions"]["tokenskip"]
    assert (call.folder / "out" / "adapter_model.safetensors").is_file()


def test_what_the_package_lacks_is_one_line(call):
    lines = [
        "run --profile demo",
        "publish --profile demo",
        "generate --profile demo --set target.adapter=null --set evaluation.adapter=null",
    ]
    load = "\nimport tokenskip_lib as ts\ntry:\n    ts.load('demo')\nexcept ts.InputError as error:\n    print(error)"
    done = call("python", "-c", COMMANDS + load, text="\n".join(lines))
    assert done.returncode == 0, done.stderr
    run, publish, generate, adapter = done.stdout.splitlines()
    assert run.startswith("error: the adapter data/target_adapter is only in a checkout of the repository: clone it")
    assert publish.startswith("error: published results are kept only in a checkout")
    assert "the extra 'demo'" in generate
    assert adapter.startswith("the adapter data/target_adapter is only in a checkout of the repository")


@pytest.mark.slow
def test_the_example_runs_with_smollm2_in_an_empty_folder(call, root, real_tokenizer):
    done = call("python", "-c", _example(root) + "\nprint(len(pruned), len(answers))", hidden=[])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["12", "2"]


def _example(root: Path) -> str:
    """The example of docs/api.md as a program: its data, which the page shows second, then its five lines."""
    example, data = [
        block.partition("```")[0] for block in (root / "docs/api.md").read_text().split("```python\n")[1:3]
    ]
    return data + example
