"""Errors in a notebook: one line, and advice that a notebook can follow."""

import ast
import re

import pytest

from tokenskip_lib.core.advice import for_notebook
from tokenskip_lib.core.records import InputError


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            "x; `run --from 03` redoes it from there",
            "x; `open_run(PROFILE, OVERRIDES, redo_from=3)` redoes it from there",
        ),
        ("x; --set run_dir=... keeps both", "x; OVERRIDES = {'run_dir': ...} keeps both"),
        ("x: --set server=null", "x: OVERRIDES = {'server': None}"),
        (
            "x; run `python -m tokenskip_lib score --profile demo` first, with the same --set",
            "x; run `stages.score(run)` first, with the same OVERRIDES",
        ),
        (
            "x; `python -m tokenskip_lib run --profile demo` makes one",
            "x; `python -m tokenskip_lib run --profile demo` in a terminal makes one",
        ),
    ],
)
def test_advice_is_in_a_notebooks_words(message, advice):
    assert for_notebook(message) == advice


def test_no_error_of_stages_and_runs_advises_an_option_in_a_notebook(root):
    advised = 0
    for name in ("experiments", "analyses"):
        for path in (root / "tokenskip_lib" / name).glob("*.py"):
            for raised in ast.walk(ast.parse(path.read_text())):
                if isinstance(raised, ast.Call) and getattr(raised.func, "id", "") == "InputError":
                    texts = [node.value for node in ast.walk(raised) if isinstance(node, ast.Constant)]
                    message = "".join(text if isinstance(text, str) else "1" for text in texts)
                    message = message.replace("`run --from `", "`run --from 03`")  # the number is filled in
                    advised += "--set" in message or "--from" in message
                    assert not re.search(r"--(set|from)\b", for_notebook(message)), (path, message)
    assert advised > 5


def test_a_notebook_shows_an_input_error_as_one_line():
    from IPython.core.interactiveshell import InteractiveShell

    shell, shown = InteractiveShell(), []
    shell._showtraceback = lambda kind, error, lines: shown.append(lines)
    shell.push({"InputError": InputError})
    shell.run_cell("def f():\n    raise InputError('a.jsonl: bad; --set run_dir=... keeps both')\nf()")
    assert shown == [["InputError: a.jsonl: bad; OVERRIDES = {'run_dir': ...} keeps both"]]
