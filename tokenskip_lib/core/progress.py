"""Progress bars that move while a single step takes long."""

import os
import sys
import threading
from typing import Any

from tqdm import tqdm

SECONDS = 2.0  # between two drawings of a bar of which nothing was finished in the meantime
IN_LAB = "JPY_SESSION_NAME"  # a Jupyter server sets this variable for the kernels of its notebooks
_open: list["Bar"] = []  # the innermost is the last


class Bar(tqdm):
    """A bar of tqdm that is drawn every two seconds, so that its elapsed time moves, and what `tell` says of it.

    It goes to stderr, as tqdm's do, but in JupyterLab to stdout: Lab shows stderr on red, as if it were an error.
    """

    def __init__(self, *args: Any, **options: Any):
        self._ended = threading.Event()
        if IN_LAB in os.environ and "ipykernel" in sys.modules:  # not so a command that a notebook's cell starts
            options.setdefault("file", sys.stdout)
        super().__init__(*args, **options)
        if not self.disable:
            _open.append(self)
            threading.Thread(target=self._draw, name="progress", daemon=True).start()

    def _draw(self) -> None:
        while not self._ended.wait(SECONDS):
            self.refresh()

    def update(self, n: float | None = 1) -> bool | None:
        self.set_postfix_str("", refresh=False)  # what was told is of a step that has ended
        return super().update(n)

    def close(self) -> None:
        self._ended.set()
        _open[:] = [bar for bar in _open if bar is not self]  # two bars in one place are equal to tqdm
        super().close()


def tell(done: int, total: int, what: str) -> None:
    """Say on the bar that is open how far its present step is, for example 120/400 rows; without a bar, nothing.

    Example:
        >>> with Bar(total=2, leave=False) as bar:
        ...     tell(120, 400, "rows")
        ...     print(bar.postfix)
        120/400 rows
    """
    if _open:
        _open[-1].set_postfix_str(f"{done}/{total} {what}", refresh=False)


def advance(done: int) -> None:
    """Count things as done on the bar that is open; without a bar, nothing."""
    if _open:
        _open[-1].update(done)
