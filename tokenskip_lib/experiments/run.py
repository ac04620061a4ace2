"""A run's folder: what it was made with, which stages are finished, and when to refuse to go on.

Every stage's files begin with its number, so that redoing a stage can remove it and all after it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tokenskip_lib.core.paths import relative, resolve_path
from tokenskip_lib.core.processes import rank
from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.provenance import commit, versions
from tokenskip_lib.core.records import InputError, Problem
from tokenskip_lib.core.store import R, RecordStore, write_json
from tokenskip_lib.experiments.steps import ADAPTER, STAGE_OF_SECTION, STAGES, STEPS, TRAIN_PROBLEMS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATE, STUDIES = "profile.json", "studies"


class Run:
    """One profile's run folder. Opening it writes profile.json, or checks it.

    Its versions and commit are those that opened it last; a stage's `finished_by` are those that did its work.
    """

    def __init__(self, profile: Profile, state: dict):
        """Use `Run.create` or `Run.open`."""
        self.profile = profile
        self.folder = profile.path("")
        self.state = state

    @classmethod
    def create(cls, profile: Profile, *, redo_from: int | None = None) -> Run:
        """Make the folder, or go on with the run that it holds.

        Args:
            profile: resolved settings.
            redo_from: remove the files of this step (1 to 7) and of all after it first.

        Raises:
            InputError: the folder holds records made with other settings, which are not being redone.
        """
        before = read_state(profile.path(""))
        if before is not None:
            run = cls(profile, before)
            run._refuse_other_settings(before, redo_from)
            if redo_from is not None:
                run._remove_from(redo_from)
        state = {
            "profile": profile.model_dump(),
            "seed": profile.seed,
            "versions": versions(),
            "commit": commit(),
            "stages": before["stages"] if before else {},
        }
        run = cls(profile, state)
        run.folder.mkdir(parents=True, exist_ok=True)
        run._write()
        return run

    @classmethod
    def open(cls, profile: Profile) -> Run:
        """Open a run to read it; nothing is written.

        Raises:
            InputError: there is no such run, or it was made with other settings.
        """
        state = read_state(profile.path(""))
        if state is None:
            raise InputError(f"{relative(profile.path(''))}: no run here; `python -m tokenskip_lib run` makes one")
        run = cls(profile, state)
        run._refuse_other_settings(state, None)
        return run

    def _remove_from(self, step: int) -> None:
        for name in STEPS[step - 1 :]:  # nothing may be said to be done that a kill halfway has removed
            self.state["stages"].pop(name, None)
        self._write()
        for number in range(step, len(STEPS) + 1):
            self._remove(number)
        self._remove_variants(step)

    def store(self, name: str, record_type: type[R]) -> RecordStore[R]:
        return RecordStore(self.folder / name, record_type)

    def need(self, name: str, record_type: type[R], stage: str) -> list[R]:
        """The records a stage reads; InputError names the stage that makes them, if there are none."""
        records = list(self.store(name, record_type))
        if not records:
            raise InputError(
                f"{self.folder / name}: nothing there yet; run `python -m tokenskip_lib {stage} "
                f"--profile {self.profile.name}` first, with the same --set"
            )
        return records

    def in_problem_order(self, records: Iterable[R]) -> list[R]:
        """Records in the order of the training problems; files begin with the shortest, which an engine answers first.

        Whoever takes the first so many gets a sample, not the easiest.
        """
        order = {problem.id: number for number, problem in enumerate(self.store(TRAIN_PROBLEMS, Problem))}
        return sorted(records, key=lambda record: order.get(record.id, len(order)))

    def note(self, stage: str, **counts) -> None:
        """Write a stage's counts into profile.json, with what it dropped and why, and the code that finished it."""
        self.state["stages"] = read_state(self.folder)["stages"]  # a notebook's kernel may have written meanwhile
        first = {"finished_by": {name: self.state[name] for name in ("commit", "versions")}}
        self.state["stages"][stage] = {**self.state["stages"].get(stage, first), **counts}
        self._write()

    def save_figure(self, figure: Figure, name: str, source: Path) -> Path:
        """Write figures/<profile>_<name>.png and .svg, and beside them a .json that says where they come from.

        Args:
            source: the file of records or metrics that was drawn; its sha256 is noted.
        """
        import matplotlib.pyplot as plt

        from tokenskip_lib.figures.style import STYLE

        folder = resolve_path(self.profile.figures_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.profile.name}_{name}.png"
        with plt.style.context(STYLE):
            figure.savefig(path)
            figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
        plt.close(figure)  # a notebook would show an open figure a second time
        origin = {
            "profile": self.profile.name,
            "seed": self.profile.seed,
            "commit": self.state["commit"],
            "source": relative(source),
            "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
        path.with_suffix(".json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
        return path

    def timings(self) -> dict[str, float]:
        """Seconds of each finished step's notebook, where the pipeline ran it."""
        stages = self.state["stages"]
        return {
            stage: stages[stage]["notebook_seconds"] for stage in STEPS if "notebook_seconds" in stages.get(stage, {})
        }

    def _write(self) -> None:
        if rank() != 0:  # of several launched processes the first writes
            return
        write_json(self.folder / STATE, self.state)

    def _refuse_other_settings(self, state: dict, redo_from: int | None) -> None:
        now = _parts(self.profile.model_dump())
        try:  # settings that are new since are filled in
            made_with = _parts(Profile.model_validate(state["profile"]).model_dump())
        except ValidationError:
            made_with = {}
        for section, stage in sorted(STAGE_OF_SECTION.items(), key=lambda item: item[1]):
            later = range(stage, len(STAGES) + 1)
            started = any(path for number in later for path in self.folder.glob(f"{number:02}_*"))
            if made_with.get(section) == now[section] or not started:
                continue
            if redo_from is None or redo_from > stage:
                kind = "setting" if "." in section else "section"
                raise InputError(
                    f"{self.folder} was made with another '{section}' {kind}; `run --from {stage:02}` redoes it "
                    "from there, --set run_dir=... keeps both"
                )

    def _remove(self, number: int) -> None:
        _delete(self.folder.glob(f"{number:02}_*"))

    def _remove_variants(self, redo_from: int) -> None:
        """Of studies' variants what is redone: the files of those stages; all that was made from files now gone."""
        for variant in self.folder.glob(f"{STUDIES}/*/*"):
            stale = [path for path in variant.glob("0*") if int(path.name[:2]) >= redo_from]
            if redo_from == STEPS.index("studies") + 1 or any(path.is_symlink() for path in stale):
                shutil.rmtree(variant)
            else:
                _delete(stale)


def find_trained(run: Run) -> Path | str:
    """The adapter that answers for tokenskip: the run's own, or the finished one that the profile names.

    Raises:
        InputError: it would be the run's own, and that is not trained yet.
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


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _parts(settings: dict) -> dict:
    """Settings by the names of STAGE_OF_SECTION; a field that has a name of its own is not in its section's."""
    parts = {name: settings[name] for name in STAGE_OF_SECTION if "." not in name}
    for name in STAGE_OF_SECTION:
        section, _, field = name.partition(".")
        if field:
            parts[section] = {key: value for key, value in parts[section].items() if key != field}
            parts[name] = settings[section][field]
    return parts


def read_state(folder: Path) -> dict | None:
    """What a run's folder says of itself: settings, seed, versions, commit, stages; None where there is no run."""
    file = folder / STATE
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise InputError(f"{file}: not JSON; remove the folder, or put the file back") from None
