"""The book: Sphinx over the pages, the notebooks as they are committed, and the docstrings. `make book` builds it.

The source folder is the repository's root, so that links between notebooks, pages and tables are those of a checkout.
"""

import json
import os
import sys
from importlib.metadata import version as installed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project, author = "TokenSkip notebooks", "The TokenSkip notebooks' authors"
version = release = installed("tokenskip")
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]

myst_enable_extensions = ["dollarmath", "colon_fence", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # what is committed is shown
nb_ipywidgets_js = {}  # the explorer needs a kernel; its static picture is shown
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # a widget has a static picture beside it

autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring, napoleon_numpy_docstring = True, False

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_extra_path = ["_redirect"]  # index.html of the whole site
html_js_files = ["sort.js"]
html_css_files = ["book.css"]
html_theme_options = {
    "show_navbar_depth": 1,
    "home_page_in_toc": True,
    "use_download_button": True,
    "navbar_persistent": [],
}
if repository := os.environ.get("GITHUB_REPOSITORY"):  # GitHub's own builds know where the repository is
    html_theme_options |= {
        "repository_url": f"https://github.com/{repository}",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org"},
    }


def describe_figures(app, docname, source):
    """Give each figure of a notebook its alternative text, which myst-nb reads from the metadata of the cell alone."""
    if not docname.startswith("notebooks/"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    source[0] = json.dumps(notebook)


def setup(app):
    app.connect("source-read", describe_figures)
