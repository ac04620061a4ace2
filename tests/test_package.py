"""The package as a whole: imports run one way and stay light, and nothing in it executes what it reads."""

import ast
import graphlib
import subprocess
import sys

import pytest

import tokenskip_lib

# A module may import from the rows above its own, and within its row as long as nothing goes round.
LAYERS = [
    ["__init__"],
    ["records"],
    ["settings"],
    ["config", "processes"],
    ["problems", "prompts", "models", "grading", "runs"],
    ["spans", "batching", "caches"],
    ["generation", "target_scores", "llmlingua2"],
    ["server", "packing"],
    ["importance", "sft_rows", "finetuning"],
    ["pruning"],
    ["llmlingua_mode", "span_tables", "methods"],
    ["evaluation", "plots", "costs", "paper"],
    ["answering"],
    ["stages", "importance_plots", "study_plots", "adaptive", "recovery"],
    ["workload", "target", "own_chains", "own_predictions", "explorer", "timing", "studies"],
    ["plan"],
    ["pipeline"],
    ["__main__"],
]
HEAVY = [
    "torch",
    "transformers",
    "llmlingua",
    "bpe_openai",
    "openai",
    "treescope",
    "reasoning_gym",
    "peft",
    "datasets",
    "matplotlib",
    "papermill",
]


@pytest.fixture(scope="module")
def trees(root):
    """Module name -> its syntax tree."""
    return {
        path.stem: ast.parse(path.read_text(encoding="utf-8"), str(path))
        for path in sorted((root / "tokenskip_lib").glob("*.py"))
    }


@pytest.fixture(scope="module")
def graph(trees):
    """Module name -> the package's modules that it imports, anywhere in it."""
    found = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            targets = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: a relative import hides which way it goes"
                targets = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            for target in targets:
                package, _, module = target.partition(".")
                if package == "tokenskip_lib" and module.split(".")[0] in trees:
                    found[name].add(module.split(".")[0])
    return found


def test_imports_do_not_go_round(graph):
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(graph)
    assert graph["methods"] >= {"grading", "prompts", "records"}  # the graph is really read


def test_imports_run_one_way(graph):
    row = {name: number for number, names in enumerate(LAYERS) for name in names}
    assert set(graph) <= set(row), "a new module: give it its row in LAYERS"
    upward = [(name, other) for name, others in graph.items() for other in others if row[other] > row[name]]
    assert upward == []


def test_records_and_config_know_nothing_above_them(graph):
    assert graph["records"] == set() and graph["settings"] == set() and graph["config"] == {"records", "settings"}


def test_pipeline_is_imported_by_the_command_line_alone_and_that_by_nobody(graph):
    assert {name for name, others in graph.items() if "pipeline" in others} <= {"__main__"}
    assert {name for name, others in graph.items() if "__main__" in others} == set()


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("tokenskip_lib", HEAVY),
        ("tokenskip_lib.__main__, tokenskip_lib.config, tokenskip_lib.records, tokenskip_lib.runs", HEAVY),
        ("tokenskip_lib.problems, tokenskip_lib.prompts, tokenskip_lib.grading, tokenskip_lib.pruning", HEAVY),
    ],
    ids=["package", "command line", "data"],
)
def test_importing_does_not_load_what_it_does_not_need(modules, heavy, root):
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {set(heavy)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_module_is_longer_than_320_lines(root):
    lengths = {path.name: len(path.read_text().splitlines()) for path in (root / "tokenskip_lib").glob("*.py")}
    assert lengths and {name: length for name, length in lengths.items() if length > 320} == {}


def test_every_module_says_what_it_is(trees):
    assert [name for name, tree in trees.items() if not ast.get_docstring(tree)] == []
    assert not {"utils", "helpers", "common", "misc"} & set(trees)


def test_nothing_is_executed_that_was_read(trees):
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("eval", "exec", "compile", "__import__"):
                    found.append((name, node.lineno, node.func.id))
            elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "shell", "weights_only"):
                safe = isinstance(node.value, ast.Constant) and node.value.value is (node.arg == "weights_only")
                if not safe:
                    found.append((name, node.value.lineno, node.arg))
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                found += [(name, node.lineno, used) for used in names if used in ("pickle", "dill", "joblib", "*")]
    assert found == []


def test_no_error_is_swallowed_whatever_it_is(trees):
    found = []
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or (
                    isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                )
                silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
                if broad or silent:
                    found.append((name, node.lineno))
    assert found == []


def test_the_version_is_the_installed_one():
    from importlib import metadata

    assert metadata.version("tokenskip") == tokenskip_lib.__version__
