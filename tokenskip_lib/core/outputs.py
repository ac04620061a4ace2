"""Output files of commands, each with a note beside it (OUTPUT.settings.json) that says how it was made.

A command continues an output whose note has the same input and settings. It never overwrites any other file. While it
writes, a lock is beside the output too (OUTPUT.lock).
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tokenskip_lib.core.locks import only_writer
from tokenskip_lib.core.processes import processes
from tokenskip_lib.core.provenance import commit, versions
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.store import PIPE, file_errors, write_json


def note_path(path: Path) -> Path:
    """Where the note of an output is."""
    return path.with_name(path.name + ".settings.json")


def lock_path(path: Path) -> Path:
    """Where the lock of an output is while it is written."""
    return path.with_name(path.name + ".lock")


def open_stream(output: str) -> TextIO | None:
    """Open an output that is no regular file: "-" for standard output, or the path of a pipe or device.

    Returns:
        The open stream; None if the output is a regular file, or will be one.

    Raises:
        InputError: it cannot be written, or several processes were launched for it.
    """
    if processes() > 1:
        raise InputError("one process writes a file of records; for several GPUs see docs/scale-out.md")
    path = Path(output)
    if output == PIPE:
        return sys.stdout
    with file_errors(output):
        if not path.exists() or path.is_file() or path.is_dir():
            return None
        return path.open("w", encoding="utf-8")


@contextmanager
def open_output(source: str, output: str, settings: dict[str, Any]) -> Iterator[Path]:
    """The path of an output to begin or to continue, with its note beside it. Nobody else writes it meanwhile.

    Args:
        source: the file that the output is made of, or "-" for a pipe.
        settings: those that decide what is in the output.

    Raises:
        InputError: there is no such source, the output cannot be written, is the source or a file beside it is, was
            made otherwise (without a note, from another source, or with other settings), or another process writes it.
    """
    path = Path(output)
    with file_errors(source, "read"):
        readable = source == PIPE or Path(source).is_file()
    if not readable:
        raise InputError(f"{source}: {'a folder' if Path(source).is_dir() else 'no such file'}")
    with file_errors(output):
        if path.is_dir():
            raise InputError(f"{output}: a folder; write to another file")
        path = path.resolve()  # a link stays a link
        for place, name in (
            (path, "the input itself"),
            (note_path(path), "a file whose settings would be the input"),
            (lock_path(path), "a file whose lock would be the input"),
        ):
            if source != PIPE and place.exists() and place.samefile(source):
                raise InputError(f"{output}: {name}; write to another file")
        path.parent.mkdir(parents=True, exist_ok=True)
    with only_writer(Path(output), lock_path(path)):
        if path.exists() and path.stat().st_size:
            _check_continues(source, output, note_path(path), settings)
        else:
            _write_note(source, note_path(path), settings)
        yield path


def _check_continues(source: str, output: str, note: Path, settings: dict[str, Any]) -> None:
    """Raise InputError unless an output that is there was made from this source with these settings."""
    if source == PIPE:
        raise InputError(f"{output}: there already, and a pipe cannot be compared with it; write to another file")
    before = _read_note(note)
    if before is None:
        raise InputError(f"{output}: it is not known how this file was made; write to another file")
    differs = next((name for name in settings if before["settings"].get(name) != settings[name]), None)
    if differs is not None and differs not in before["settings"]:
        raise InputError(f"{output}: an earlier version made it, without a note of {differs}; write to another file")
    if differs is not None:
        raise InputError(f"{output}: made with other settings ({differs}); write to another file")
    # A source may have grown, but what was in it must be there still.
    if source_digest(source, before["source_bytes"])[1] != before["source_sha256"]:
        raise InputError(f"{output}: made from something else than {source} holds now; write to another file")


def _write_note(source: str, note: Path, settings: dict[str, Any]) -> None:
    """Write how an output is made beside it, before its first record."""
    size, digest = source_digest(source)
    made = {
        "settings": settings,
        "source": source,
        "source_bytes": size,
        "source_sha256": digest,
        "versions": versions(),
        "commit": commit(),
    }
    if note.exists() and _read_note(note) is None:
        raise InputError(f"{note}: there already, and not the note of an output; write to another file")
    write_json(note, made)


def _read_note(note: Path) -> dict[str, Any] | None:
    try:
        made = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # nested too deeply
        return None
    known = isinstance(made, dict) and {"settings", "source_bytes", "source_sha256"} <= set(made)
    return made if known else None


def source_digest(source: str, size: int | None = None) -> tuple[int | None, str | None]:
    """Length and sha256 of a file's first `size` bytes, by default of all of it; (None, None) for a pipe."""
    if source == PIPE:
        return None, None
    digest, length = hashlib.sha256(), 0
    with Path(source).open("rb") as file:
        while block := file.read(1 << 20 if size is None else min(1 << 20, size - length)):
            digest.update(block)
            length += len(block)
    return length, digest.hexdigest()
