"""What the committed notebooks say: their numbers, their links, and the solutions of their exercises."""

import json
import re
from itertools import pairwise, takewhile
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tokenskip_lib.experiments.notebooks import NOTEBOOKS

ROOT = Path(__file__).resolve().parent.parent
NAMES = list(NOTEBOOKS.values())
NUMBER = re.compile(r"(?<![\w.:/])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:%|\b)")
SOLUTION = re.compile(r"<details><summary>Solution</summary>(.*?)</details>", re.DOTALL)
CODE, PRINTED = re.compile(r"```python\n(.*?)```", re.DOTALL), re.compile(r"```text\n(.*?)```", re.DOTALL)


def read(name: str):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def shown(cell) -> str:
    """The text of a code cell's outputs."""
    texts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        texts += [
            output.get("text", ""),
            re.sub(r"<style.*?</style>|<[^>]*>", " ", data.get("text/html", ""), flags=re.S),
        ]
        texts += [data.get("text/plain", ""), data.get("text/markdown", "")]
    return "\n".join(texts)


def numbers_of(text: str) -> list[tuple[float, int]]:
    """Each number of a text, and its decimals. A percentage is a fraction with two more decimals."""
    found = []
    for written in NUMBER.findall(text):
        digits = written.rstrip("%").replace(",", "").lstrip("+")
        decimals = len(digits.partition(".")[2])
        value = float(digits)
        found.append((value / 100, decimals + 2) if written.endswith("%") else (value, decimals))
    return found


def tables_of(text: str) -> str:
    """The content of every published table that a text links to."""
    names = re.findall(r"data/results/([\w-]+\.csv)", text)
    return "\n".join((ROOT / "data" / "results" / name).read_text(encoding="utf-8") for name in names)


def findings() -> list:
    cases = []
    for name in NAMES:
        section: list[str] = []
        for cell in read(name).cells:
            if cell.cell_type == "code":
                section.append(shown(cell))
            elif "finding" in cell.metadata.get("tags", []):
                cases.append(pytest.param(name, cell.source, "\n".join(section), id=f"{name[:2]}-{cell.id}"))
    return cases


def is_there(value: float, decimals: int, known: list[tuple[float, int]]) -> bool:
    """Whether a number is among those known, rounded to its decimals; 5 points, 5% and 0.05 are the same."""
    half = 0.5000001 * 10**-decimals
    return any(abs(abs(value) - abs(other) * scale) <= half for other, _ in known for scale in (0.01, 1, 100))


@pytest.mark.parametrize(("name", "text", "outputs"), findings())
def test_each_number_of_a_finding_is_in_the_outputs_above_it_or_in_the_table_that_it_links_to(name, text, outputs):
    known = numbers_of(outputs + "\n" + tables_of(text))
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)|`[^`]*`|95%|notebooks? \d+|section \d+", r"\1", text)
    missing = [value for value, decimals in numbers_of(prose) if not is_there(value, decimals, known)]
    assert not missing, f"{name}: {missing} in {text!r}"


def test_a_number_that_no_output_has_is_found_out():
    assert is_there(0.52, 2, numbers_of("0.5237")) and is_there(52.4, 1, numbers_of("0.5237"))
    assert not is_there(0.53, 2, numbers_of("0.5237")) and not is_there(31, 0, numbers_of("30 and 32"))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_with_its_question_its_neighbours_and_its_minutes_and_ends_with_them(name):
    cells, number = read(name).cells, NAMES.index(name)
    first, last = cells[0].source, cells[-1].source
    assert re.match(rf"# {name[:2]} [A-Z].*\?\n", first)
    for phrase in ("**Reads**", "**Writes**", "**Reading time**", "**Machine time**", "[README](../README.md)"):
        assert phrase in first, phrase
    neighbours = NAMES[max(0, number - 1) : number] + NAMES[number + 1 : number + 2]
    assert all(f"({neighbour}.ipynb)" in text for neighbour in neighbours for text in (first, last))
    assert "open_run(PROFILE, OVERRIDES)" in "".join(cell.source for cell in cells)


@pytest.mark.parametrize("name", NAMES)
def test_code_is_short_and_has_prose_around_it(name):
    cells = read(name).cells
    assert not [cell.id for cell in cells if cell.cell_type == "code" and len(cell.source.splitlines()) > 32]
    runs = re.findall(r"c+", "".join("c" if cell.cell_type == "code" else "m" for cell in cells[5:]))
    assert max(map(len, runs)) <= 3, runs
    headings = re.findall(r"^## (.*)", "\n".join(cell.source for cell in cells if cell.cell_type == "markdown"), re.M)
    assert headings[-3:] == ["Summary", "Exercises", "References"]


@pytest.mark.parametrize("name", NAMES)
def test_each_notebook_has_two_exercises_with_folded_solutions_in_python(name):
    solutions = SOLUTION.findall(read(name).cells[-1].source)
    assert len(solutions) >= 2
    for solution in solutions:
        [code], [printed] = CODE.findall(solution), PRINTED.findall(solution)
        compile(code, name, "exec")
        assert printed.strip() and solution.index(code) < solution.index(printed)  # a reader without a kernel sees it


def test_a_published_table_is_named_where_its_numbers_are_typed():
    """The table of notebook 02 is notebook 06's."""
    text = next(cell.source for cell in read("02_token_importance").cells if cell.id == "rule")
    scorers = pd.read_csv(ROOT / "data" / "results" / "demo-full_scorers.csv")
    rows = scorers[(scorers["method"] == "tokenskip") & ~scorers["pruning.skip_spaces"].astype(bool)]
    for name in ("selective_context", "random", "leave_one_out"):
        for _, row in rows[rows["importance.scorer"] == name].iterrows():
            percent = [f"{100 * row[column]:.1f}" for column in ("accuracy", "accuracy_low", "accuracy_high")]
            assert "{}% ({}-{})".format(*percent) in text


def test_headings_go_down_one_level_at_a_time():
    for name in NAMES:
        text = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
        levels = [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)]
        assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem[:2])
def test_every_figure_of_a_committed_notebook_has_an_alternative_text(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    pictures = [(cell, output) for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert pictures
    for cell, output in pictures:
        alt = output.metadata.get("image/png", {}).get("alt", "")
        assert 30 < len(alt) < 200, (cell.id, alt)
        if saved := re.search(r'run\.show_figure\(figure, "(\w+)"', cell.source):
            profile = re.search(r'PROFILE = "([\w-]+)"', "".join(cell.source for cell in cells)).group(1)
            origin = json.loads((ROOT / "figures" / f"{profile}_{saved.group(1)}.json").read_text(encoding="utf-8"))
            assert origin["alt"] == alt, cell.id


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_figures_by_show_figure_alone(name):
    code = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "code")
    assert len(re.findall(r"figure = ", code)) == len(re.findall(r"run\.show_figure\(figure, .*alt=alt\)", code)) > 0
    assert "save_figure" not in code and "display(figure" not in code


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_announced_before_it_and_read_after_it_with_numbers(name):
    cells = read(name).cells
    for place, cell in enumerate(cells):
        if "show_figure" not in cell.source:
            continue
        assert cells[place - 1].cell_type == "markdown", cell.id
        until_the_next = takewhile(lambda following: "show_figure" not in following.source, cells[place + 1 :])
        readings = [found for found in until_the_next if "finding" in found.metadata.get("tags", [])]
        assert any(numbers_of(reading.source) for reading in readings), cell.id
