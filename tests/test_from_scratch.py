"""Notebook 00: its rules, its numbers, and (slow) the whole of it with the solutions of its exercises."""

import ast
import json
import re

import nbformat
import pytest

NAME = "00_from_scratch"
SLIDE_TYPES = {"slide", "subslide", "fragment", "skip", "notes"}
NOT_PLAIN = re.compile(r"\b(simply|obviously|of course|just|honest|really?|e\.g|i\.e)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def notebook(root):
    return nbformat.read(root / "notebooks" / f"{NAME}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def prose(notebook) -> dict[str, str]:
    """id -> the text of each Markdown cell, on one line."""
    return {cell.id: " ".join(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown"}


def shown(cells) -> dict[str, str]:
    """id -> what each code cell shows, as text."""
    texts = {}
    for cell in cells:
        parts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
        html = [output.get("data", {}).get("text/html", "") for output in cell.outputs]
        texts[cell.id] = "\n".join([*parts, *html])
    return texts


def answer_rows(cells) -> list[list[str]]:
    """The cells of the table of answers: ratio, then tokens and right of each model, and the chain."""
    html = shown(cells)["ask"]
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [row for row in (re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows) if row]


def solutions(notebook) -> list[tuple[str, str]]:
    """Code and stated output of each exercise's solution."""
    found = []
    for cell in notebook.cells:
        if cell.id.startswith("exercise-"):
            [block], [output] = (
                re.findall(rf"```{kind}\n(.*?)```", cell.source, re.DOTALL) for kind in ("python", "text")
            )
            assert "<details>" in cell.source.partition("```")[0]
            found.append((block, output))
    return found


def test_it_was_executed_whole_and_is_small(root, notebook, code):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert (
        "widgets" not in notebook.metadata and "/root" not in json.dumps(outputs) and "/tmp" not in json.dumps(outputs)
    )
    assert (root / "notebooks" / f"{NAME}.ipynb").stat().st_size < 250_000


def test_cells_are_named_and_short_and_each_is_a_slide(notebook, code):
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z][a-z0-9-]+", name) for name in ids)
    assert {cell.metadata["slideshow"]["slide_type"] for cell in notebook.cells} <= SLIDE_TYPES
    for cell in code:
        lines = [
            line for line in cell.source.splitlines() if line.strip() and not line.startswith(("import ", "from "))
        ]
        assert len(lines) <= 15, cell.id
    kinds = "".join("c" if cell.cell_type == "code" else "m" for cell in notebook.cells)
    assert "cccc" not in kinds  # a reader gets a word of prose after three cells at the latest


def test_every_equation_has_its_formula_a_sentence_of_the_paper_and_an_assert(notebook, code, prose):
    asserted = {int(n) for cell in code for line in re.findall(r"assert .*", cell.source) for n in re.findall(r"\d", (
        re.search(r"# equations? ([\d and]+)", line) or [""])[0])}  # fmt: skip
    assert asserted == {1, 2, 3, 4, 5}
    for section, formulas in (("s2", 1), ("s3", 1), ("s4", 1), ("s6", 1)):
        assert prose[section].count("$$") == 2 * formulas and "> **Paper** (section" in prose[section]
    for cell in code:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("tokenskip_lib"):
                assert node.module.split(".")[1] not in ("experiments", "analyses", "commands", "api")


def test_prose_is_plain_and_figures_have_alt_texts(notebook, code, prose):
    for name, text in prose.items():
        said = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$", "", text)
        assert not NOT_PLAIN.search(said), name
        assert len(said.split()) <= 170, name
    assert all(alt for text in prose.values() for alt in re.findall(r"!\[(.*?)\]", text))
    pictures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 2 and all(o["metadata"]["image/png"]["alt"] for o in pictures)


def test_the_numbers_of_the_prose_are_those_of_the_outputs(code, prose):
    said, seen = " ".join(prose.values()), shown(code)
    rows = answer_rows(code)
    assert [float(row[0]) for row in rows] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    untrained, trained = ([row[column] for row in rows] for column in (1, 3))
    assert set(untrained) == {"31"} and "the chain has 31 tokens" in seen["answer"]
    assert all(row[2] == row[4] == "True" for row in rows) and "All twelve answers are right" in said
    assert f"writes {', '.join(trained[:-1])} and {trained[-1]} tokens" in said
    assert f"writes {trained[0]} tokens when asked for 1.0 and {trained[-1]} when asked for 0.5" in said
    furthest = max(abs(int(tokens) - 31 * float(row[0])) for tokens, row in zip(trained, rows, strict=True))
    assert f"at most {furthest:.0f} tokens lie between them" in said
    pruned = re.findall(r"^(\d\.\d) +(\d+) tokens", seen["six"], re.MULTILINE)
    assert f"From 1.0 to 0.5 the chain shrinks from {pruned[0][1]} to {pruned[-1][1]} tokens" in said
    importance = re.search(r"'5'\"?\s+(0\.\d+)\s+(0\.\d+)", seen["surprisal"])
    assert f"p = {float(importance[2]):.3f}" in said and f"= {float(importance[1]):.5f}" in said
    first = re.search(r"'s'\"?\s+([\d.]+)", seen["loss"])
    assert f"about {float(first[1]):.0f} nats" in said
    before, after = (
        re.findall(r"\d+\.\d+", re.search(rf"^{name}(.*)$", seen["steps"], re.MULTILINE)[1])
        for name in ("before", "after step 2")
    )
    assert f"from {before[-1]} to {after[-1]} at ratio 0.5" in said and f"from {before[0]} to {after[0]}" in said
    assert "gradient of A 0.0000" in seen["steps"] and "in the prompt 0.0000" in seen["gradient"]


def test_there_are_three_exercises_with_folded_solutions(notebook):
    assert len(solutions(notebook)) == 3
    for block, output in solutions(notebook):
        assert ast.parse(block) and output.strip()


@pytest.mark.slow
def test_it_runs_in_two_minutes_of_two_cores_and_the_solutions_print_what_they_say(root, notebook, code, tmp_path):
    import papermill
    from nbformat.v4 import new_code_cell

    extended = nbformat.from_dict(notebook)
    timed = "import time\nprint(time.process_time())"
    extended.cells += [new_code_cell(source) for source in (timed, *(block for block, _ in solutions(notebook)))]
    source = tmp_path / "extended.ipynb"
    nbformat.write(extended, source)
    done = papermill.execute_notebook(source, tmp_path / "done.ipynb", cwd=root / "notebooks", progress_bar=False)
    executed = [cell for cell in done.cells if cell.cell_type == "code"]
    seconds, *printed = (
        "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")
        for cell in executed[len(code) :]
    )
    assert float(seconds) < 2 * 120  # of two cores
    assert [text.strip() for text in printed] == [output.strip() for _, output in solutions(notebook)]
    assert answer_rows(executed) == answer_rows(code)
