"""The package as a whole: imports run one way and stay light, and nothing in it executes what it reads."""

import ast
import graphlib
import subprocess
import sys

import pytest

import tokenskip_lib

# A wing may import from the floors above its own line here, never from a wing beside or below it.
FLOORS = [
    {"core"},
    {"problems", "models"},
    {"pruning", "training", "inference"},
    {"evaluation"},
    {"api", "figures"},
    {"experiments"},
    {"analyses"},
    {"commands"},
    {"__main__"},
]
TOP_LEVEL = {"__init__.py", "__main__.py", "api.py", "py.typed", "profiles"}
HEAVY = [
    "torch",
    "transformers",
    "llmlingua",
    "bpe_openai",
    "openai",
    "reasoning_gym",
    "peft",
    "datasets",
    "matplotlib",
    "papermill",
]


@pytest.fixture(scope="module")
def trees(root):
    """Dotted module name without `tokenskip_lib` -> its syntax tree."""
    package = root / "tokenskip_lib"
    return {
        ".".join(path.relative_to(package).with_suffix("").parts): ast.parse(
            path.read_text(encoding="utf-8"), str(path)
        )
        for path in sorted(package.rglob("*.py"))
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
            found[name] |= {target.removeprefix("tokenskip_lib.") for target in targets} & set(trees)
    return found


def test_imports_do_not_go_round(graph):
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(graph)
    assert graph["evaluation.predictions"] >= {"problems.grading", "core.records"}  # the graph is really read


def test_imports_between_wings_run_one_way(graph):
    floor = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
    upward = []
    for name, others in graph.items():
        wing = name.partition(".")[0]
        if wing == "__init__":  # loads the public names of api when they are first used
            continue
        upward += [
            (name, other) for other in others if wing != (to := other.partition(".")[0]) and floor[to] >= floor[wing]
        ]
    assert upward == []


def test_the_package_holds_its_wings_and_little_else(root):
    wings = {wing for wings in FLOORS for wing in wings} - {"api", "__main__"}
    entries = {path.name for path in (root / "tokenskip_lib").iterdir()} - {"__pycache__"}
    assert entries == TOP_LEVEL | wings


def test_the_tests_mirror_the_wings(root):
    wings = {wing for wings in FLOORS for wing in wings} - {"api", "__main__"}
    folders = {path.name for path in (root / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == wings | {"faults"}  # `make test-faults` is about all of them


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("tokenskip_lib.api", [*HEAVY, "numpy", "pandas"]),
        ("tokenskip_lib.__main__, tokenskip_lib.core.profiles, tokenskip_lib.experiments.run", HEAVY),
        (
            "tokenskip_lib.problems.sets, tokenskip_lib.models.prompts, tokenskip_lib.problems.grading, "
            "tokenskip_lib.pruning.prune",
            HEAVY,
        ),
    ],
    ids=["api", "command line", "data"],
)
def test_importing_does_not_load_what_it_does_not_need(modules, heavy, root):
    code = f"import sys, {modules}; print(*sorted(set(sys.modules) & {set(heavy)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_module_is_longer_than_320_lines(root):
    lengths = {str(path): len(path.read_text().splitlines()) for path in (root / "tokenskip_lib").rglob("*.py")}
    assert lengths and {name: length for name, length in lengths.items() if length > 320} == {}


def test_every_module_says_what_it_is(trees):
    assert [name for name, tree in trees.items() if not ast.get_docstring(tree)] == []
    assert not {"utils", "helpers", "common", "misc"} & {name.rpartition(".")[2] for name in trees}


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
