"""The notebooks in JupyterLab: as committed, through their links, run by hand, and saved."""

import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest

from tests.lab import WAIT_S, open_lab
from tokenskip_lib.experiments.notebooks import NOTEBOOKS

LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)")
RUN_S = 1800  # for all cells of a notebook, on a busy machine
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clone(root, tmp_path_factory) -> Path:
    """The tracked files in a repository of their own, and the copies that `make lab` makes."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "-C", root, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", folder, *words], check=True)
    copies = [f"my/{name}.ipynb" for name in NOTEBOOKS.values()]
    subprocess.run(["make", "-C", folder, *copies], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def lab(clone, tmp_path_factory):
    """A function from a path in the clone to its address in a JupyterLab at the clone's root."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed (extra `notebooks`)")
    with open_lab(clone, tmp_path_factory.mktemp("lab"), PYTHONPATH=str(clone)) as address:
        yield address


@pytest.fixture
def patient(page):
    """A page that waits as long as a busy machine needs."""
    from playwright.sync_api import expect

    expect.set_options(timeout=1000 * WAIT_S)
    page.set_default_timeout(1000 * WAIT_S)
    return page


def status(clone: Path) -> str:
    """What `git status` says of the clone."""
    words = ["git", "-C", clone, "status", "--porcelain"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def open_notebook(page, address: str) -> None:
    page.goto(address)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()


def save(page) -> None:
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_role("menuitem", name="Save Notebook", exact=True).click()
    page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.jp-mod-dirty").wait_for(state="detached")


def coloured(page) -> list[str]:
    """The background colours of the spans of the first coloured chain, as the browser has computed them."""
    marks = page.locator(".tokenskip-chain").first.locator("mark")
    return marks.evaluate_all("marks => marks.map(mark => getComputedStyle(mark).backgroundColor)")


@pytest.mark.parametrize("name", NOTEBOOKS.values())
def test_every_link_of_a_notebook_opens_the_file_it_names(patient, lab, clone, name):
    notebook = nbformat.read(clone / "notebooks" / f"{name}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = sorted(set(LINK.findall(text)))
    assert links
    for link in links:
        target = (clone / "notebooks" / link).resolve().relative_to(clone)
        open_notebook(patient, lab(f"notebooks/{name}.ipynb"))
        patient.locator(f'.jp-RenderedMarkdown a[href*="/{target}"]').first.click()
        patient.wait_for_url(re.compile(rf"/lab/.*tree/{re.escape(str(target))}"))
        assert patient.locator(".jp-Dialog").count() == 0


@pytest.mark.parametrize("folder", ["notebooks", "my"])
def test_a_notebook_shows_its_coloured_texts_before_it_is_run(patient, lab, folder):
    open_notebook(patient, lab(f"{folder}/{NOTEBOOKS['score']}.ipynb"))
    assert len(set(coloured(patient))) > 5
    open_notebook(patient, lab(f"{folder}/{NOTEBOOKS['prune']}.ipynb"))
    assert len(set(coloured(patient))) > 5
    assert patient.locator(".tokenskip-counts").inner_text().endswith("(asked for 0.70)")


def test_a_notebook_that_is_opened_and_saved_stays_as_it_is(patient, lab, clone):
    before = nbformat.read(file := clone / "notebooks" / f"{NOTEBOOKS['score']}.ipynb", as_version=4)
    open_notebook(patient, lab(f"notebooks/{file.name}"))
    save(patient)
    after = nbformat.read(file, as_version=4)
    assert after.metadata.language_info.pop("version") and before.metadata.language_info.pop("version")
    assert after == before


def test_copies_run_in_lab_and_git_sees_nothing_of_it(patient, lab, clone):
    assert subprocess.run(["git", "-C", clone, "checkout", "-q", "notebooks"]).returncode == 0
    for step in ("generate", "score", "prune", "evaluate"):
        file = clone / "my" / f"{NOTEBOOKS[step]}.ipynb"
        file.write_text(file.read_text().replace(r"PROFILE = \"demo\"", r"PROFILE = \"smoke\""))
        open_notebook(patient, lab(f"my/{file.name}"))
        patient.get_by_role("menuitem", name="Run", exact=True).click()
        patient.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        cells = patient.locator(".jp-CodeCell")
        patient.locator(".jp-CodeCell .jp-InputPrompt", has_text=f"[{cells.count()}]:").wait_for(timeout=1000 * RUN_S)
        assert patient.locator('[data-mime-type="application/vnd.jupyter.stderr"]', has_text="Error").count() == 0
        if step == "prune":
            slides(patient)
        if step == "evaluate":
            sorts(patient)
        save(patient)
        saved = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in saved] == list(range(1, len(saved) + 1))
        assert "profile smoke" in str([cell.outputs for cell in saved])
    assert status(clone) == ""


def slides(page) -> None:
    """The explorer of notebook 03 answers to its slider."""
    page.locator(".widget-slider .noUi-handle").focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("(asked for 0.65)").wait_for()


def sorts(page) -> None:
    """The table of comparisons of notebook 05 is sorted at a click on a column's name."""
    table = page.locator("table.dataTable").first
    ratios = table.locator("tbody tr td:nth-child(2)")
    table.locator("thead th").nth(1).click()
    rising = [float(text) for text in ratios.all_inner_texts()]
    table.locator("thead th").nth(1).click()
    falling = [float(text) for text in ratios.all_inner_texts()]
    assert rising == sorted(rising) and falling == sorted(rising, reverse=True) and len(set(rising)) > 1
