"""Tables for readers in a notebook: as many digits as they need, and wide ones can be sorted."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pandas as pd
from pandas.api.types import is_float_dtype
from pandas.io.formats.style import Styler

from tokenskip_lib.core.live import Live

_BARE = {"topStart": None, "topEnd": None, "bottomStart": None, "bottomEnd": None}  # no search box, no count of rows
WIDE = 6  # columns: a table with more of them can be sorted


def readable(table: pd.DataFrame, *, digits: int = 3) -> Live | Styler:
    """A table as a notebook shows it, without its index; the text in it is never read as HTML.

    A column has as many decimals as its values need, and blanks where it has no value. While the kernel runs, a table
    of more than six columns can be sorted by a click on a column's name (package `itables`, extra `notebooks`).

    Args:
        table: columns with plain names.
        digits: the most decimals of a number.

    Example:
        >>> table = pd.DataFrame({"n": [150.0, 51.0], "accuracy": [0.8733, 0.5]})
        >>> decimals(table, digits=3)
        {'n': 0, 'accuracy': 3}
    """
    places = decimals(table, digits=digits)
    formats: dict[Any, Any] = {name: f"{{:.{number}f}}" for name, number in places.items()}
    picture = table.style.hide().format(formats, na_rep="", escape="html")
    if len(table.columns) <= WIDE or find_spec("itables") is None:
        return picture
    from itables.widget import ITable

    rounded = table.round(places)
    widget = ITable(rounded, showIndex=False, paging=False, layout=_BARE)
    return Live(widget, picture.to_html(), rounded.to_string(index=False))


def decimals(table: pd.DataFrame, *, digits: int) -> dict[str, int]:
    """Column of decimal numbers -> the fewest decimals that say as much as `digits` decimals would."""
    places = {}
    for name in table.columns[[is_float_dtype(kind) for kind in table.dtypes]]:
        exact = table[name].round(digits)
        places[name] = next(number for number in range(digits + 1) if exact.round(number).equals(exact))
    return places
