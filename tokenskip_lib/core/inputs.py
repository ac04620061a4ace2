"""What people give to the Python API: texts, dicts, rows of a DataFrame or records; and settings by keyword."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from pydantic import ValidationError

from tokenskip_lib.core.profiles import nearest
from tokenskip_lib.core.records import InputError, Record, first_error
from tokenskip_lib.core.settings import Settings

if TYPE_CHECKING:
    import pandas as pd

Given: TypeAlias = "str | Mapping[str, Any] | Record | Iterable[Any] | pd.DataFrame"
S = TypeVar("S", bound=Settings)
_FIELDS = {"chain", "output", "question", "problem"}  # one of them is in every row that is a dict


def rows_of(given: Given, *, name: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every item as a dict, with the place that an error names.

    An item without an id gets its position. Missing values (None, NaN) are left out.

    Args:
        given: one item or several: a text, a dict, a DataFrame or its rows, a record.
        name: what the items are called in errors, for example "chains".
        text: the field that a bare text fills.

    Yields:
        ("chains[0]", {"id": "0", "chain": "..."}) and so on.

    Raises:
        InputError: an item of another type.

    Example:
        >>> list(rows_of(["3 + 4 = 7"], name="chains", text="chain"))
        [('chains[0]', {'id': '0', 'chain': '3 + 4 = 7'})]
        >>> list(rows_of({"id": 7, "chain": "so 7", "answer": None}, name="chains", text="chain"))
        [('chains[0]', {'id': 7, 'chain': 'so 7'})]
    """
    for index, item in enumerate(items_of(given, name=name)):
        where = f"{name}[{index}]"
        row = {text: item} if isinstance(item, str) else _as_dict(item, where, text)
        yield where, {"id": str(index), **{key: value for key, value in row.items() if not _is_missing(value)}}


def items_of(given: Given, *, name: str) -> list[Any]:
    """The items of what was given; one item alone is a list of one.

    Raises:
        InputError: there is no item, or it is of another type.
    """
    if isinstance(given, str | Mapping | Record) or _is_row(given):
        return [given]
    if hasattr(given, "columns"):  # a DataFrame, asked without importing pandas
        given = cast("pd.DataFrame", given).to_dict("records")
    if not isinstance(given, Iterable):
        raise InputError(f"{name}: a list of texts, dicts or records, not {type(given).__name__}")
    items = list(given)
    if not items:
        raise InputError(f"{name}: there are none; give at least one")
    return items


def text_of(value: object, where: str) -> str:
    """A field of a row as text. Ids and answers may be numbers.

    Args:
        where: the row and the field; it begins the error.

    Raises:
        InputError: it is neither text nor number, or no text that UTF-8 can hold.

    Example:
        >>> text_of("7", "rows[0]: id"), text_of(7, "rows[0]: id"), text_of(7.0, "rows[0]: id")
        ('7', '7', '7')
    """
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise InputError(f"{where}: a text or a number, not {type(value).__name__}")
    if isinstance(value, Real) and not isinstance(value, int):
        number = float(value)
        if not math.isfinite(number):
            raise InputError(f"{where}: a text or a number, not {value}")
        if number.is_integer() and abs(number) < 2**53:
            value = int(number)  # pandas keeps whole numbers as floats where one is missing
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:  # no file and no tokenizer takes it
        raise InputError(f"{where}: half of a surrogate pair ({text[error.start]!r}); mend the text") from None
    return text


def changed(settings: S, changes: Mapping[str, Any], where: str) -> S:
    """Settings with some fields changed, checked as in a profile.

    Args:
        where: what asked for the changes; it begins the error.

    Raises:
        InputError: an unknown field (the nearest valid one is named), or a bad value.
    """
    fields = list(type(settings).model_fields)
    for name in changes:
        if name not in fields:
            raise InputError(f"{where}: unknown setting '{name}'{nearest(name, fields)}")
    try:
        return type(settings).model_validate({**settings.model_dump(), **changes})
    except ValidationError as error:
        raise InputError(f"{where}: {first_error(error)}") from None


def _as_dict(item: Any, where: str, text: str) -> dict[str, Any]:
    if isinstance(item, Record):
        return item.model_dump()
    if isinstance(item, Mapping):
        return dict(item)
    for method in ("to_dict", "_asdict"):  # a row of a DataFrame: by iterrows, by itertuples
        if hasattr(item, method):
            return getattr(item, method)()
    raise InputError(f"{where}: a text, a dict with '{text}', or a record, not {type(item).__name__}")


def _is_missing(value: object) -> bool:
    # pandas writes NaN or NA where a cell is empty.
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value)


def given_ratios(given: float | Iterable[float], where: str) -> list[float]:
    """The ratios that were given, one or several, in their order and each once.

    Raises:
        InputError: there is none, or one is not a number above 0 and at most 1; `where` begins the message.

    Example:
        >>> given_ratios([0.9, 0.5, 0.9], "prune"), given_ratios(0.5, "prune")
        ([0.9, 0.5], [0.5])
    """
    found: list[float] = []
    several: Iterable[Any] = [given] if isinstance(given, Real) else cast("Iterable[Any]", given)
    for ratio in several:
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 < float(ratio) <= 1:
            raise InputError(f"{where}: ratio {ratio!r}; it is the fraction of tokens kept, above 0 and at most 1")
        # A number of 32 bits is 0.7 to seven digits only.
        found.append(float(ratio) if isinstance(ratio, int | float) else round(float(ratio), 6))
    if not found:
        raise InputError(f"{where}: no ratio; give at least one, for example 0.5")
    return list(dict.fromkeys(found))


def _is_row(given: object) -> bool:
    """Whether this is one row of a DataFrame, by iloc or by itertuples; a column of texts is none."""
    fields: Any = getattr(given, "_fields", None) or getattr(given, "index", ())
    return not hasattr(given, "columns") and not callable(fields) and bool(_FIELDS & set(map(str, fields)))
