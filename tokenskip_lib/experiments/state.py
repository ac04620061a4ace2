"""A run's profile.json: the settings, seed, versions and commit that made the run, and what its stages noted."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.store import file_errors, read_json
from tokenskip_lib.experiments.steps import STATE

_DAMAGED = "put the file back, or choose a new folder with --set run_dir=..."


def read_state(folder: Path) -> dict[str, Any] | None:
    """The content of a run's profile.json: settings, seed, versions, commit, stages; None if there is no run.

    Raises:
        InputError: the file is damaged.
    """
    file = folder / STATE
    with file_errors(file, "read"):  # a name that is too long, or a folder that may not be looked into
        if not file.exists():
            return None
    state = read_json(file, advice=_DAMAGED)
    stages = state.get("stages")
    noted = stages.values() if isinstance(stages, dict) else [stages]
    parts = [state.get("profile"), state.get("versions"), *noted]
    if "commit" not in state or not all(isinstance(part, dict) for part in parts):
        raise InputError(f"{file}: not the whole state of a run; {_DAMAGED}")
    return state


def profile_of(state: dict[str, Any]) -> Profile | None:
    """The settings that a run was made with; None if they are not settings of this version.

    Settings that did not exist then have their defaults.
    """
    known = {name: value for name, value in state["profile"].items() if name in Profile.model_fields}
    try:
        return Profile.model_validate(known)
    except ValidationError:
        return None
