"""Slides of notebook 00, in a folder that needs no network: `make slides`.

reveal.js comes from the package sphinx-revealjs, which carries it. Formulas become MathML, which browsers draw.
"""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import latex2mathml.converter
import nbformat
from nbconvert import SlidesExporter

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PARTS = ("dist/reveal.js", "dist/reveal.css", "dist/theme/white.css", "plugin/notes/notes.js")
FONTS = "dist/theme/fonts/source-sans-pro"
FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|(?<![\\\w`])\$(?P<inline>[^$\n`]+?)\$(?!\d)", re.DOTALL)

IMAGE = re.compile(r"\]\(\.\./docs/([\w.-]+)\)")
OTHER = re.compile(r"\]\((\w+\.ipynb)\)")  # a link to another notebook
BACK = "../../notebooks/"  # from build/slides/


def build(folder: Path, *, name: str = "00_from_scratch") -> Path:
    """Write a notebook's slides and what they load.

    Args:
        folder: receives NAME.slides.html and reveal.js/.
        name: the notebook.

    Returns:
        The page to open.
    """
    _copy_reveal(folder / "reveal.js")
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for image in IMAGE.findall(cell.source):
                shutil.copyfile(ROOT / "docs" / image, folder / image)
            cell.source = FORMULA.sub(_mathml, IMAGE.sub(r"](\1)", OTHER.sub(f"]({BACK}\\1)", cell.source)))
    exporter = SlidesExporter(template_name="template", extra_template_basedirs=[str(HERE)])
    exporter.reveal_url_prefix, exporter.reveal_theme = "reveal.js", "white"
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
    page = folder / f"{name}.slides.html"
    page.write_text(html, encoding="utf-8")
    return page


def _copy_reveal(folder: Path) -> None:
    """The parts of reveal.js that a page loads, with the theme's font and its licence."""
    carried = Path(find_spec("sphinx_revealjs").submodule_search_locations[0]) / "_static" / "revealjs"
    fonts = [path.relative_to(carried) for path in (carried / FONTS).iterdir() if path.suffix in ("", ".css", ".woff")]
    for part in [*map(Path, PARTS), *fonts]:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(carried / part, folder / part)


def _mathml(match: re.Match[str]) -> str:
    """A formula of a Markdown text as MathML, on one line."""
    formula, display = match["block"] or match["inline"], "block" if match["block"] else "inline"
    return latex2mathml.converter.convert(" ".join(formula.split()), display=display).replace("\n", "")


if __name__ == "__main__":
    print(build(ROOT / "build" / "slides"))
