"""The pipeline around the notebooks: what it refuses before it starts, and what it publishes."""

import nbformat
import pytest

from tokenskip_lib.core.records import InputError
from tokenskip_lib.experiments.notebooks import NOTEBOOKS, README_TABLE, _for_readers, publish, run_notebooks
from tokenskip_lib.experiments.run import Run
from tokenskip_lib.experiments.steps import STEPS


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
    with pytest.raises(InputError, match="no studies"):
        run_notebooks("demo", {}, **step)


def test_an_unfinished_run_is_not_published(tiny_profile, root):
    before = (root / "notebooks" / "01_chains_of_thought.ipynb").read_bytes()
    profile = tiny_profile.model_copy(update={"name": "demo", "studies": {}})
    run = Run.create(profile)
    for stage in ("generate", "score", "train", "evaluate"):
        run.note(stage, notebook_seconds=1.0)
    with pytest.raises(InputError, match="03_pruning has not been run"):
        publish(profile)
    assert (root / "notebooks" / "01_chains_of_thought.ipynb").read_bytes() == before


@pytest.mark.parametrize("only", [None, 6])
def test_a_run_is_published_where_the_notebook_opens_with_its_profile(tiny_profile, only):
    run = Run.create(tiny_profile)
    for stage in STEPS:
        run.note(stage, notebook_seconds=1.0)
    with pytest.raises(InputError, match="opens with profile 'demo"):
        publish(tiny_profile, only=only)


def test_only_the_marked_table_of_the_readme_is_replaced():
    readme = "# Title\n<!-- metrics -->\nold\n| a |\n<!-- /metrics -->\nafter\n"
    assert README_TABLE.sub(r"\g<1>new\n\g<2>", readme) == (
        "# Title\n<!-- metrics -->\nnew\n<!-- /metrics -->\nafter\n"
    )


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
