"""Processes that are launched together (`accelerate launch`, `torchrun`) for training: which of them this is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenskip_lib.core.locks import only_writer
from tokenskip_lib.core.store import file_errors

LOCK = "writer.lock"  # in a folder that is being written


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """How many processes were launched."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def only_writers(folder: Path) -> Iterator[None]:
    """Be the only processes that write into a folder: the launched ones together, and those that they started.

    Raises:
        InputError: another process writes there, or the folder cannot be written.
    """
    if rank() != 0:  # the first process has the lock for all
        yield
        return
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, folder / LOCK):
        yield
