"""Links of a notebook that moves lead where they led before."""

import nbformat
import pytest

from tokenskip_lib.experiments.links import move_links

TEXT = (
    "[a](../README.md), [b](02_next.ipynb), [c](06_far.ipynb#part) and [d](../data/x.csv), "
    "[web](https://example.org/a) [here](#top) `[code](../README.md)`"
)


@pytest.fixture
def notebook():
    v4 = nbformat.v4
    return v4.new_notebook(cells=[v4.new_markdown_cell(TEXT), v4.new_code_cell('print("[a](../README.md)")')])


def test_links_follow_and_come_back(notebook, tmp_path):
    old, new = tmp_path / "notebooks", tmp_path / "data" / "runs" / "demo" / "notebooks"
    move_links(notebook, old, new, together=["02_next.ipynb"])
    assert notebook.cells[0].source == (
        "[a](../../../../README.md), [b](02_next.ipynb), [c](../../../../notebooks/06_far.ipynb#part) "
        "and [d](../../../x.csv), [web](https://example.org/a) [here](#top) `[code](../../../../README.md)`"
    )
    assert notebook.cells[1].source == 'print("[a](../README.md)")'
    move_links(notebook, new, old, together=["02_next.ipynb"])
    assert notebook.cells[0].source == TEXT
