"""Whose files are in a run's folder: those that a step wrote, which are removed when it is redone, and foreign ones."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from tokenskip_lib.core.paths import resolve_path
from tokenskip_lib.core.processes import LOCK, rank
from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.records import InputError, few_of
from tokenskip_lib.core.store import PARTIAL
from tokenskip_lib.experiments.steps import STATE, STEPS, STUDIES, records_of


def refuse_foreign(profile: Profile) -> None:
    """Raise InputError if a folder without a run's state has files: someone's own, or made with unknown settings.

    The target model's adapter may be there: `prepare-target` writes it before there is a run. So may what a process
    leaves that was killed before it had written the state.
    """
    folder, adapter = profile.path(""), profile.target.adapter
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: no folder; choose another with --set run_dir=...")
    own = resolve_path(adapter) if adapter is not None else folder
    others = sorted(
        path.name
        for path in folder.glob("*")
        if path != own and path not in own.parents and path.name != LOCK and not path.name.endswith(PARTIAL)
    )
    if others and rank() == 0:  # of several launched processes the first may be writing the state just now
        raise InputError(
            f"{folder}: has files ({few_of(others)}) and no {STATE}, so no run made it; choose a new folder with "
            f"--set run_dir=..., or put {STATE} back"
        )


def written(folder: Path, names: Iterable[str]) -> list[Path]:
    """Those of the names that are in a folder, links to removed files too."""
    return [path for name in names if (path := folder / name).exists() or path.is_symlink()]


def remove_from(folder: Path, step: int) -> None:
    """Remove what this and later steps wrote, in every study's variant too.

    A variant goes as a whole if its study is done again, or if it links to removed files.
    """
    later = [name for number in range(step, len(STEPS) + 1) for name in records_of(number)]
    _delete(written(folder, later))
    for variant in folder.glob(f"{STUDIES}/*/*"):
        stale = written(variant, later)
        outdated = step == STEPS.index("studies") + 1 or any(path.is_symlink() for path in stale)
        if outdated and (variant / STATE).exists():
            shutil.rmtree(variant)
        else:
            _delete(stale)


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
