"""The notebooks, end to end through papermill on the smoke profile: real model, real problems."""

import json
import re
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import InputError, Prediction
from tokenskip_lib.core.store import RecordStore
from tokenskip_lib.evaluation.methods import method_ratios
from tokenskip_lib.evaluation.metrics import METRIC_COLUMNS
from tokenskip_lib.experiments import steps
from tokenskip_lib.experiments.notebooks import NOTEBOOKS, SHOWN_STUDIES, run_notebooks, steps_of
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import STAGES, STEPS

FIGURES = [
    "chain_length", "token_importance", "scorer_correlation", "importance_by_kind", "kept_by_kind",
    "kept_against_skipped", "scorer_disagreement", "scorer_agreement", "regret", "pruned_ratio",
    "training_loss", "accuracy_vs_tokens", "requested_vs_actual", "scorers", "random_pruning", "control",
    "length_budget", "untrained_ratios", "recovery", "speedup", "ratio_for_each_problem",
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("smoke")
    return {"run_dir": str(folder / "run")}


@pytest.fixture(scope="module")
def smoke(places) -> Run:
    return run_notebooks("smoke", places)


def test_every_notebook_was_executed_with_the_profile_and_without_errors(smoke):
    for name in NOTEBOOKS.values():
        notebook = nbformat.read(smoke.folder / "notebooks" / f"{name}.ipynb", as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code if cell.source)
        assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
        assert "profile smoke" in str([o for cell in code for o in cell.outputs])


def test_every_method_and_ratio_has_a_row_and_a_prediction_for_each_test_problem(smoke):
    metrics = pd.read_csv(smoke.folder / "results" / "metrics.csv", keep_default_na=False)
    wanted = method_ratios(smoke.profile.evaluation)
    assert list(metrics.columns) == METRIC_COLUMNS
    assert sorted(zip(metrics["method"], metrics["ratio"], strict=True)) == sorted(wanted)
    predictions = RecordStore(smoke.folder / steps.PREDICTIONS, Prediction)
    assert len(predictions) == len(wanted) * smoke.profile.problems.test_size
    correct = sum(p.is_correct for p in predictions if p.method == "original")
    assert metrics["accuracy"][0] == round(correct / smoke.profile.problems.test_size, 4)


def test_every_figure_of_an_executed_notebook_has_its_alternative_text(smoke):
    for name in NOTEBOOKS.values():
        notebook = nbformat.read(smoke.folder / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
        pictures = [o for o in outputs if "image/png" in o.get("data", {})]
        assert pictures and all(o.metadata["image/png"]["alt"] for o in pictures), name


def test_a_run_writes_into_its_folder_alone(smoke, root):
    status = subprocess.run(["git", "-C", str(root), "status", "--porcelain"], capture_output=True, text=True)
    changed = [line[3:] for line in status.stdout.splitlines()]
    assert not [path for path in changed if path.startswith(("figures/", "data/", "notebooks/", "README"))]
    assert not list((root / "figures").glob("smoke*")) and not list((root / "data" / "results").glob("smoke*"))


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_names_its_source(smoke, name):
    picture = smoke.folder / "figures" / f"{name}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    origin = json.loads(picture.with_suffix(".json").read_text())
    assert origin["profile"] == "smoke" and Path(origin["source"]).exists() and len(origin["source_sha256"]) == 64


def test_the_profile_file_records_settings_seed_versions_and_what_was_dropped(smoke):
    state = json.loads((smoke.folder / "profile.json").read_text())
    assert state["profile"] == json.loads(smoke.profile.model_dump_json())
    assert state["seed"] == smoke.profile.seed and state["versions"]["torch"]
    assert list(state["stages"]) == list(STEPS)
    generate = state["stages"]["generate"]
    assert generate["chains"] == smoke.profile.problems.train_size
    assert generate["kept"] + sum(generate["dropped_chains"].values()) == generate["chains"]


def test_the_adapter_is_safetensors_for_the_public_model_name(smoke):
    folder = smoke.folder / steps.ADAPTER
    assert (folder / "adapter_model.safetensors").exists() and not (folder / "checkpoints").exists()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == smoke.profile.target.model


def test_a_second_run_redoes_nothing(smoke, places):
    before = {path: path.stat().st_mtime_ns for path in smoke.folder.rglob("*") if path.name != "profile.json"}
    run_notebooks("smoke", places)
    after = {path: path.stat().st_mtime_ns for path in smoke.folder.rglob("*") if path.name != "profile.json"}
    assert {p: t for p, t in after.items() if p.is_file()} == {p: t for p, t in before.items() if p.is_file()}


def test_other_settings_are_refused_and_the_message_names_the_stage(smoke, places):
    with pytest.raises(InputError, match=r"training\.epochs.*--from 04"):
        run_notebooks("smoke", {**places, "training.epochs": 2})


def test_without_a_run_the_notebook_of_the_results_shows_the_published_table(tmp_path, root):
    source = root / "notebooks" / f"{NOTEBOOKS['evaluate']}.ipynb"
    overrides = {"OVERRIDES": {"run_dir": str(tmp_path / "run")}}
    executed = papermill.execute_notebook(source, tmp_path / "executed.ipynb", overrides, progress_bar=False)
    shown = str([output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs])
    published = pd.read_csv(root / "data" / "results" / "demo_metrics.csv")
    assert "this run has not begun" in shown and f"{len(published)} rows (method x ratio)" in shown
    assert not list((tmp_path / "run").glob("0*_*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS.values())
def test_the_solutions_of_the_exercises_run(smoke, places, root, tmp_path, name):
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    solutions = re.findall(r"</summary>.*?```python\n(.*?)```", notebook.cells[-1].source, flags=re.DOTALL)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions]
    source = tmp_path / f"{name}.ipynb"
    nbformat.write(notebook, source)
    # 06 and 07 read the run's own tables here.
    parameters = {"PROFILE": "smoke", "OVERRIDES": places}
    executed = papermill.execute_notebook(
        source, tmp_path / "executed.ipynb", parameters, cwd=root / "notebooks", progress_bar=False
    )
    assert len(solutions) >= 2 and all(cell.execution_count for cell in executed.cells[-len(solutions) :])


@pytest.mark.slow
@pytest.mark.parametrize("name", [NOTEBOOKS[step] for step in STEPS if step not in STAGES])
def test_solutions_that_read_published_tables_print_what_is_shown(root, tmp_path, name):
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
    text = notebook.cells[-1].source
    solutions = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, flags=re.DOTALL)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code, _ in solutions]
    source = tmp_path / f"{name}.ipynb"
    nbformat.write(notebook, source)
    parameters = {"OVERRIDES": {"run_dir": str(tmp_path / "run")}}
    executed = papermill.execute_notebook(
        source, tmp_path / "executed.ipynb", parameters, cwd=root / "notebooks", progress_bar=False
    )
    printed = ["".join(o["text"] for o in cell.outputs) for cell in executed.cells[-len(solutions) :]]
    assert len(solutions) >= 2 and printed == [shown for _, shown in solutions]


def test_a_profile_of_ones_own_without_a_measurement_gets_through_notebook_02(root, tmp_path, monkeypatch):
    """One scorer alone: nothing is compared and nothing measured. The path is relative to where one types."""
    given = (root / "tokenskip_lib/profiles/smoke.yaml").read_text()
    measured = "compare_with: [mist, leave_one_out, random]"
    assert measured in given
    (tmp_path / "own.yaml").write_text(given.replace(measured, "compare_with: []"))
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        run = run_notebooks("own.yaml", {"run_dir": str(tmp_path / "run")}, only=number)
    notebook = nbformat.read(run.folder / "notebooks" / f"{NOTEBOOKS['score']}.ipynb", as_version=4)
    said = str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert "not measured: this profile" in said and "no regret" in said
    assert not (run.folder / "figures" / "regret.png").exists()


def test_the_notebooks_of_studies_are_of_profiles_that_have_all_of_them(root):
    sources = "".join((root / "notebooks" / f"{NOTEBOOKS[step]}.ipynb").read_text() for step in STEPS[len(STAGES) :])
    assert set(re.findall(r'study_table\(run, \\"(\w+)', sources)) == set(SHOWN_STUDIES)
    seeds = {"studies": {"seeds": {"common": {}, "vary": [{"training.seed": 1}]}}}
    assert steps_of(load_profile("demo-full")) == STEPS and steps_of(load_profile("demo", seeds)) == STAGES
    with pytest.raises(InputError, match=r"lacks studies .*scorers, random"):
        run_notebooks("demo", seeds, only=6)
