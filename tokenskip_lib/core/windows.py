"""Windows of inputs become records, written as they come; windows that are done are skipped."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from tokenskip_lib.core.processes import processes, rank
from tokenskip_lib.core.progress import Bar
from tokenskip_lib.core.records import Record
from tokenskip_lib.core.store import R, RecordSink

WINDOW = 256  # chains scored together, sorted by length; what a stream holds in memory


C = TypeVar("C", bound=Record)  # a chain's text, or a scored chain


def windows(chains: Iterable[C]) -> Iterator[list[C]]:
    """Groups of WINDOW chains, in order. Only one group is in memory at a time."""
    remaining = iter(chains)
    while window := list(islice(remaining, WINDOW)):
        yield window


def write_windows(
    chains: Iterable[C],
    sink: RecordSink[R],
    make: Callable[[Sequence[C]], Iterable[R]],
    keys: Callable[[C], Sequence[tuple]],
    *,
    total: int | None,
    label: str,
) -> int:
    """Make the records of each window of chains that is not done, and write them before the next window.

    Launched processes take turns with the windows.

    Args:
        sink: where the records go. A window is done if the sink has a record for each of its keys.
        make: one window -> its records.
        keys: one chain -> the keys of its records.
        total: how many chains there are, for the progress bar; None if that is not known.
        label: of the progress bar.

    Returns:
        How many chains there were.
    """
    count = 0
    with Bar(total=total, unit="chain", desc=label) as bar:
        for number, window in enumerate(windows(chains)):
            mine = number % processes() == rank()
            if mine and not all(key in sink for chain in window for key in keys(chain)):
                sink.append(make(window))
            bar.update(len(window))
            count += len(window)
    return count
