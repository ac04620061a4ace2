"""Profiles: every setting of a run, validated, in one YAML file a run.

A profile's sections stand in the order of the stages, so a changed section tells the first stage
that has to be redone. This file knows the settings; it does not act on them.
"""

import difflib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokenskip_lib.records import InputError, Record, first_error

Ratio = Annotated[float, Field(gt=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]

STAGES = ("generate", "score", "prune", "train", "evaluate")
# The first stage that a change in each section makes stale.
STAGE_OF_SECTION = {
    "seed": 1,
    "target": 1,
    "prompts": 1,
    "problems": 1,
    "chains": 1,
    "importance": 2,
    "pruning": 3,
    "training": 3,  # training.held_out marks rows there
    "evaluation": 5,
}


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TargetSettings(Settings):
    """Which model answers, and where it runs."""

    model: str
    adapter: str | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    cache_dir: str = "~/.cache/tokenskip"


class PromptSettings(Settings):
    """`chat`: the model's own template, marker `EOS ratio EOS`; `reference_*`: the literal text of
    the reference implementation, so that adapters trained with it can be asked."""

    format: Literal["chat", "reference_qwen", "reference_llama3"] = "chat"
    system: str = "You are a helpful assistant."


class ProblemSettings(Settings):
    """A named problem set (gsm_symbolic, gsm8k, math, math500) or the path of a JSONL file."""

    train: str
    test: str
    train_size: PositiveInt | None = None
    test_size: PositiveInt | None = None
    max_number: PositiveInt | None = None  # gsm_symbolic: the largest number in question or solution


class ChainSettings(Settings):
    """How the target model answers the training problems."""

    max_new_tokens: PositiveInt = 512
    batch_size: PositiveInt = 16
    max_chain_tokens: PositiveInt | None = None  # longer chains are dropped and counted


class ImportanceSettings(Settings):
    """Whose scores are used later, and whose are shown beside them."""

    scorer: str = "selective_context"
    compare_with: list[str] = ["random"]
    classifier: str = "microsoft/llmlingua-2-xlm-roberta-large-meetingbank"  # of llmlingua2 and llmlingua mode
    classifier_dtype: Dtype = "auto"
    whole_latex: bool = False  # a LaTeX command and its arguments are one span
    batch_tokens: PositiveInt | None = None  # padded tokens of a forward pass; None: what suits the device


class KeepSettings(Settings):
    """What stays whatever its score. In llmlingua mode: its force_tokens, force_reserve_digit, drop_consecutive."""

    keep_tokens: list[str] = []
    keep_digits: bool = False
    keep_operators: bool = False
    drop_consecutive: bool = False  # of equal keep_tokens that come to stand side by side, the first alone stays


class PruningSettings(KeepSettings):
    """`spans`: whole words and numbers, ratios in target tokens. `llmlingua`: byte for byte as llmlingua 0.2.2."""

    mode: Literal["spans", "llmlingua"] = "spans"
    ratios: list[Ratio] = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]

    @field_validator("ratios")
    @classmethod
    def _ascending(cls, ratios: list[float]) -> list[float]:
        if not ratios or ratios != sorted(set(ratios)):
            raise ValueError("ratios must ascend, without repeats")
        return ratios

    @model_validator(mode="after")
    def _known_to_llmlingua(self) -> "PruningSettings":
        if self.mode == "llmlingua" and self.keep_operators:
            raise ValueError("keep_operators is not one of llmlingua's options; use mode: spans")
        return self


class TrainingSettings(Settings):
    """LoRA fine-tuning. The defaults are the paper's recipe."""

    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    epochs: Annotated[float, Field(gt=0)] = 3
    batch_size: PositiveInt = 1
    accumulation: PositiveInt = 8
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of all steps
    max_tokens: PositiveInt = 2048
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    log_every: PositiveInt = 10  # optimiser steps
    save_every: PositiveInt = 100  # optimiser steps between resumable checkpoints


class EvaluationSettings(Settings):
    """`methods`: name -> ratios; an empty list where the method takes none.

    `adapter`: a published TokenSkip adapter (folder or hub name) in place of the run's own. `budget`:
    whether tokenskip's answers may have max_new_tokens as all others (fixed), or that times the
    ratio as in the reference (scaled); answers it cuts off are counted either way.
    """

    methods: dict[str, list[Ratio]]
    adapter: str | None = None
    max_new_tokens: PositiveInt = 512
    budget: Literal["fixed", "scaled"] = "fixed"
    batch_size: PositiveInt = 16

    @field_validator("methods")
    @classmethod
    def _original_first(cls, methods: dict[str, list[float]]) -> dict[str, list[float]]:
        if "original" not in methods:
            raise ValueError("'original' must be among the methods: ratios are measured against it")
        return {"original": methods["original"], **methods}


class ServerSettings(Settings):
    """An OpenAI-compatible server that answers in place of this process; chains and evaluation go to it."""

    url: str  # up to and with /v1
    model: str  # what the server calls the target model
    tokenskip_model: str = "tokenskip"  # and the target model with the TokenSkip adapter
    concurrency: PositiveInt = 32
    retries: Annotated[int, Field(ge=0)] = 8
    timeout: Annotated[float, Field(gt=0)] = 600  # seconds, of one request
    api_key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if one is needed


class TargetTrainingSettings(Settings):
    """How `prepare-target` teaches the base model the task; its rows are never in train or test."""

    rows: PositiveInt
    validation_size: PositiveInt
    training: TrainingSettings


class Profile(Settings):
    """Every setting of a run. Paths are relative to the project's root unless absolute."""

    name: str
    description: str
    seed: int = 0
    run_dir: str
    figures_dir: str = "figures"
    results_dir: str = "data/results"
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

    @property
    def pruned_by(self) -> str:
        """What the pruned chains' `scorer` field says."""
        return "llmlingua" if self.pruning.mode == "llmlingua" else self.importance.scorer

    def pruned_keys(self, chain: Record) -> list[tuple]:
        """The keys of the records that pruning one chain gives."""
        return [(chain.id, self.pruned_by, ratio) for ratio in self.pruning.ratios]

    def path(self, name: str) -> Path:
        """A file of this run's folder."""
        return resolve_path(self.run_dir) / name


def project_root() -> Path:
    """The nearest folder, from the working directory up, that holds notebooks/ and tokenskip_lib/.

    Without one (the library installed elsewhere) the working directory itself.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "tokenskip_lib").is_dir():
            return folder
    return here


def resolve_path(path: str) -> Path:
    """An absolute path as it is, `~` expanded; a relative one under the project's root."""
    return project_root() / Path(path).expanduser()


def profile_names() -> list[str]:
    folder = resources.files("tokenskip_lib") / "profiles"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_profile(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """Read a profile by name, or by the path of a YAML file, and apply overrides.

    Args:
        name: one of `profile_names()`, or a path ending in .yaml.
        overrides: dotted key -> value, e.g. {"training.epochs": 1}.

    Raises:
        InputError: unknown profile, unknown key (the nearest valid one is named), or a bad value.
    """
    if name.endswith((".yaml", ".yml")):
        source = Path(name)
        if not source.is_file():
            raise InputError(f"{name}: no such profile file")
    elif name in profile_names():
        source = resources.files("tokenskip_lib") / "profiles" / f"{name}.yaml"
    else:
        raise InputError(f"unknown profile '{name}'{nearest(name, profile_names())}")
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{source}: a profile is a mapping of settings")
    values = {"name": Path(str(source)).stem, "run_dir": f"data/runs/{Path(str(source)).stem}", **values}
    for key, value in (overrides or {}).items():
        _set(values, key, value)
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "extra_forbidden":
            *parents, field = [str(part) for part in problem["loc"]]
            raise InputError(f"{name}: {_unknown_key(parents, field)}") from None
        given = problem.get("input")
        raise InputError(f"{name}: {first_error(error)}, not {given!r}") from None


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """`["training.epochs=1"]` -> `{"training.epochs": 1}`; values are read as YAML."""
    overrides = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or not key:
            raise InputError(f"--set {assignment}: write it as key=value")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {assignment}: the value is not YAML") from None
    return overrides


def nearest(word: str, valid: list[str]) -> str:
    """` (did you mean 'x'?)`, or the whole list where nothing is near."""
    match = difflib.get_close_matches(word, valid, n=1)
    return f" (did you mean '{match[0]}'?)" if match else f" (one of: {', '.join(valid)})"


def _set(values: dict, dotted: str, value: Any) -> None:
    *parents, field = dotted.split(".")
    # Check against the model's fields, not the YAML: a default can be overridden as well.
    if field not in _fields(parents):
        raise InputError(_unknown_key(parents, field))
    for parent in parents:
        section = values.get(parent) or {}
        if not isinstance(section, dict):
            raise InputError(f"{parent}: a section of settings, not {section!r}")
        values[parent] = dict(section)
        values = values[parent]
    values[field] = value


def _fields(parents: list[str]) -> list[str]:
    model: type[BaseModel] = Profile
    for position, parent in enumerate(parents):
        annotation = model.model_fields[parent].annotation if parent in model.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if section is None:
            raise InputError(_unknown_key(parents[:position], parent))
        model = section
    return list(model.model_fields)


def _unknown_key(parents: list[str], field: str) -> str:
    return f"unknown setting '{'.'.join([*parents, field])}'{nearest(field, _fields(parents))}"
