"""One executor, two places: groups of items become records in this process, or in Ray's workers (`cluster`).

Either way the results come back in the order of the groups, so that the caller, which alone writes, writes the same.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

I = TypeVar("I")  # noqa: E741  # the inputs: chains, requests, rows
O = TypeVar("O")  # noqa: E741  # the results: records, answers
Work = Callable[[list[I]], list[O]]


@dataclass(frozen=True)
class Done(Generic[I, O]):
    """A group of items, and what was made of it.

    Attributes:
        lost: items that ended their worker each time, and why. There is nothing made of them.
    """

    items: list[I]
    made: list[O]
    lost: list[tuple[I, str]] = field(default_factory=list)


class Executor(Protocol[I, O]):
    """Both executors build what they need once, before the first group."""

    def map(self, groups: Iterable[list[I]]) -> Iterator[Done[I, O]]:
        """What is made of every group, in order."""
        ...


class LocalExecutor(Generic[I, O]):
    """The work is done here, a group at a time.

    Args:
        build: loads what is needed, and returns the function from a group to what is made of it.

    Example:
        >>> doubled = LocalExecutor(lambda: lambda numbers: [2 * number for number in numbers])
        >>> [done.made for done in doubled.map([[1, 2], [3]])]
        [[2, 4], [6]]
    """

    def __init__(self, build: Callable[[], Work[I, O]]):
        self.work = build()

    def map(self, groups: Iterable[list[I]]) -> Iterator[Done[I, O]]:
        """What is made of every group, in order; the next group is taken when the caller asks for it."""
        for items in groups:
            yield Done(items, self.work(items))
