"""The pipeline around the notebooks: what it refuses before it starts, and what it publishes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import papermill
import pytest
import yaml

from tokenskip_lib.core import paths
from tokenskip_lib.core.live import WIDGET
from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.progress import IN_LAB
from tokenskip_lib.core.records import InputError, Prediction
from tokenskip_lib.evaluation.metrics import compute_metrics
from tokenskip_lib.experiments import notebooks, steps
from tokenskip_lib.experiments.closing import closing_lines
from tokenskip_lib.experiments.notebooks import (
    NOTEBOOKS,
    README_TABLE,
    _for_readers,
    _with_pictures,
    publish,
    run_notebooks,
)
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import STAGES, STEPS

PREDICTION = Prediction(
    id="p", method="original", ratio=1.0, answer="7", output="7", chain="7", prediction="7", is_correct=True,
    chain_tokens=1, answer_tokens=1, max_new_tokens=8, cut_off=False, seconds=0.1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"evaluation.methods": {"original": [], "tokenskp": [0.5]}}, "did you mean 'tokenskip'"),
        ({"evaluation.methods": {"original": [], "tokenskip": []}}, "needs a list of ratios"),
        ({"importance.scorer": "randm"}, "did you mean 'random'"),
        ({"importance.compare_with": ["randm"]}, "did you mean 'random'"),
        ({"pruning.ratios": [0, 1]}, "pruning.ratios"),
    ],
)
def test_settings_of_late_stages_are_refused_before_the_first_begins(tmp_path, overrides, says):
    with pytest.raises(InputError, match=says):
        run_notebooks("smoke", {"run_dir": str(tmp_path / "run"), **overrides})
    assert not (tmp_path / "run").exists()


def test_there_is_a_notebook_for_every_stage(root):
    for name in NOTEBOOKS.values():
        assert (root / "notebooks" / f"{name}.ipynb").is_file()


@pytest.mark.parametrize("step", [{"only": 6}, {"redo_from": 7}])
def test_a_notebook_of_studies_is_refused_where_there_are_none(step):
    with pytest.raises(InputError, match="lacks studies"):
        run_notebooks("demo", {}, **step)


def test_one_notebook_runs_although_a_study_could_not(tmp_path, monkeypatch):
    executed = []
    monkeypatch.setattr(notebooks, "_execute", lambda run, notebook, *rest: executed.append(notebook))
    server = {"server": {"url": "http://127.0.0.1:1/v1", "model": "m"}, "run_dir": str(tmp_path / "run")}
    run_notebooks("smoke", server, only=5)
    assert executed == [NOTEBOOKS["evaluate"]]
    for only in (None, 6):
        with pytest.raises(InputError, match="trains its own adapters, which the server does not have"):
            run_notebooks("smoke", server, only=only)


def test_outside_a_checkout_a_run_is_refused_before_its_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "checkout", lambda: None)
    with pytest.raises(InputError, match="the notebooks are only in a checkout"):
        run_notebooks("smoke", {"run_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


@pytest.fixture
def execute(monkeypatch):
    """A function that replaces the execution of every notebook by a call with its run and step."""

    def replace(work) -> None:
        by_name = {name: step for step, name in NOTEBOOKS.items()}
        monkeypatch.setattr(notebooks, "_execute", lambda run, notebook, *_: work(run, by_name[notebook]))

    return replace


def test_a_notebook_that_showed_published_tables_is_not_said_to_be_done(execute, tmp_path):
    execute(lambda run, step: None)
    place = {"run_dir": str(tmp_path / "run")}
    assert run_notebooks("smoke", place, only=6).timings() == {}
    execute(lambda run, step: run.note(step, done=1))
    assert list(run_notebooks("smoke", place).timings()) == list(STEPS)
    execute(lambda run, step: pytest.fail("executed again"))
    run_notebooks("smoke", place)


def test_own_modules_are_found_by_a_notebooks_kernel_where_the_run_was_started(tiny_profile, tmp_path, monkeypatch):
    seen = []

    def look(source, target, **options):
        code = "import my_scorers, other; print(my_scorers.__file__, other.__file__)"
        done = subprocess.run([sys.executable, "-c", code], cwd=options["cwd"], capture_output=True, text=True)
        seen.append(done.stdout.split())
        shutil.copyfile(source, target)

    monkeypatch.setattr(papermill, "execute_notebook", look)
    mine, others = tmp_path / "my_scorers.py", tmp_path / "others" / "other.py"
    others.parent.mkdir()
    mine.touch()
    others.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(others.parent))
    notebooks._execute(Run.create(tiny_profile), NOTEBOOKS["score"], "smoke", {})
    assert seen == [[str(mine), str(others)]] and os.environ["PYTHONPATH"] == str(others.parent)


def test_the_kernels_of_a_run_that_a_notebook_started_are_not_taken_for_that_notebook(tiny_profile, monkeypatch):
    seen = []

    def look(source, target, **options):
        seen.append(os.environ.get(IN_LAB))
        shutil.copyfile(source, target)

    monkeypatch.setattr(papermill, "execute_notebook", look)
    monkeypatch.setenv(IN_LAB, "my/own.ipynb")
    notebooks._execute(Run.create(tiny_profile), NOTEBOOKS["score"], "smoke", {})
    assert seen == [None] and os.environ[IN_LAB] == "my/own.ipynb"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of its own, whose notebooks open with the profile `demo`; the working directory is in it."""
    root = tmp_path / "checkout"
    for folder in ("notebooks", "tokenskip_lib"):
        (root / folder).mkdir(parents=True)
    for name in NOTEBOOKS.values():
        _write_notebook(root / "notebooks" / f"{name}.ipynb", "old")
    (root / "README.md").write_text("<!-- metrics -->\nold\n<!-- /metrics -->\n")
    monkeypatch.chdir(root)
    return root


def _write_notebook(path, text: str) -> None:
    v4 = nbformat.v4
    cells = [v4.new_code_cell('PROFILE = "demo"\nOVERRIDES = {}', metadata={"tags": ["parameters"]})]
    notebook = v4.new_notebook(cells=[*cells, v4.new_markdown_cell(text)])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, path)


def test_a_kernel_warns_of_nothing(checkout, tiny_profile, monkeypatch, capfd):
    monkeypatch.setattr(notebooks, "need_checkout", lambda what: checkout)
    notebooks._execute(Run.create(tiny_profile), NOTEBOOKS["score"], "smoke", {})
    assert "WARNING" not in capfd.readouterr().err


@pytest.fixture
def finished(checkout, tiny_profile):
    """A function name -> the finished run of a profile, with a record, a table and two figures; below the checkout."""

    def make(name: str, overrides: dict | None = None) -> Run:
        file = checkout / f"{name}.yaml"
        update = {"name": name, "studies": {}, "run_dir": f"data/runs/{name}"}
        file.write_text(yaml.safe_dump(tiny_profile.model_dump() | update))
        run = Run.create(load_profile(str(file), overrides))
        file.unlink()
        metrics = compute_metrics([PREDICTION], scorer="random", seed=0)
        (run.folder / steps.CHAINS).write_text("{}\n")
        run.save_figure(plt.figure(), "accuracy", run.write_result(metrics, steps.METRICS), n=1, alt="A figure.")
        run.save_figure(plt.figure(), "lengths", run.folder / steps.CHAINS, n=1, alt="A figure.")
        (run.folder / "notebooks").mkdir()
        for stage in STAGES:
            _write_notebook(run.folder / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb", "new")
            run.note(stage, notebook_seconds=60.0)
        return run

    return make


def _files(root) -> dict[str, bytes]:
    """The checkout's files outside the run's folder."""
    paths = [path for path in root.rglob("*") if path.is_file() and "runs" not in path.parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_a_run_ends_with_what_came_out_where_it_is_and_what_to_open(finished):
    run = finished("demo")
    rows = [
        {"method": method, "ratio": ratio, "n": 500, "accuracy": accuracy, "chain_tokens": tokens}
        for method, ratio, accuracy, tokens in [
            ("original", 1.0, 0.873, 37.5), ("tokenskip", 1.0, 0.847, 37.6), ("tokenskip", 0.5, 0.84, 19.6),
            ("tokenskip", 0.7, 0.8, 26.0),
        ]
    ]  # fmt: skip
    run.write_result(pd.DataFrame(rows), steps.METRICS)
    outcome, where, after = closing_lines(run)
    assert outcome == (
        "500 problems: without TokenSkip 87.3% with 37.5 tokens; "
        "TokenSkip at 1 84.7% with 37.6 tokens; TokenSkip at 0.5 84.0% with 19.6 tokens"
    )
    assert where.endswith("data/runs/demo")
    assert after == "open next: data/runs/demo/notebooks/05_accuracy_vs_tokens.ipynb (`make lab` starts JupyterLab)"
    (run.folder / "results" / "metrics.csv").unlink()
    assert closing_lines(run) == [where, after]


def test_a_run_ends_with_its_figures_beside_the_published_ones(checkout, finished, root):
    (checkout / "data/results").mkdir(parents=True)
    shutil.copy(root / "data/results/demo_metrics.csv", checkout / "data/results")
    run = finished("demo")
    metrics = pd.read_csv(root / "data/results/demo_metrics.csv", keep_default_na=False)
    published = metrics.loc[0, "accuracy"]
    metrics.loc[0, "accuracy"] -= 0.1
    run.write_result(metrics, steps.METRICS)
    assert len(closing_lines(run)) == 3  # the settings of `finished` are not the published ones
    as_published = load_profile("demo", {"run_dir": str(run.folder)})
    first, heading, original, *rest = closing_lines(Run(as_published, run.state))
    assert first == "This run beside the published one (data/results/demo_metrics.csv):" and "published" in heading
    percent = [f"{100 * (published - less):.1f}" for less in (0.1, 0)]
    assert original.split() == ["original", *percent, "-10.0", "1.000", "1.000", "+0.000", "no"]
    assert any(f"1 of {len(metrics)} rows differ by more" in line for line in rest)


def test_publishing_copies_figures_tables_notebooks_and_the_readmes_table(checkout, finished):
    run, before = finished("demo"), _files(checkout)
    written = publish(run.profile)
    after = _files(checkout)
    assert {str(path.relative_to(checkout)) for path in written} == {
        name for name in after if after[name] != before.get(name)
    }
    kinds = ("json", "png", "svg")
    figures = {f"figures/demo_{name}.{kind}" for name in ("accuracy", "lengths") for kind in kinds}
    assert set(after) - set(before) == {"data/results/demo_metrics.csv", *figures}
    table = (run.folder / "results" / "metrics.csv").read_bytes()
    assert after["data/results/demo_metrics.csv"] == table
    assert b"| original |" in after["README.md"] and b"old" not in after["README.md"]
    assert b"5.0 in all" in after["README.md"]
    by_stage = [after[f"notebooks/{NOTEBOOKS[step]}.ipynb"] for step in STEPS]
    assert [b"new" in notebook for notebook in by_stage] == [True] * 5 + [False] * 2


def test_a_published_figure_names_its_source_relative_to_the_project(checkout, finished):
    publish(finished("demo").profile)
    named = {}
    for path in sorted((checkout / "figures").glob("*.json")):
        origin = json.loads(path.read_text())
        named[path.name] = origin["source"]
        assert origin["source_sha256"] == hashlib.sha256((checkout / origin["source"]).read_bytes()).hexdigest()
    assert named == {
        "demo_accuracy.json": "data/results/demo_metrics.csv",
        "demo_lengths.json": "data/runs/demo/01_chains.jsonl",
    }


def test_of_a_profile_that_no_notebook_opens_with_figures_and_tables_are_published(checkout, finished):
    run, before = finished("mine"), _files(checkout)
    publish(run.profile)
    after = _files(checkout)
    assert {name: after[name] for name in before} == before
    assert "data/results/mine_metrics.csv" in after and "figures/mine_lengths.svg" in after


def test_a_run_with_other_settings_is_published_by_its_own_name_and_replaces_nothing(checkout, finished):
    run, before = finished("demo", {"training.epochs": 7, "run_dir": "data/runs/longer"}), _files(checkout)
    publish(run.profile)
    after = _files(checkout)
    assert {name: after[name] for name in before} == before
    assert {path.split("/")[-1].partition("_")[0] for path in set(after) - set(before)} == {"longer"}
    origin = json.loads(after["figures/longer_accuracy.json"])
    assert (origin["profile"], origin["overrides"], origin["n"]) == ("demo", {"training.epochs": 7}, 1)
    assert origin["source"] == "data/results/longer_metrics.csv"


@pytest.mark.parametrize("folder", ["demo", "smoke"])
def test_a_run_with_other_settings_in_a_profiles_folder_is_not_published(checkout, finished, folder):
    run, before = finished("demo", {"training.epochs": 7, "run_dir": f"data/runs/{folder}"}), _files(checkout)
    with pytest.raises(InputError, match=f"other settings than profile '{folder}' .*training.epochs.*run_dir="):
        publish(run.profile)
    assert _files(checkout) == before


def test_publishing_writes_nothing_into_the_run(checkout, finished):
    run = finished("demo")
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    publish(run.profile)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_an_unfinished_run_is_not_published(checkout, finished):
    run, before = finished("demo"), _files(checkout)
    del run.state["stages"]["prune"]
    run._write()
    with pytest.raises(InputError, match="03_pruning has not been run"):
        publish(run.profile)
    assert _files(checkout) == before


def test_what_is_no_run_is_not_published(checkout, tiny_profile):
    with pytest.raises(InputError, match="no run here"):
        publish(tiny_profile)
    assert not tiny_profile.path("").exists()


def test_only_the_marked_table_of_the_readme_is_replaced():
    readme = "# Title\n<!-- metrics -->\nold\n| a |\n<!-- /metrics -->\nafter\n"
    assert README_TABLE.sub(r"\g<1>new\n\g<2>", readme) == (
        "# Title\n<!-- metrics -->\nnew\n<!-- /metrics -->\nafter\n"
    )


def test_of_a_widget_its_picture_stays_and_a_bar_leaves_nothing():
    v4 = nbformat.v4
    view = {"version_major": 2, "version_minor": 0, "model_id": "a"}
    shown = v4.new_output("execute_result", {WIDGET: view, "text/html": "<p>x</p>", "text/plain": "x"})
    bar = v4.new_output("display_data", {WIDGET: view, "text/plain": "HBox()"})
    cells = [v4.new_code_cell("explore(run)", outputs=[bar, shown])]
    notebook = _with_pictures(v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}}))
    [output] = notebook.cells[0].outputs
    assert output.data == {"text/html": "<p>x</p>", "text/plain": "x"} and "widgets" not in notebook.metadata


def test_an_executed_notebooks_links_lead_to_the_checkout(checkout, tiny_profile, monkeypatch):
    monkeypatch.setattr(notebooks, "need_checkout", lambda what: checkout)
    source = checkout / "notebooks" / f"{NOTEBOOKS['score']}.ipynb"
    _write_notebook(source, f"[readme](../README.md) and [next]({NOTEBOOKS['prune']}.ipynb)")
    run = Run.create(tiny_profile)
    notebooks._execute(run, NOTEBOOKS["score"], "smoke", {})
    executed = nbformat.read(run.folder / "notebooks" / source.name, as_version=4)
    [text] = [cell.source for cell in executed.cells if cell.cell_type == "markdown"]
    way = Path(os.path.relpath(checkout / "README.md", run.folder / "notebooks")).as_posix()
    assert text == f"[readme]({way}) and [next]({NOTEBOOKS['prune']}.ipynb)"


def test_a_notebook_for_readers_keeps_outputs_and_loses_what_the_run_added():
    v4 = nbformat.v4
    kept = v4.new_output("stream", name="stdout", text="kept")
    cells = [
        v4.new_code_cell("PROFILE = 'demo'", metadata={"tags": ["parameters"]}),
        v4.new_code_cell("PROFILE = 'smoke'", metadata={"tags": ["injected-parameters"]}),
        v4.new_code_cell(
            "work()",
            outputs=[kept, v4.new_output("stream", name="stderr", text="50%|##")],
            metadata={"papermill": {"duration": 1}, "execution": {"iopub.execute_input": "now"}},
        ),
    ]
    notebook = _for_readers(
        v4.new_notebook(cells=cells, metadata={"widgets": {}, "papermill": {}, "language_info": {"name": "python"}})
    )
    assert [cell.source for cell in notebook.cells] == ["PROFILE = 'demo'", "work()"]
    assert notebook.cells[1].outputs == [kept] and notebook.cells[1].metadata == {}
    assert set(notebook.metadata) == {"language_info"}
