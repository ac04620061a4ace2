"""The executor on a Ray cluster: actors hold the models, and this process, the driver, hands out groups of items.

Only the driver knows what is done. A worker that dies, with its machine or without it, is replaced, and its group is
handed out again. A group that ends several workers is halved, until the item that does it is alone and left out.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any, Generic

from tokenskip_lib.core.executor import Done, Executor, I, LocalExecutor, O, Work
from tokenskip_lib.core.plugins import need
from tokenskip_lib.core.provenance import versions
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import ExecutionSettings

AHEAD = 4  # groups a worker that may be begun and not yielded: what a slow worker can hold up
PATIENCE = 60.0  # seconds without any answer, after which the driver says what it waits for
SAME = ("python", "tokenskip", "torch", "transformers", "peft")  # versions that worker and driver have in common


class Worker:
    """An actor: a process that builds what it needs once, and then works on groups."""

    def __init__(self, folder: str):
        if Path(folder).is_dir():  # relative paths then mean what they mean to the driver
            os.chdir(folder)

    def prepare(self, build: Callable[[], Work]) -> dict[str, str]:
        """Load what is needed. Returns the versions that are installed here."""
        self.work = build()
        return versions()

    def run(self, items: list) -> list:
        """What is made of a group."""
        return self.work(items)


@dataclass(eq=False)
class _Part(Generic[I, O]):
    """A group, or a piece of one that ended its workers: `deaths` of them so far."""

    items: list[I]
    deaths: int = 0
    made: list[O] | None = None
    reason: str = ""  # why it is left out


class RayExecutor(Generic[I, O]):
    """Groups are worked on by actors of a Ray cluster. Actors end when the executor is no longer referred to.

    Args:
        build: loads what is needed, and returns the function from a group to what is made of it; it is pickled.
        settings: how many workers, what each of them has, and where the cluster is.

    Raises:
        InputError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, build: Callable[[], Work[I, O]], settings: ExecutionSettings):
        self.ray = connect(settings.address)
        self.build = build
        self.settings = settings
        options = {"num_cpus": settings.cpus_per_worker, "num_gpus": settings.gpus_per_worker, "max_restarts": 0}
        self.actor_class = self.ray.remote(**options)(Worker)
        self.idle: list[Any] = []
        self.running: dict[Any, tuple[Any, _Part[I, O] | None]] = {}  # result -> actor; its part, None if it loads
        self.failed_starts = 0

    def map(self, groups: Iterable[list[I]]) -> Iterator[Done[I, O]]:
        """What is made of every group, in order. Some groups are taken before the results of those before them.

        Raises:
            InputError: workers die again and again while they load, or have other versions than this process; or what
                the work itself raises.
        """
        remaining = iter(groups)
        begun: deque[tuple[list[I], list[_Part[I, O]]]] = deque()
        todo: deque[_Part[I, O]] = deque()
        while True:
            for items in islice(remaining, AHEAD * self.settings.workers - len(begun)):
                todo.append(_Part(items))
                begun.append((items, [todo[-1]]))
            if not begun:
                return
            items, parts = begun[0]
            if all(part.made is not None for part in parts):
                begun.popleft()
                lost = [(item, part.reason) for part in parts if part.reason for item in part.items]
                yield Done(items, [record for part in parts for record in part.made or ()], lost)
                continue
            self._hand_out(todo)
            for part, reason in self._collect():
                self._try_again(part, reason, todo, next(parts for _, parts in begun if part in parts))

    def _hand_out(self, todo: deque[_Part[I, O]]) -> None:
        """Give parts to idle actors, and start actors for the others, as many as there may be."""
        while todo and self.idle:
            actor, part = self.idle.pop(), todo.popleft()
            self.running[actor.run.remote(part.items)] = actor, part
        loading = sum(part is None for _, part in self.running.values())
        missing = self.settings.workers - len(self.idle) - len(self.running)
        for _ in range(min(missing, len(todo) - loading)):
            actor = self.actor_class.remote(str(Path.cwd()))
            self.running[actor.prepare.remote(self.build)] = actor, None

    def _collect(self) -> Iterator[tuple[_Part[I, O], str]]:
        """Wait for an answer, and take all that are there. Yields the parts whose worker died, and why it did."""
        ready, waiting = self.ray.wait(list(self.running), timeout=PATIENCE)
        if not ready:
            self._say_what_is_missing()
            return
        ready += self.ray.wait(waiting, num_returns=len(waiting), timeout=0)[0] if waiting else []
        for answer in ready:
            actor, part = self.running.pop(answer)
            try:
                value = self.ray.get(answer)
            except self.ray.exceptions.RayTaskError as error:  # what the work itself raised
                raise getattr(error, "cause", error) from None
            except self.ray.exceptions.RayError as error:  # the worker, its machine or the network failed
                self.ray.kill(actor)
                self.idle.clear()  # these may have been on the same machine, and would each count as a death
                reason = f"its worker died, {type(error).__name__}"
                if part is None:
                    self._count_failed_start(error)
                elif part.made is None:
                    yield part, reason
                continue
            self.idle.append(actor)
            if part is not None:
                part.made = value
                continue
            self.failed_starts = 0
            here = versions()
            if other := [name for name in SAME if value.get(name) != here.get(name)]:
                raise InputError(
                    f"execution: a worker has {other[0]} {value.get(other[0])}, and this process {here.get(other[0])}; "
                    "install the same versions on every machine"
                )

    def _try_again(self, part: _Part[I, O], reason: str, todo: deque[_Part[I, O]], parts: list[_Part[I, O]]) -> None:
        """Hand a part out again, in halves if it ended as many workers as it may; an item that is alone is left out."""
        part.deaths += 1
        if part.deaths < self.settings.tries:
            todo.appendleft(part)
        elif len(part.items) > 1:
            # One death more halves a piece again. An item that is alone has all its tries.
            half = len(part.items) // 2
            pieces: list[_Part[I, O]] = [
                _Part(items, self.settings.tries - 1 if len(items) > 1 else 0)
                for items in (part.items[:half], part.items[half:])
            ]
            place = parts.index(part)
            parts[place : place + 1] = pieces
            todo.extendleft(reversed(pieces))
        else:
            part.made, part.reason = [], f"{reason}, {part.deaths} times"

    def _count_failed_start(self, error: Exception) -> None:
        self.failed_starts += 1
        if self.failed_starts >= self.settings.tries:
            why = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise InputError(
                f"execution: {self.failed_starts} workers died one after another while they loaded ({why[-1]}); see "
                "Ray's logs on their machine"
            )

    def _say_what_is_missing(self) -> None:
        if all(part is None for _, part in self.running.values()):
            free = self.ray.available_resources()
            print(
                f"execution: no worker has started in {PATIENCE:.0f} s; each needs {self.settings.cpus_per_worker} CPU "
                f"and {self.settings.gpus_per_worker:g} GPU, and the cluster has {free.get('CPU', 0):g} and "
                f"{free.get('GPU', 0):g} free; waiting",
                file=sys.stderr,
            )


def connect(address: str | None) -> ModuleType:
    """Ray, connected to a cluster.

    Args:
        address: HOST:PORT of the cluster, "auto" for the one of this machine, or None: Ray starts on this machine
            alone. Some of its ports listen to the network nevertheless.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    ray = need("ray", "ray")
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        quiet |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(
            f"execution.address {address}: {first}; start a cluster with `ray start --head`, or leave the address out"
        ) from None
    return ray


def build_executor(build: Callable[[], Work[I, O]], settings: ExecutionSettings) -> Executor[I, O]:
    """The executor that the settings name.

    Args:
        build: as in LocalExecutor. With Ray it is pickled, so it holds settings and no loaded model.

    Raises:
        InputError: Ray is not installed, or its cluster cannot be reached.
    """
    if settings.kind == "local":
        return LocalExecutor(build)
    return RayExecutor(build, settings)
