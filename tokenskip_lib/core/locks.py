"""One writer at a time: the lock of a run's folder, or of an output file.

A lock is a file that its process locks by `flock`. The kernel lifts such a lock when the process ends, by a SIGKILL
too, so no lock is ever stale. Records stay JSONL and are not kept in SQLite: its file would need the same locks, and
neither `tail` nor another program could read a run while it grows. The package `filelock` would leave its file beside
every output, and says nothing of who holds it.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from tokenskip_lib.core.provenance import now
from tokenskip_lib.core.records import InputError

PATIENCE = 2.0  # seconds; what others do in passing, for example a note in profile.json, takes less
_BETWEEN_TRIES = 0.01  # seconds
_LONGEST = 500  # bytes of a lock file
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def only_writer(place: Path, lock: Path) -> Iterator[None]:
    """Be the only process that writes to a place, for as long as this lasts.

    The processes that the writer started may write too: a notebook's kernel works for the command that runs it.

    Args:
        place: what is written, as an error names it.
        lock: the lock file, in a folder that is there. It says who holds it, and it is removed at the end.

    Raises:
        InputError: another process writes there, the lock file is a file of someone else, or it cannot be written.
    """
    try:
        file = _acquire(place, lock)
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror})") from None
    try:
        yield
    finally:
        if file is not None:
            _release(file, lock)


def lock_open_file(file: IO[bytes], *, wait: bool) -> bool:
    """Lock an open file until it is closed. Where the file system has no locks, say so once and go on.

    Args:
        wait: for the process that has locked it.

    Returns:
        Whether it is locked; False only without `wait`.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if not wait and error.errno in _TAKEN:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        _say_no_locks(Path(file.name).parent)
    return True


def _acquire(place: Path, lock: Path) -> IO[bytes] | None:
    """The locked file; None if a process that works for the same writer has it."""
    last_try = time.monotonic() + PATIENCE
    while True:
        _refuse_irregular(lock)
        with ExitStack() as stack:
            file = stack.enter_context(lock.open("ab+"))
            is_locked = lock_open_file(file, wait=False)
            if is_locked and _is_at(file, lock):
                _holder(file, lock)  # a file of someone else is not written over
                _sign(file, lock)
                stack.pop_all()  # it stays open, and so locked
                return file
            holder = None if is_locked else _holder(file, lock)
        if holder is not None and _works_for(holder):
            return None
        if time.monotonic() > last_try:
            raise InputError(f"{place}: {_said_of(holder)}; wait until it has ended, or end it")
        time.sleep(_BETWEEN_TRIES)


def _release(file: IO[bytes], lock: Path) -> None:
    """Remove the lock file before it is unlocked: whoever locks it after that sees that it is gone, and tries again."""
    with file, suppress(OSError):
        if _is_at(file, lock):
            lock.unlink()


def _refuse_irregular(lock: Path) -> None:
    """Raise InputError for a link, a folder or a pipe."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(lock.lstat().st_mode):
            raise _not_a_lock(lock)


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: IO[bytes], lock: Path) -> None:
    """Write who holds the lock."""
    said = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
    try:
        file.truncate(0)
        file.write(said.encode())
        file.flush()
    except OSError:
        lock.unlink()
        raise


def _holder(file: IO[bytes], lock: Path) -> dict[str, Any] | None:
    """Who holds the lock, or held it last; None if nobody has signed it yet.

    Raises:
        InputError: the file is no lock.
    """
    file.seek(0)
    content = file.read(_LONGEST)
    try:
        holder = json.loads(content) if content else None
    except ValueError:
        raise _not_a_lock(lock) from None
    if holder is not None and not (isinstance(holder, dict) and set(holder) == {"pid", "host", "since"}):
        raise _not_a_lock(lock)
    return holder


def _said_of(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process is writing here"
    return f"process {holder['pid']} on {holder['host']} has been writing here since {holder['since']}"


def _works_for(holder: dict[str, Any]) -> bool:
    """Whether the holder is this process, or one that started it."""
    if holder["host"] != socket.gethostname():
        return False
    import psutil  # type: ignore[import-untyped]

    return holder["pid"] in [os.getpid(), *(process.pid for process in psutil.Process().parents())]


def _not_a_lock(lock: Path) -> InputError:
    return InputError(f"{lock}: there already, and not a lock; move it, or write to another place")


@cache
def _say_no_locks(folder: Path) -> None:
    print(f"{folder}: no locks in this file system; let one process at a time write there", file=sys.stderr)
