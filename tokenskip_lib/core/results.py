"""Sequences of records that show as a table in a notebook and convert to pandas.

Every text in a table comes from a model or from a user, so it is escaped before it becomes HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from tokenskip_lib.core.records import Record

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10  # rows of a table in a notebook
LONGEST = 300  # characters of a text in a table
_LEFT = 'style="text-align: left"'  # JupyterLab's own tables are of numbers, and right-aligned

R = TypeVar("R", bound=Record)


class Html(str):
    """Text that is HTML already; any other text is escaped when it is shown."""

    __slots__ = ()


class Records(Sequence[R], Generic[R]):
    """A read-only list of records of one type.

    Example:
        >>> from tokenskip_lib.core.records import ChainText
        >>> chains = Records([ChainText(id="a", chain="3 < 4"), ChainText(id="b", chain="so 4")])
        >>> len(chains), chains[0].id, chains[1:]
        (2, 'a', Records of 1: b)
        >>> "3 &lt; 4" in chains._repr_html_()
        True
    """

    def __init__(self, records: Iterable[R]):
        self._records = list(records)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> R | Self:
        return self._like(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __repr__(self) -> str:
        ids = list(dict.fromkeys(record.id for record in self._records))
        more = ", ..." if len(ids) > 3 else ""
        return f"{type(self).__name__} of {len(self)}: {', '.join(ids[:3])}{more}"

    def to_pandas(self) -> pd.DataFrame:
        """One row a record, one column a field."""
        import pandas as pd

        return pd.DataFrame([self._fields(record) for record in self._records])

    def _repr_html_(self) -> str:
        shown = [self._cells(record) for record in self._records[:SHOWN]]
        left = len(self) - len(shown)
        return table_html(shown) + (f"<p>and {left} more</p>" if left else "")

    def _like(self, records: list[R]) -> Self:
        """The same kind of sequence with some of the records."""
        return type(self)(records)

    def _fields(self, record: R) -> dict[str, Any]:
        """What `to_pandas` says of a record."""
        return record.model_dump()

    def _cells(self, record: R) -> dict[str, Any]:
        """What a notebook's table says of a record: column -> value, or Html."""
        return self._fields(record)


def table_html(rows: Sequence[dict[str, Any]]) -> str:
    """An HTML table with the first row's keys as its header. Dollar signs are not read as mathematics.

    Example:
        >>> "&lt;b&gt;</td>" in table_html([{"text": "<b>"}])
        True
    """
    header = "".join(f"<th {_LEFT}>{escape(name)}</th>" for name in rows[0]) if rows else ""
    lines = ["".join(f"<td {_LEFT}>{_cell_html(value)}</td>" for value in row.values()) for row in rows]
    table = "".join(f"<tr>{line}</tr>" for line in [header, *lines])
    return f'<div class="mathjax_ignore tex2jax_ignore"><table>{table}</table></div>'


def _cell_html(value: object) -> str:
    if isinstance(value, Html):
        return value
    text = "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    return escape(text if len(text) <= LONGEST else text[:LONGEST] + " ...").replace("\n", "<br>")
