"""Windows of inputs become records, written as they come; windows that are done are skipped."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, TypeVar

from tokenskip_lib.core.cluster import build_executor
from tokenskip_lib.core.executor import O, Work
from tokenskip_lib.core.progress import Bar
from tokenskip_lib.core.records import printable
from tokenskip_lib.core.settings import ExecutionSettings
from tokenskip_lib.core.store import RecordSink

WINDOW = 256  # chains scored together, sorted by length; what a stream holds in memory


class Named(Protocol):
    """An input: its id says which one is left out."""

    @property
    def id(self) -> str: ...


C = TypeVar("C", bound=Named)  # a chain's text, a scored chain, or a prediction


def windows(chains: Iterable[C], size: int | None = None) -> Iterator[list[C]]:
    """Groups of `size` chains (None: WINDOW), in order. Only one group is in memory at a time."""
    remaining = iter(chains)
    while window := list(islice(remaining, size or WINDOW)):
        yield window


def write_windows(
    chains: Iterable[C],
    sink: RecordSink[O],
    build: Callable[[], Work[C, O]],
    keys: Callable[[C], Sequence[tuple]],
    *,
    execution: ExecutionSettings,
    total: int | None,
    label: str,
    unit: str = "chain",
    size: int | None = None,
) -> dict[str, str]:
    """Make the records of each window of chains that is not done, and write them in the order of the windows.

    Args:
        sink: where the records go. A window is done if the sink has a record for each of its keys.
        build: loads what is needed, and returns the function from a window to its records. It is called once there is
            a window to do, in every worker.
        keys: one chain -> the keys of its records.
        execution: where the records are made.
        total: how many chains there are, for the progress bar; None if that is not known.
        label: of the progress bar.
        unit: what an input is called there.
        size: of a window; None: WINDOW.

    Returns:
        The ids of chains that are left out because they ended their worker each time, and why.
    """

    def is_done(window: list[C]) -> bool:
        return all(key in sink for chain in window for key in keys(chain))

    lost: dict[str, str] = {}
    groups, before = windows(chains, size), 0
    first = next(groups, [])
    while first and is_done(first):
        before += len(first)
        first = next(groups, [])
    if not first:
        return lost
    executor = build_executor(build, execution)  # what cannot be loaded is said before there is a bar
    with Bar(total=total, unit=unit, desc=label) as bar:
        bar.update(before)

        def todo() -> Iterator[list[C]]:
            yield first
            for window in groups:
                if is_done(window):
                    bar.update(len(window))
                else:
                    yield window

        for done in executor.map(todo()):
            sink.append(done.made)
            lost |= {chain.id: reason for chain, reason in done.lost}
            bar.update(len(done.items))
    return lost


def say_lost(lost: Mapping[str, str], unit: str = "chain") -> str:
    """How many inputs were left out, and why the first was.

    Example:
        >>> say_lost({"c7": "its worker died, 3 times"})
        '1 chain is left out (c7: its worker died, 3 times)'
    """
    first, reason = next(iter(lost.items()))
    inputs = f"1 {unit} is" if len(lost) == 1 else f"{len(lost)} {unit}s are"
    return f"{inputs} left out ({printable(first)}: {reason})"
