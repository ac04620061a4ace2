"""Profiles: every setting of a run, validated, in one YAML file a run.

A changed section tells the first stage that has to be redone. The settings of each section: `settings.py`.
"""

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from tokenskip_lib.core.paths import resolve_path
from tokenskip_lib.core.records import InputError, first_error
from tokenskip_lib.core.settings import (
    HOW,
    ChainSettings,
    EvaluationSettings,
    ExecutionSettings,
    FileName,
    ImportanceSettings,
    ProblemSettings,
    PromptSettings,
    PruningSettings,
    Seed,
    ServerSettings,
    Settings,
    StudySettings,
    TargetSettings,
    TargetTrainingSettings,
    TrainingSettings,
    pruned_by,
)
from tokenskip_lib.core.store import open_input
from tokenskip_lib.core.yaml_values import read_yaml

S = TypeVar("S", bound=Settings)


class Profile(Settings):
    """Every setting of a run. Paths are relative to the project's root unless absolute."""

    name: FileName
    description: str
    seed: Seed = 0
    run_dir: Annotated[str, Field(min_length=1)]
    target: TargetSettings
    prompts: PromptSettings = PromptSettings()
    problems: ProblemSettings
    chains: ChainSettings = ChainSettings()
    importance: ImportanceSettings = ImportanceSettings()
    pruning: PruningSettings = PruningSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings
    target_training: TargetTrainingSettings | None = None
    server: ServerSettings | None = None
    execution: ExecutionSettings = ExecutionSettings()
    studies: dict[FileName, StudySettings] = Field(default_factory=dict)
    _overrides: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def overrides(self) -> dict[str, Any]:
        """Dotted key -> value of the overrides that change results: all but `run_dir` and the settings marked HOW."""
        return {key: value for key, value in self._overrides.items() if key != "run_dir" and not is_how(key)}

    @property
    def training_seed(self) -> int:
        """The seed of everything that is drawn in training, drawn ratios among it."""
        return self.seed if self.training.seed is None else self.training.seed

    @property
    def pruned_by(self) -> str:
        """What the pruned chains' `scorer` field says."""
        return pruned_by(self.pruning, self.importance)

    def path(self, name: str) -> Path:
        """A file of this run's folder."""
        return resolve_path(self.run_dir) / name


def profile_names() -> list[str]:
    folder = resources.files("tokenskip_lib") / "profiles"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def is_profile_file(name: str) -> bool:
    """Whether a profile's name is the path of a YAML file."""
    return name.endswith((".yaml", ".yml"))


def names_profile(name: str) -> bool:
    """Whether `load_profile` would look for a profile of this name: one that is there, or a YAML file."""
    return is_profile_file(name) or name in profile_names()


def load_profile(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """Read a profile by name, or by the path of a YAML file, and apply overrides.

    Args:
        name: one of `profile_names()`, or a path ending in .yaml.
        overrides: dotted key -> value, e.g. {"training.epochs": 1}.

    Raises:
        InputError: unknown profile, unknown key (the nearest valid one is named), or a bad value.
    """
    if is_profile_file(name):
        with open_input(name) as file:
            content = file.read()
    elif name in profile_names():
        content = (resources.files("tokenskip_lib") / "profiles" / f"{name}.yaml").read_bytes()
    else:
        raise InputError(f"unknown profile '{name}'{nearest(name, profile_names())}")
    try:
        values = read_yaml(content.decode(), name)
    except UnicodeDecodeError:
        raise InputError(f"{name}: not UTF-8; save the file in that encoding") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: a profile is a mapping of settings")
    stem = Path(name).stem if is_profile_file(name) else name
    values = {"name": stem, "run_dir": f"data/runs/{stem}", **values}
    profile = apply_overrides(Profile, values, overrides or {}, where=name)
    profile._overrides = dict(overrides or {})
    return profile


def with_overrides(profile: Profile, overrides: dict[str, Any], *, where: str) -> Profile:
    """The profile with some settings changed; `where` says whose overrides they are, should they be wrong."""
    changed = apply_overrides(Profile, profile.model_dump(), overrides, where=where)
    changed._overrides = profile._overrides | overrides
    return changed


def setting_values(profile: Profile) -> dict[str, Any]:
    """Every setting by its dotted name, those of absent sections as None.

    Example:
        >>> setting_values(load_profile("demo"))["training.rank"]
        16
    """
    values: dict[str, Any] = {}
    for name, field in Profile.model_fields.items():
        value, section = getattr(profile, name), _section(field.annotation)
        if section is None or isinstance(value, dict):
            values[name] = value
            continue
        values |= {f"{name}.{inner}": getattr(value, inner, None) for inner in section.model_fields}
    return values


def is_how(key: str) -> bool:
    """Whether a setting is marked HOW: it changes how the work is done, and the results stay the same.

    Example:
        >>> is_how("training.save_every"), is_how("training.epochs"), is_how("no.setting")
        (True, False, False)
    """
    model: type[BaseModel] | None = Profile
    marks: list[Any] = []
    for name in key.split("."):
        if model is None or name not in model.model_fields:
            return False
        field = model.model_fields[name]
        model, marks = _section(field.annotation), field.metadata
    return HOW in marks


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """`["training.epochs=1"]` -> `{"training.epochs": 1}`; values are read as YAML."""
    overrides = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or not key:
            raise InputError(f"--set {assignment}: write it as key=value")
        overrides[key.strip()] = read_yaml(value, f"--set {assignment}")
    return overrides


def nearest(word: str, valid: list[str]) -> str:
    """` (did you mean 'x'?)`, or the whole list where nothing is near."""
    match = difflib.get_close_matches(word, valid, n=1)
    return f" (did you mean '{match[0]}'?)" if match else f" (one of: {', '.join(valid)})"


def apply_overrides(model: type[S], values: dict[str, Any], overrides: dict[str, Any], *, where: str) -> S:
    """Settings of a class from their values, after some of these are changed.

    Args:
        values: field -> value, sections as dicts. It is changed.
        overrides: dotted key -> value.
        where: what an error names.

    Raises:
        InputError: an unknown key (the nearest valid one is named), or a bad value.
    """
    for key, value in overrides.items():
        _set(model, values, key, value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "extra_forbidden":
            *parents, field = [str(part) for part in problem["loc"]]
            raise InputError(f"{where}: {_unknown_key(model, parents, field)}") from None
        given = problem.get("input")
        found = "" if isinstance(given, dict) else f", not {given!r}"  # a whole section says nothing
        raise InputError(f"{where}: {first_error(error)}{found}") from None


def _set(model: type[BaseModel], values: dict, dotted: str, value: Any) -> None:
    *parents, field = dotted.split(".")
    # Check against the model's fields, not the YAML: a default can be overridden as well.
    if field not in _fields(model, parents):
        raise InputError(_unknown_key(model, parents, field))
    for parent in parents:
        section = values.get(parent) or {}
        if not isinstance(section, dict):
            raise InputError(f"{parent}: a section of settings, not {section!r}")
        values[parent] = dict(section)
        values = values[parent]
    values[field] = value


def _fields(model: type[BaseModel], parents: list[str]) -> list[str]:
    inner = model
    for position, parent in enumerate(parents):
        section = _section(inner.model_fields[parent].annotation) if parent in inner.model_fields else None
        if section is None:
            raise InputError(_unknown_key(model, parents[:position], parent))
        inner = section
    return list(inner.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The settings class that a field holds; None if it holds a plain value."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _unknown_key(model: type[BaseModel], parents: list[str], field: str) -> str:
    return f"unknown setting '{'.'.join([*parents, field])}'{nearest(field, _fields(model, parents))}"
