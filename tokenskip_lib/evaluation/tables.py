"""Tables whose columns are the fields of a dataclass, the only definition of them; and tables as CSV files."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

_FORMULA = ("=", "+", "-", "@")  # begin a formula in a spreadsheet


def column_names(row_type: type) -> list[str]:
    """The columns of a table of these rows, in order: the fields of the dataclass `row_type`."""
    return [field.name for field in fields(row_type)]


def row_table(rows: Iterable[Any], row_type: type) -> pd.DataFrame:
    """Rows as a DataFrame; without rows, an empty one with the same columns.

    Args:
        rows: instances of the dataclass `row_type`.
    """
    return pd.DataFrame([asdict(row) for row in rows], columns=column_names(row_type))


def table_csv(table: pd.DataFrame) -> str:
    """A table as CSV. A text in which a spreadsheet would see a formula gets an apostrophe before it.

    Names and texts in a table come from files and models, and a formula can run a command. Numbers stay as they are.

    Example:
        >>> print(table_csv(pd.DataFrame({"method": ["mine", "=1+1"], "difference": [0.5, -0.5]})), end="")
        method,difference
        mine,0.5
        '=1+1,-0.5
    """
    harmless = table.copy()
    for name in table.select_dtypes(["object", "str"]):
        values = [_without_formula(value) for value in table[name]]
        harmless[name] = pd.Series(values, table.index, dtype=object)  # a whole number beside a blank stays whole
    return harmless.to_csv(index=False)


def _without_formula(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(_FORMULA) else value
