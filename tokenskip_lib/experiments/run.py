"""A run's folder: what it was made with, which stages are finished, and when to refuse to go on.

Every stage's files begin with its number, so that redoing a stage can remove it and all after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from tokenskip_lib.core.paths import checkout, relative
from tokenskip_lib.core.processes import only_writers, rank
from tokenskip_lib.core.profiles import Profile, load_profile, setting_values
from tokenskip_lib.core.provenance import commit, versions
from tokenskip_lib.core.records import InputError, Problem
from tokenskip_lib.core.store import R, RecordStore, write_json, write_whole
from tokenskip_lib.experiments.folder import refuse_foreign, remove_from, written
from tokenskip_lib.experiments.state import profile_of, read_state
from tokenskip_lib.experiments.steps import (
    ADAPTER,
    FIGURES,
    RECORDS,
    RESULTS,
    STAGES,
    STATE,
    STEPS,
    TRAIN_PROBLEMS,
    changed_settings,
    records_of,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

PUBLISHED_FIGURES, PUBLISHED_RESULTS = "figures", "data/results"  # of the checkout; `publish` writes there


class Run:
    """The folder of one run: records, adapter, tables, figures, and profile.json that says how they were made.

    `Run.create` is for writing, `Run.open` for reading. One process writes at a time, and any number may read. The
    versions and the commit in profile.json are those of the last `Run.create`; the `finished_by` of a stage has those
    that did its work.
    """

    def __init__(self, profile: Profile, state: dict):
        """For `Run.create` and `Run.open` only."""
        self.profile = profile
        self.folder = profile.path("")
        self.state = state

    @classmethod
    def create(cls, profile: Profile, *, redo_from: int | None = None) -> Run:
        """Make the run's folder, or go on with the run that is there.

        Args:
            profile: resolved settings.
            redo_from: first step (1 to 7) to redo; its files and those of all later steps are removed first.

        Raises:
            InputError: the folder has records made with other settings, and they are not redone; or it has files
                and is no run's; or another process writes there.
        """
        if read_state(profile.path("")) is None:
            refuse_foreign(profile)
        made_by = {"versions": versions(), "commit": commit()}
        with only_writers(profile.path("")):
            before = read_state(profile.path(""))
            if before is not None:
                run = cls(profile, before)
                run._refuse_other_settings(redo_from)
                if redo_from is not None:
                    run._remove_from(redo_from)
            stages = before["stages"] if before else {}
            run = cls(profile, {"profile": profile.model_dump(), "seed": profile.seed, **made_by, "stages": stages})
            run._write()
        return run

    @classmethod
    def open(cls, profile: Profile) -> Run:
        """Open a run for reading. Nothing is written, so a read-only folder will do.

        Raises:
            InputError: there is no run, or it was made with other settings.
        """
        state = read_state(profile.path(""))
        if state is None:
            raise InputError(
                f"{relative(profile.path(''))}: no run here; `python -m tokenskip_lib run --profile {profile.name}` "
                "makes one"
            )
        run = cls(profile, state)
        run._refuse_other_settings(None)
        return run

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that writes into the run, with those that this one started.

        Raises:
            InputError: another process writes into it, or has made it anew with other settings.
        """
        with only_writers(self.folder):
            state = read_state(self.folder)
            begun, now = profile_of(self.state), None if state is None else profile_of(state)
            if begun is not None and now is not None and (changed := changed_settings(begun, now)):
                raise InputError(
                    f"{self.folder}: another process has made this run anew, with another "
                    f"'{next(iter(changed.values()))}'; --set run_dir=... keeps both"
                )
            yield

    def store(self, name: str, record_type: type[R]) -> RecordStore[R]:
        """A file of records of this run, by its name in `steps`."""
        return RecordStore(self.folder / name, record_type)

    def need(self, name: str, record_type: type[R], stage: str) -> list[R]:
        """The records that a stage reads.

        Raises:
            InputError: there are none yet; the message names the stage that makes them.
        """
        records = list(self.store(name, record_type))
        if not records:
            raise InputError(
                f"{self.folder / name}: nothing there yet; run `python -m tokenskip_lib {stage} "
                f"--profile {self.profile.name}` first, with the same --set"
            )
        return records

    def in_problem_order(self, records: Iterable[R]) -> list[R]:
        """Records in the order of the training problems.

        Files begin with the shortest problems, because an engine answers them first. In problem order the first
        records are a sample of all, not the easiest.
        """
        order = {problem.id: number for number, problem in enumerate(self.store(TRAIN_PROBLEMS, Problem))}
        return sorted(records, key=lambda record: order.get(record.id, len(order)))

    def note(self, stage: str, **counts) -> None:
        """Write a stage's counts into profile.json, and the versions and commit that finished it."""
        with self.writing():
            state = read_state(self.folder)  # a notebook's kernel may have written in the meantime
            if state is not None:
                self.state["stages"] = state["stages"]
            first = {"finished_by": {name: self.state[name] for name in ("commit", "versions")}}
            self.state["stages"][stage] = {**self.state["stages"].get(stage, first), **counts}
            self._write()

    def has_noted(self, stage: str) -> bool:
        """Whether a stage has written its counts, in this process or in another (a notebook's kernel)."""
        state = read_state(self.folder)
        return state is not None and stage in state["stages"]

    def has_begun(self) -> bool:
        """Whether any stage has written records here. If none has, notebooks show the published tables."""
        return bool(written(self.folder, RECORDS))

    def timings(self) -> dict[str, float]:
        """Seconds that each finished step's notebook took. Steps run without their notebook have none."""
        stages = self.state["stages"]
        return {
            stage: stages[stage]["notebook_seconds"] for stage in STEPS if "notebook_seconds" in stages.get(stage, {})
        }

    def write_result(self, table: pd.DataFrame, name: str) -> Path:
        """Write a table of results, for example METRICS, into the run's folder `results`."""
        from tokenskip_lib.evaluation.tables import table_csv

        path = self.folder / RESULTS / name
        write_whole(path, table_csv(table).encode())
        return path

    def find_result(self, name: str) -> Path:
        """A table of results: the run's own, or the published one of the same profile if the run has none.

        Raises:
            InputError: neither is there, or the run's settings are not those of the published results.
        """
        own, root = self.folder / RESULTS / name, checkout()
        if own.exists():
            return own
        published = root / PUBLISHED_RESULTS / f"{self.profile.name}_{name}" if root else own
        if not published.exists():
            raise InputError(
                f"{relative(own)}: not there, and not published for profile '{self.profile.name}' either; "
                f"run `python -m tokenskip_lib run --profile {self.profile.name}` first"
            )
        if changed := changed_settings(self.profile, load_profile(self.profile.name)):
            raise InputError(
                f"{relative(own)}: not there, and the published one was made with another "
                f"'{next(iter(changed.values()))}'; run `python -m tokenskip_lib run` with the same --set first"
            )
        return published

    def show_figure(self, figure: Figure, name: str, source: Path, *, n: int, alt: str) -> None:
        """Write a figure as `save_figure` does, and show it in the notebook with its alternative text."""
        from IPython.display import display

        self.save_figure(figure, name, source, n=n, alt=alt)
        display(figure, metadata={"image/png": {"alt": alt}})  # nbconvert and the book read it there

    def save_figure(self, figure: Figure, name: str, source: Path, *, n: int, alt: str) -> Path:
        """Write <name>.png and .svg into the run's folder `figures`, and a .json that says what was drawn.

        Args:
            figure: it is closed afterwards.
            source: the file of records or the table that was drawn; the .json has its path and sha256.
            n: of how many problems or chains; of a training, how many rows.
            alt: the figure in a sentence, for those who cannot see it.
        """
        from tokenskip_lib.figures.style import write_figure

        path = self.folder / FIGURES / f"{name}.png"
        origin = {
            "profile": self.profile.name,
            "overrides": self.profile.overrides,
            "n": int(n),
            "alt": alt,
            "seed": self.profile.seed,
            "commit": self.state["commit"],
            "source": relative(source),
            "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
        write_figure(figure, path, origin)
        return path

    def _write(self) -> None:
        if rank() == 0:  # of several launched processes the first writes
            write_json(self.folder / STATE, self.state)

    def _refuse_other_settings(self, redo_from: int | None) -> None:
        """Raise InputError if records in the folder were made with other settings and are not redone."""
        made_with = profile_of(self.state)
        if made_with is None:
            changed = {1: "profile.json is of another version"}
        else:
            changed = {
                stage: f"another {key} ({_short(setting_values(made_with)[key])}, now "
                f"{_short(setting_values(self.profile)[key])})"
                for stage, key in changed_settings(self.profile, made_with).items()
            }
        for stage, what in changed.items():
            later = [name for number in range(stage, len(STAGES) + 1) for name in records_of(number)]
            if written(self.folder, later) and (redo_from is None or redo_from > stage):
                raise InputError(
                    f"{self.folder} was made with {what}; `run --from {stage:02}` redoes it "
                    "from there, --set run_dir=... keeps both"
                )

    def _remove_from(self, step: int) -> None:
        """Remove what this and later steps wrote. profile.json forgets them first, in case a kill comes between."""
        for name in STEPS[step - 1 :]:
            self.state["stages"].pop(name, None)
        self._write()
        remove_from(self.folder, step)


def open_run(name: str, overrides: dict[str, Any] | None = None, *, redo_from: int | None = None) -> Run:
    """Make a profile's run or go on with it, and print what it is made with: the first line of every notebook.

    Args:
        name: a profile's name or YAML file.
        overrides: dotted setting -> value.
        redo_from: first step (1 to 7) to redo, as for `Run.create`.

    Raises:
        InputError: as `load_profile` and `Run.create`.
    """
    from tokenskip_lib.models.loading import describe

    run = Run.create(load_profile(name, overrides), redo_from=redo_from)
    print(f"profile {run.profile.name}, seed {run.profile.seed}, commit {run.state['commit']}")
    print(describe(run.profile.target))
    print(", ".join(f"{package} {version}" for package, version in run.state["versions"].items()))
    return run


def writes(function: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """Let a function that writes into its run do so alone; see `Run.writing`."""

    @wraps(function)
    def alone(run: Run, *args: P.args, **kwargs: P.kwargs) -> T:
        with run.writing():
            return function(run, *args, **kwargs)

    return alone


def find_trained(run: Run) -> Path | str:
    """The adapter that answers for TokenSkip: the one that the profile names, or else the run's own.

    Raises:
        InputError: it is the run's own, and it is not trained yet.
    """
    if run.profile.evaluation.adapter is not None:
        return run.profile.evaluation.adapter
    folder = run.folder / ADAPTER
    if not (folder / "summary.json").exists():
        raise InputError(
            f"{folder}: no adapter yet; run `python -m tokenskip_lib train --profile {run.profile.name}` first, "
            "with the same --set"
        )
    return folder


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
