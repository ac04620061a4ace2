"""The notebooks in JupyterLab: as committed, through their links, run by hand, and saved."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.lab import WAIT_S, open_lab
from tokenskip_lib.experiments.notebooks import NOTEBOOKS
from tokenskip_lib.experiments.steps import STAGES

LINK = re.compile(r"(?<!!)\[[^]]*\]\((?![a-z]+:|#)([^)\s#]+)")  # to a file; a picture is no link
RUN_S = 1800  # for all cells of a notebook, on a busy machine
ALL = ["00_from_scratch", *NOTEBOOKS.values()]
SHOWN = {  # what a reader sees of a file that Lab has opened
    ".ipynb": ".jp-Cell h1",
    ".md": ".jp-RenderedMarkdown h1",
    ".csv": ".lm-DataGrid canvas",
    ".jsonl": ".jp-RenderedJSON li",
}
PAGES = {  # with a notebook that links to the page
    "README.md": "01_chains_of_thought",
    "docs/findings.md": "05_accuracy_vs_tokens",
    "data/README.md": "06_what_control_takes",
}
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
    copies = [f"my/{name}.ipynb" for name in ALL]
    subprocess.run(["make", "-C", folder, *copies], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def lab(clone, tmp_path_factory):
    """A function from a path in the clone to its address in a JupyterLab at the clone's root."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed (extra `notebooks`)")
    with open_lab(clone, tmp_path_factory.mktemp("lab"), PYTHONPATH=str(clone), OMP_NUM_THREADS="1") as address:
        yield address


@pytest.fixture
def patient(page, lab):
    """A page that waits as long as a busy machine needs; the kernels that it started end with it."""
    from playwright.sync_api import expect

    expect.set_options(timeout=1000 * WAIT_S)
    page.set_default_timeout(1000 * WAIT_S)
    yield page
    end_kernels(page)


def status(clone: Path) -> str:
    """What `git status` says of the clone."""
    words = ["git", "-C", clone, "status", "--porcelain"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def open_notebook(page, address: str) -> None:
    page.goto(address)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()


def in_front(page, path: Path | str):
    """The document of this path, once it is the one in front."""
    page.wait_for_url(re.compile(rf"/lab/.*tree/{re.escape(str(path))}($|\?)"))
    return page.locator(".jp-Document:not(.lm-mod-hidden)")


def end_kernels(page) -> None:
    """End every kernel: a notebook that has run keeps its model in memory, also when its page is closed."""
    at = re.match(r"https?://[^/]+", page.url).group()
    headers = {"X-XSRFToken": next(c["value"] for c in page.context.cookies() if c["name"] == "_xsrf")}
    for session in page.request.get(f"{at}/api/sessions").json():
        assert page.request.delete(f"{at}/api/sessions/{session['id']}", headers=headers).ok


def follow(page, document, path: Path) -> Any:
    """Click the link to `path` in `document`; gives the document that this opens, once its content is there."""
    document.locator("details").evaluate_all("folds => folds.forEach(fold => fold.open = true)")
    ends = (f'a[href*="/{path}{end}"]' for end in "?#")
    document.locator(", ".join(f".jp-RenderedMarkdown {link}" for link in ends)).first.click()
    opened = in_front(page, path)
    opened.locator(SHOWN[path.suffix]).first.wait_for()
    return opened


def follow_all(page, document, tab: int, links: list[Path]) -> None:
    """Follow each link, coming back to the document by its tab, the one with this number."""
    assert links
    for link in links:
        follow(page, document, link)
        assert page.locator(".jp-Dialog").count() == 0
        page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab").nth(tab).click()


def links_of(text: str, file: Path, clone: Path) -> list[Path]:
    """The files of the repository that the text of `file` links to."""
    return sorted({(file.parent / link).resolve().relative_to(clone) for link in LINK.findall(text)})


def markdown_of(file: Path) -> str:
    """The text of a notebook."""
    cells = nbformat.read(file, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def save(page) -> None:
    """Save the notebook by the menu, and wait until it is on disk."""
    page.get_by_role("menuitem", name="File", exact=True).click()
    with page.expect_response(lambda answer: answer.request.method == "PUT" and "/api/contents/" in answer.url):
        page.get_by_role("menuitem", name=re.compile(r"^Save Notebook(?! As)")).click()
    page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.jp-mod-dirty").wait_for(state="detached")


def run_all(page) -> None:
    """Run all cells by the menu, until the last has run or one has failed."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    number = page.locator(".jp-CodeCell").count()
    last = page.locator(".jp-CodeCell .jp-InputPrompt", has_text=f"[{number}]:")
    said = page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"]')
    last.or_(said.filter(has_text="Error")).first.wait_for(timeout=1000 * RUN_S)
    assert said.all_inner_texts() == []  # neither an error nor a warning


def coloured(page) -> list[str]:
    """The background colours of the spans of the first coloured chain, as the browser has computed them."""
    marks = page.locator(".tokenskip-chain").first.locator("mark")
    return marks.evaluate_all("marks => marks.map(mark => getComputedStyle(mark).backgroundColor)")


def undrawn(images) -> list[str]:
    """The images that the browser could not draw."""
    images.evaluate_all("images => Promise.all(images.map(image => image.decode().catch(() => null)))")
    return images.evaluate_all(
        "images => images.filter(image => !image.naturalWidth).map(image => image.src.slice(0, 90))"
    )


@pytest.mark.parametrize("name", ALL)
def test_a_notebook_shows_all_its_outputs_before_it_is_run(patient, lab, clone, name):
    from playwright.sync_api import expect

    file = clone / "notebooks" / f"{name}.ipynb"
    cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    # Lab shows what a cell prints as one output, also if the file has it in pieces.
    outputs = {(cell.id, output.get("name", n)) for cell in cells for n, output in enumerate(cell.outputs)}
    open_notebook(patient, lab(f"notebooks/{file.name}"))
    shown = patient.locator(".jp-CodeCell .jp-OutputArea-output")
    expect(shown).to_have_count(len(outputs))
    for output in shown.all():
        assert min(output.evaluate("output => [output.offsetWidth, output.offsetHeight]")) > 5, output.inner_html()
    assert undrawn(patient.locator(".jp-Notebook img")) == []
    assert patient.locator(".jp-Dialog").count() == 0


@pytest.mark.parametrize("folder", ["notebooks", "my"])
@pytest.mark.parametrize("name", ALL)
def test_every_link_of_a_notebook_opens_the_file_it_names(patient, lab, clone, folder, name):
    file = clone / folder / f"{name}.ipynb"
    open_notebook(patient, lab(f"{folder}/{file.name}"))
    document = in_front(patient, file.relative_to(clone))
    follow_all(patient, document, 0, links_of(markdown_of(file), file, clone))


@pytest.mark.parametrize("path, notebook", PAGES.items())
def test_a_page_reached_from_a_notebook_shows_its_figures_and_its_links_open(patient, lab, clone, path, notebook):
    open_notebook(patient, lab(f"notebooks/{notebook}.ipynb"))
    document = in_front(patient, f"notebooks/{notebook}.ipynb")
    opened = follow(patient, document, Path(path))
    assert undrawn(opened.locator("img")) == []
    follow_all(patient, opened, 1, links_of((clone / path).read_text(), clone / path, clone))


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
    for step in STAGES:
        file = clone / "my" / f"{NOTEBOOKS[step]}.ipynb"
        file.write_text(file.read_text().replace(r"PROFILE = \"demo\"", r"PROFILE = \"smoke\""))
        open_notebook(patient, lab(f"my/{file.name}"))
        run_all(patient)
        if step == "prune":
            slides(patient)
        if step == "evaluate":
            sorts(patient)
        save(patient)
        saved = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in saved] == list(range(1, len(saved) + 1))
        assert "profile smoke" in str([cell.outputs for cell in saved])
        end_kernels(patient)
    assert status(clone) == ""


def slides(page) -> None:
    """The explorer of notebook 03 answers to its slider."""
    page.locator(".widget-slider .noUi-handle").focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_text("(asked for 0.65)").wait_for()


def sorts(page) -> None:
    """The table of comparisons of notebook 05 is sorted at a click on the arrows beside a column's name."""
    from playwright.sync_api import expect

    table = page.locator("table.dataTable").first
    name = table.locator("thead th").nth(1)
    order = {}
    for way in ("ascending", "descending"):
        name.locator(".dt-column-order").click()  # the arrows
        expect(name).to_have_attribute("aria-sort", way)
        order[way] = [float(text) for text in table.locator("tbody tr td:nth-child(2)").all_inner_texts()]
    assert order["ascending"] == sorted(order["ascending"]) == order["descending"][::-1]
    assert len(set(order["ascending"])) > 1
