"""The links of a notebook, when it moves to another folder."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[/#])([^)\s#]+)")  # a relative path in [text](path#part)


def move_links(notebook: Any, old: Path, new: Path, *, together: Collection[str]) -> None:
    """Change the relative links in a notebook's text, so that they lead where they led before.

    Args:
        notebook: a notebook of nbformat.
        old: the folder that it was in.
        new: the folder that it will be in.
        together: file names that are in both folders. Links to them stay as they are.
    """

    def moved(link: re.Match) -> str:
        path = link.group()
        return path if path in together else Path(os.path.relpath(old / path, new)).as_posix()

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _LINK.sub(moved, cell.source)
