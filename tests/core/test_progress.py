"""Bars that move: time passes on them, and a long step says how far it is."""

import io
import sys
import threading
import time

from tokenskip_lib.core import progress
from tokenskip_lib.core.progress import Bar, advance, tell


def test_a_bar_is_drawn_while_nothing_is_finished(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.02)
    file = io.StringIO()
    with Bar(total=3, file=file, desc="x"):
        tell(2, 5, "rows")
        time.sleep(0.2)
    drawn = file.getvalue().split("\r")
    assert len([line for line in drawn if "0/3" in line and "2/5 rows" in line]) >= 3


def test_what_is_told_and_counted_is_of_the_innermost_open_bar(monkeypatch):
    with Bar(total=9, file=io.StringIO()) as outer:
        with Bar(total=9, file=io.StringIO()) as inner:
            advance(4)
            tell(1, 2, "rows")
            assert (outer.n, inner.n, inner.postfix) == (0, 4, "1/2 rows")
            advance(1)
            assert (inner.n, inner.postfix) == (5, "")
        advance(1)
        assert outer.n == 1
    advance(1)  # no bar is open
    tell(1, 2, "rows")
    assert outer.n == 1


def test_a_bar_is_no_error_where_stderr_is_shown_as_one(monkeypatch, capsys):
    with Bar(total=1, desc="in a terminal"):
        pass
    monkeypatch.setenv(progress.IN_LAB, "notebooks/01.ipynb")
    monkeypatch.setitem(sys.modules, "ipykernel", progress)
    with Bar(total=1, desc="in JupyterLab"):
        pass
    said = capsys.readouterr()
    assert "in a terminal" in said.err and "in JupyterLab" in said.out and "in JupyterLab" not in said.err


def test_a_closed_bar_leaves_no_thread():
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "progress"]

    before = threads()
    with Bar(total=1, file=io.StringIO()):
        [own] = [thread for thread in threads() if thread not in before]
    own.join(timeout=30)
    assert not own.is_alive()
