"""Tables for readers in a notebook: as many digits as they need, and wide ones can be sorted."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import pandas as pd
from pandas.api.types import is_float_dtype
from pandas.io.formats.style import Styler

from tokenskip_lib.core.live import Live

_BARE = {"topStart": None, "topEnd": None, "bottomStart": None, "bottomEnd": None}  # no search box, no count of rows
_LEFT = "width: auto; margin: 0"  # where other tables are; by itself it is in the middle
WIDE = 6  # columns: a table with more of them can be sorted


def readable(table: pd.DataFrame, *, digits: int = 3, formats: Mapping[str, str] | None = None) -> Live | Styler:
    """A table as a notebook shows it, without its index; the text in it is never read as HTML.

    A column has as many decimals as its values need, and blanks where it has no value. While the kernel runs, a table
    of more than six columns can be sorted by a click beside a column's name (package `itables`, extra `notebooks`).

    Args:
        table: columns with plain names.
        digits: the most decimals of a number.
        formats: column -> format of its numbers, where decimals alone do not say what they are.

    Example:
        >>> table = pd.DataFrame({"n": [150.0, 51.0], "accuracy": [0.8733, 0.5]})
        >>> decimals(table, digits=3)
        {'n': 0, 'accuracy': 3}
        >>> "87.3%" in readable(table, formats={"accuracy": "{:.1%}"}).to_html()
        True
    """
    places = decimals(table, digits=digits)
    chosen: dict[Any, Any] = {name: f"{{:.{number}f}}" for name, number in places.items()} | dict(formats or {})
    picture = table.style.hide().format(chosen, na_rep="", escape="html").format_index(escape="html", axis="columns")
    if len(table.columns) <= WIDE or find_spec("itables") is None:
        return picture
    from itables.widget import ITable

    # The picture's text is escaped already. DataTables sorts a column by its numbers, also with a sign or a per cent.
    widget = ITable(picture, allow_html=True, showIndex=False, paging=False, layout=_BARE, style=_LEFT)
    return Live(widget, picture.to_html(), table.round(places).to_string(index=False))


def decimals(table: pd.DataFrame, *, digits: int) -> dict[str, int]:
    """Column of decimal numbers -> the fewest decimals that say as much as `digits` decimals would."""
    places = {}
    for name in table.columns[[is_float_dtype(kind) for kind in table.dtypes]]:
        exact = table[name].round(digits)
        places[name] = next(number for number in range(digits + 1) if exact.round(number).equals(exact))
    return places
