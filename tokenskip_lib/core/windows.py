"""Windows of inputs become records, written as they come; windows that are done are skipped."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from tokenskip_lib.core.processes import processes, rank
from tokenskip_lib.core.records import ChainText, Record, ScoredChain
from tokenskip_lib.core.store import RecordLog

T = TypeVar("T")
WINDOW = 256  # chains scored together, sorted by length; what a stream holds in memory


def windows(chains: Iterable[T]) -> Iterator[list[T]]:
    """The chains in runs of WINDOW, in order; no more than one run is held."""
    chains = iter(chains)
    while window := list(islice(chains, WINDOW)):
        yield window


def write_windows(
    chains: Iterable[ChainText | ScoredChain],
    log: RecordLog,
    make: Callable[[Sequence], Iterable[Record]],
    keys: Callable[[ChainText | ScoredChain], list[tuple]],
    *,
    total: int | None,
    label: str,
) -> int:
    """Make records of each window of chains that is not wholly done, and write them down before the next.

    Launched processes take turns with the windows.

    Args:
        make: one window -> its records, whose keys `keys` gives for each chain.
        total: chains there are, if known, for the progress bar.

    Returns:
        How many chains there were.
    """
    with tqdm(total=total, unit="chain", desc=label) as bar:
        for number, window in enumerate(windows(chains)):
            mine = number % processes() == rank()
            if mine and not all(key in log for chain in window for key in keys(chain)):
                log.append(make(window))
            bar.update(len(window))
    return bar.n
