"""JSONL files of records: append-only logs that survive a kill, and reading and writing JSON."""

import codecs
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from pydantic import ValidationError

from tokenskip_lib.core.records import InputError, Record, first_error

PIPE = "-"  # standard input or output, where a file's path could stand

R = TypeVar("R", bound=Record)
Written = TypeVar("Written", bound=Record, contravariant=True)


class RecordSink(Protocol[Written]):
    """Where records are written: a RecordLog, or a pipe."""

    def __contains__(self, key: tuple, /) -> bool:
        """Whether a record of this key is there already."""
        ...

    def append(self, records: Iterable[Written], /) -> None:
        """Write records, as one batch."""
        ...


class RecordLog(Generic[R]):
    """An append-only JSONL file of one record type, at most one record a key; keys alone are held.

    A last line that a kill tore, or that another process is writing, is left out when reading, and removed
    by the next `append`. Records are written in whole batches and flushed to disk before `append`
    returns, so what has been reported as done is done.

    Args:
        beside: another log of the same records; what it holds counts as being here.

    Raises:
        InputError: a line that is no record of this type; the message names file and line.
    """

    def __init__(self, path: Path | str, record_type: type[R], *, beside: "RecordLog[R] | None" = None):
        self.path = Path(path)
        self.record_type = record_type
        self.beside = beside
        self._records: dict[tuple, R | None] = {}
        if self.path.exists():
            for number, row in read_json_rows(self.path, torn_end=True):
                self._remember(parse_record(row, record_type, f"{self.path}:{number}"))

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: tuple) -> bool:
        return key in self._records or (self.beside is not None and key in self.beside)

    def _remember(self, record: R) -> None:
        self._records[record.key] = None

    def append(self, records: Iterable[R]) -> None:
        """Write the records whose key is not there yet, as one batch."""
        new = {record.key: record for record in records if record.key not in self}
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            mend_end(file)
            file.write("".join(record.model_dump_json() + "\n" for record in new.values()).encode())
            file.flush()
            os.fsync(file.fileno())
        for record in new.values():
            self._remember(record)


class RecordStore(RecordLog[R]):
    """A RecordLog that holds its records too."""

    def __iter__(self) -> Iterator[R]:
        return (record for record in self._records.values() if record is not None)

    def _remember(self, record: R) -> None:
        self._records[record.key] = record


def read_jsonl(path: Path | str, record_type: type[R]) -> list[R]:
    """Read every record of a JSONL file, in file order; empty lines are ignored.

    Raises:
        InputError: the file is missing, or a line is not JSON or not a record of this type.
    """
    return [parse_record(row, record_type, f"{path}:{number}") for number, row in read_json_rows(path)]


def read_json_rows(
    path: Path | str | BinaryIO, *, torn_end: bool = False, array: bool = False
) -> Iterator[tuple[int, dict]]:
    """Yield (line number from 1, object) for every line of a JSONL file, or open stream, that is not empty.

    Args:
        torn_end: leave out a last line that is neither ended nor JSON, as a kill leaves it.
        array: the file may be one JSON array instead; its items are counted from 1.
    """
    if isinstance(path, str | Path) and not Path(path).is_file():
        raise InputError(f"{path}: {'a folder' if Path(path).is_dir() else 'no such file'}")
    with Path(path).open("rb") if isinstance(path, str | Path) else nullcontext(path) as file:
        begun = False
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            if torn_end and not line.endswith(b"\n") and not _is_json(line):
                return
            whole = array and not begun and line.lstrip().startswith(b"[")
            value, begun = _parse_json(line + file.read() if whole else line, f"{path}:{number}"), True
            for place, row in enumerate(value, 1) if whole else [(number, value)]:
                if not isinstance(row, dict):
                    raise InputError(f"{path}:{place}: expected an object, found {type(row).__name__}")
                yield place, row


def _parse_json(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8; save the file in that encoding") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}); mend or remove the line") from None


def mend_end(file: BinaryIO) -> None:
    """End the last line of a JSONL file: one that is torn is removed. Any other bad line is the user's to see."""
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read() == b"\n":
        return
    file.seek(0)
    lines = file.readlines()
    if _is_json(lines[-1]):
        file.write(b"\n")
    else:
        file.truncate(sum(map(len, lines[:-1])))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def write_json(path: Path, value: object) -> None:
    """Write a whole JSON file in place of the one there may be: a kill leaves the one or the other."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def parse_record(row: dict, record_type: type[R], where: str) -> R:
    """Validate one object as a record; `where` (file:line) goes into the error."""
    try:
        return record_type.model_validate(row)
    except ValidationError as error:
        raise InputError(f"{where}: {first_error(error)}") from None
