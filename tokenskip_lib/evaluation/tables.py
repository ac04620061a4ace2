"""Tables whose columns are the fields of a dataclass: the row type is the only definition of them."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

import pandas as pd


def column_names(row_type: type) -> list[str]:
    """The columns of a table of these rows, in order: the fields of the dataclass `row_type`."""
    return [field.name for field in fields(row_type)]


def row_table(rows: Iterable[Any], row_type: type) -> pd.DataFrame:
    """Rows as a DataFrame; without rows, an empty one with the same columns.

    Args:
        rows: instances of the dataclass `row_type`.
    """
    return pd.DataFrame([asdict(row) for row in rows], columns=column_names(row_type))
