"""Studies: one question put to several trainings, on the same chains of thought.

A profile's `studies` name them. Each variant is a run of its own in the run's folder; what its overrides
leave as it is, it shares with the run, so only the stages that differ are done. All of them resume.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Any

import pandas as pd

from tokenskip_lib.core.paths import relative
from tokenskip_lib.core.profiles import Profile, is_how, nearest, with_overrides
from tokenskip_lib.core.records import FirstCall, InputError, Prediction
from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.experiments import stages
from tokenskip_lib.experiments.evaluate import asked_levels
from tokenskip_lib.experiments.run import Run, writes
from tokenskip_lib.experiments.steps import FIRST_CALLS, PREDICTIONS, STAGES, STUDIES, TABLES, records_of, stage_of


def variant_profiles(profile: Profile, study: str) -> list[tuple[dict[str, Any], Profile]]:
    """The overrides of each variant of a study, and the profile that they give.

    Raises:
        InputError: the profile has no such study, or an override is no setting.
    """
    if study not in profile.studies:
        raise InputError(f"profile '{profile.name}' has no study '{study}'{nearest(study, list(profile.studies))}")
    settings = profile.studies[study]
    if f"{study}.csv" in TABLES:
        raise InputError(f"a study cannot be called '{study}': its results would be written over the run's own")
    variants = []
    for varied in settings.vary:
        overrides = {**settings.common, **varied}
        if outside := [key for key in overrides if stage_of(key) is None and not is_how(key)]:
            raise InputError(f"study '{study}': '{outside[0]}' changes no stage's records")
        if profile.server is not None and _first_stage_of(overrides) < len(STAGES):
            raise InputError(f"study '{study}' trains its own adapters, which the server does not have: server=null")
        folder = f"{profile.run_dir}/{STUDIES}/{study}/{_folder_name(varied, overrides)}"
        places: dict[str, Any] = {"name": f"{profile.name}-{study}", "run_dir": folder, "studies": {}}
        if _first_stage_of(overrides) < len(STAGES):
            places["evaluation.adapter"] = None  # each variant's own training answers
        variants.append((varied, with_overrides(profile, {**overrides, **places}, where=f"study '{study}'")))
    return variants


def check_studies(profile: Profile) -> None:
    """Raise InputError for an override that is no setting, or names what does not exist, before anything runs."""
    for study in profile.studies:
        for _, variant in variant_profiles(profile, study):
            stages.check_names(variant)


@writes
def run_study(run: Run, study: str) -> pd.DataFrame:
    """Train and evaluate every variant of a study; what is done is not done again.

    Writes results/<study>.csv in the run's folder after each variant.

    Returns:
        A row a variant, method and ratio: every setting that some variant changes, as it was in this one,
        rows_trained, training_seconds (on this machine), then the columns of metrics.csv.
    """
    common = run.profile.studies[study].common if study in run.profile.studies else {}
    variants = variant_profiles(run.profile, study)
    settings = list(dict.fromkeys(key for varied, _ in variants for key in varied))
    tables: list[pd.DataFrame] = []
    answered = run
    firsts = [_first_stage_of({**common, **varied}) for varied, _ in variants]
    for stage in STAGES[: max(firsts, default=1) - 1]:  # what some variant shares
        stages.STAGE_FUNCTIONS[stage](run)
    for (_, profile), first in zip(variants, firsts, strict=True):
        variant = _open_variant(run, profile, first)
        for other in {run.folder: run, answered.folder: answered}.values():
            _share_answers(other, variant)
        for stage in STAGES[first - 1 : STAGES.index("train")]:
            stages.STAGE_FUNCTIONS[stage](variant)
        trained, metrics = stages.train(variant), stages.evaluate(variant)  # a shared adapter is only read
        answered = variant
        labels = {key: _label(attrgetter(key)(profile)) for key in settings}
        labels |= {"rows_trained": trained["rows_trained"], "training_seconds": trained["seconds"]}
        table = metrics.assign(**labels)[[*labels, *metrics.columns]]
        tables.append(table.astype(dict.fromkeys(settings, object)))  # 960 stays 960 beside a variant without it
        results = run.write_result(pd.concat(tables), f"{study}.csv")
    return pd.read_csv(results, keep_default_na=False, na_values=[""])


def study_table(run: Run, study: str, *, rerun: bool) -> pd.DataFrame:
    """A study's table: what `run_study` gives, or without `rerun` the run's table or the published one.

    A reader sees the published results at once; the trainings would take hours.
    """
    if rerun:
        return run_study(run, study)
    table = run.find_result(f"{study}.csv")
    print(f"read from {relative(table)}")
    return pd.read_csv(table, keep_default_na=False, na_values=[""])


def other_seeds(run: Run) -> pd.DataFrame:
    """TokenSkip's rows of trainings that differ from the run's own in their seed alone, from a study of its profile.

    Returns:
        The columns of the study's table, and label. No rows if there is no such study, or if it was not run.
    """
    tables = []
    for name, study in run.profile.studies.items():
        varied = {key for overrides in study.vary for key in overrides}
        if "training.seed" not in varied or not {*study.common, *varied} <= {"training.seed", "evaluation.methods"}:
            continue
        with suppress(InputError):  # neither run nor published
            rows = pd.read_csv(run.find_result(f"{name}.csv"))
            rows = rows[(rows["method"] == "tokenskip") & (rows["training.seed"] != run.profile.training_seed)]
            tables.append(rows.assign(label="tokenskip, seed " + rows["training.seed"].astype(str)))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _open_variant(run: Run, profile: Profile, first: int) -> Run:
    """A variant's run, with links to the files of the stages before the first that its overrides change."""
    variant = Run.create(profile)
    shared = [run.folder / name for stage in range(1, first) for name in records_of(stage)]
    for path in shared:
        link = variant.folder / path.name
        if path.exists() and not link.exists():
            link.unlink(missing_ok=True)  # to where the run's folder once was
            link.symlink_to(os.path.relpath(path.resolve(), variant.folder.resolve()))
    return variant


def _first_stage_of(overrides: Mapping[str, Any]) -> int:
    """The first stage that overrides change."""
    # Scores are kept by scorer: those of every scorer that the run compares are there.
    found = [3 if key == "importance.scorer" else stage_of(key) for key in overrides]
    return min((stage for stage in found if stage is not None), default=len(STAGES))


def _share_answers(answered: Run, variant: Run) -> None:
    """Give a variant the answers that do not depend on the adapter, where another run has been asked the same."""

    def asked(profile: Profile) -> dict:
        same = profile.model_dump(include={"target", "prompts", "problems", "evaluation", "server", "seed"})
        del same["prompts"]["marker"], same["evaluation"]["methods"], same["evaluation"]["adapter"]
        return same

    if asked(answered.profile) != asked(variant.profile):
        return
    alone = {pair for pair in asked_levels(variant.profile) if not METHODS[pair[0]].uses_adapter}
    predictions, calls = answered.store(PREDICTIONS, Prediction), answered.store(FIRST_CALLS, FirstCall)
    variant.store(PREDICTIONS, Prediction).append(p for p in predictions if (p.method, p.ratio) in alone)
    variant.store(FIRST_CALLS, FirstCall).append(call for call in calls if (call.method, call.ratio) in alone)


def _label(value: Any) -> str | float | int | bool | None:
    return value if isinstance(value, str | float | int | bool | None) else json.dumps(value)


def _folder_name(varied: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """Readable, and different for different overrides."""
    text = ",".join(f"{key}={_label(value)}" for key, value in varied.items())
    digest = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:6]
    readable = re.sub(r"[^\w.=,-]+", "_", text)[:100] or "unchanged"
    return f"{readable}-{digest}"
