"""JSONL files of records: append-only logs that survive a kill, and reading and writing JSON."""

import codecs
import errno
import json
import math
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, NoReturn, Protocol, TypeVar

from pydantic import ValidationError

from tokenskip_lib.core.locks import lock_open_file
from tokenskip_lib.core.records import InputError, Record, first_error

PIPE = "-"  # standard input or output, where a file's path could stand
PARTIAL = ".partial"  # ends the name of a file that is being written

R = TypeVar("R", bound=Record)
Written = TypeVar("Written", contravariant=True)


class RecordSink(Protocol[Written]):
    """Where records are written: a RecordLog, a pipe, or a file of rows."""

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

    Raises:
        InputError: a line that is no record of this type; the message names file and line.
    """

    def __init__(self, path: Path | str, record_type: type[R]):
        self.path = Path(path)
        self.record_type = record_type
        self._records: dict[tuple, R | None] = {}
        with file_errors(self.path, "read"):
            is_there = self.path.exists()
        if is_there:
            for number, row in read_json_rows(self.path, torn_end=True):
                self._remember(parse_record(row, record_type, f"{self.path}:{number}"))

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: tuple) -> bool:
        return key in self._records

    def _remember(self, record: R) -> None:
        self._records[record.key] = None

    def append(self, records: Iterable[R]) -> None:
        """Write the records whose key is not there yet, as one batch."""
        new = {record.key: record for record in records if record.key not in self}
        if not new:
            return
        with file_errors(self.path):
            self._write("".join(record.model_dump_json() + "\n" for record in new.values()).encode())
        for record in new.values():
            self._remember(record)

    def _write(self, lines: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            lock_open_file(file, wait=True)  # a line that another process is writing is no torn one
            mend_end(file)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())


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
    with open_input(path) if isinstance(path, str | Path) else nullcontext(path) as file:
        begun = False
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            if torn_end and not line.endswith(b"\n") and not _is_json(line):
                return
            whole = array and not begun and line.lstrip().startswith(b"[")
            value, begun = parse_json(line + file.read() if whole else line, f"{path}:{number}"), True
            for place, row in enumerate(value, 1) if whole else [(number, value)]:
                if not isinstance(row, dict):
                    raise InputError(f"{path}:{place}: expected an object, found {type(row).__name__}")
                yield place, row


def open_input(path: Path | str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        InputError: there is no such file, it is none (a folder, a pipe), or it may not be read.
    """
    file = Path(path)
    try:
        kind = file.stat().st_mode
        if stat.S_ISREG(kind):
            return file.open("rb")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL is in no name
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if stat.S_ISDIR(kind):
        raise InputError(f"{path}: a folder; give a file")
    raise InputError(f"{path}: a pipe or a device; write it to a file, or pipe it to a command that reads `-`")


def read_json(path: Path, *, advice: str) -> dict[str, Any]:
    """The object that is the whole of a JSON file.

    Args:
        advice: what to do if the file is damaged; it ends the error.

    Raises:
        InputError: the file cannot be read, or does not hold a JSON object.
    """
    with open_input(path) as file:
        value = parse_json(file.read(), str(path), advice=advice)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, found {type(value).__name__}; {advice}")
    return value


def parse_json(text: bytes, where: str, *, advice: str = "mend or remove the line") -> Any:
    """The value of a JSON text. What JSON does not allow (NaN, half of a surrogate pair) is refused as well.

    Raises:
        InputError: it is not such a text; `where` begins the message.
    """
    try:
        value = _DECODER.decode(text.decode())
        if b"\\ud" in text or b"\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8; save the file in that encoding") from None
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise InputError(f"{where}: half of a surrogate pair ({half!r}); mend the text") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply; {advice}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}); {advice}") from None
    except ValueError as error:  # a number: _finite, _no_number, or an integer of too many digits
        raise InputError(f"{where}: {str(error).partition(';')[0]}; {advice}") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:20]} is too large")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number)


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
    except (ValueError, RecursionError):
        return False
    return True


def write_json(path: Path, value: object) -> None:
    """Write a whole JSON file, as `write_whole` does."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a whole file in place of the one there may be: a kill, or a full disk, leaves the one or the other.

    Raises:
        InputError: the file cannot be written.
    """
    # A name that nobody else has, and as short as any file's may be.
    partial = path.with_name(f"{path.name[:40]}.{uuid.uuid4().hex}{PARTIAL}")
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)  # still there if it could not be written


@contextmanager
def file_errors(path: Path | str | BinaryIO, done: Literal["read", "written"] = "written") -> Iterator[None]:
    """Raise InputError where the file system refuses: a full disk, a read-only folder, a name that is too long.

    A pipe that nobody reads any more stays what it is: the end of the command.

    Args:
        done: what cannot be done to the file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (None, errno.EPIPE):  # no number: an error of another package, for example of a connection
            raise
        raise InputError(f"{path}: cannot be {done} ({error.strerror})") from None


def parse_record(row: dict, record_type: type[R], where: str) -> R:
    """Validate one object as a record; `where` (file:line) goes into the error."""
    try:
        return record_type.model_validate(row)
    except ValidationError as error:
        raise InputError(f"{where}: {first_error(error)}") from None
