"""Work that launched processes share (`accelerate launch`, `torchrun`): which is this, and who writes what.

Each process writes a part file of its own; the first puts the parts together when all have finished,
or when a run goes on after a kill. One process alone writes the file itself.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenskip_lib.core.locks import only_writer
from tokenskip_lib.core.store import R, RecordStore, file_errors

LOCK = "writer.lock"  # in a folder that is being written


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """How many processes were launched."""
    return int(os.environ.get("WORLD_SIZE", 1))


def wait_for_all() -> None:
    """Return when every launched process has come here."""
    if processes() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()


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


@contextmanager
def shared_store(path: Path, record_type: type[R], keys: Sequence[tuple]) -> Iterator[RecordStore[R]]:
    """Where this process writes its share of a file of records; the file holds them all afterwards.

    Args:
        keys: of all records there will be, in the order they stand in the file.
    """
    _collect(path, record_type, keys)
    store = RecordStore(path, record_type)
    if processes() > 1:
        store = RecordStore(part_path(path, rank()), record_type, beside=store)
    yield store
    _collect(path, record_type, keys)


def part_path(path: Path, number: int | str) -> Path:
    """Where one of several launched processes writes its share of a file; "*" stands for any of them."""
    return path.with_suffix(f".part{number}.jsonl")


def _collect(path: Path, record_type: type[R], keys: Sequence[tuple]) -> None:
    """Move what parts hold into the file; all processes wait until it is done."""
    wait_for_all()
    parts = sorted(path.parent.glob(part_path(path, "*").name)) if rank() == 0 else []
    found = {record.key: record for part in parts for record in RecordStore(part, record_type)}
    if found:
        RecordStore(path, record_type).append(found[key] for key in keys if key in found)
    for part in parts:
        part.unlink()
    wait_for_all()
