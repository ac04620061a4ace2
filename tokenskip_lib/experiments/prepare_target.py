"""Preparing a target model: teach a base model the task from the problem set's own solutions.

Only a model that cannot solve the problems as it is needs this, for example the demo's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenskip_lib.core.paths import resolve_path
from tokenskip_lib.core.profiles import Profile, is_how
from tokenskip_lib.core.records import InputError, Problem, PrunedChain
from tokenskip_lib.core.settings import TargetTrainingSettings
from tokenskip_lib.core.store import read_json, write_json
from tokenskip_lib.evaluation.metrics import compute_metrics
from tokenskip_lib.evaluation.predictions import predict_all
from tokenskip_lib.inference.engine import TransformersEngine
from tokenskip_lib.models.loading import load_model, load_tokenizer
from tokenskip_lib.models.tokens import token_counter
from tokenskip_lib.problems.sets import load_problems, refuse_shared_questions
from tokenskip_lib.training.adapter import DAMAGED
from tokenskip_lib.training.lora import train_adapter
from tokenskip_lib.training.rows import build_sft_rows


def prepare_target(profile: Profile) -> dict:
    """Teach the base model the task from the problem set's own solutions, and measure its accuracy.

    `target.adapter` is trained on the target split. Accuracy is measured on the validation split. Neither split has a
    training or test problem of a run. An adapter that is already there is measured only.

    Returns:
        The summary, which is also in the adapter's folder.

    Raises:
        InputError: the profile's model needs no preparing (no target_training or adapter), or the adapter
            there was begun with other settings.
    """
    loaded, validation = load_problems(profile, "target"), load_problems(profile, "validation")
    if profile.target.adapter is None:
        raise InputError(f"profile '{profile.name}': target.adapter must say where the adapter goes")
    refuse_shared_questions(loaded.problems, validation.problems)
    folder = resolve_path(profile.target.adapter)
    assert profile.target_training is not None  # load_problems refused a profile without it
    settings = profile.target_training.training
    seed = profile.seed if settings.seed is None else settings.seed
    _refuse_other_settings(folder, profile, profile.target_training)
    tokenizer = load_tokenizer(profile.target)
    count = token_counter(tokenizer)
    if not (folder / "summary.json").exists():
        solutions = [_unpruned(problem, count) for problem in loaded.problems]
        rows = build_sft_rows(
            solutions,
            {p.id: p for p in loaded.problems},
            tokenizer,
            profile.prompts,
            held_out=settings.held_out,
            seed=seed,
        )
        base = load_model(profile.target.model_copy(update={"adapter": None}))
        train_adapter(base, tokenizer, rows, settings, folder, base_name=profile.target.model, seed=seed)
    engine = TransformersEngine(load_model(profile.target), tokenizer, profile.chains.batch_size)
    plan = [("original", 1.0, profile.chains.max_new_tokens)]
    batches = predict_all(engine, tokenizer, validation.problems, profile.prompts, plan, label="validation")
    predictions = [prediction for batch in batches for prediction in batch]
    [row] = compute_metrics(predictions, scorer="", seed=profile.seed).to_dict("records")
    summary = read_json(folder / "summary.json", advice=DAMAGED)
    summary["validation"] = {key: row[key] for key in ("n", "accuracy", "accuracy_low", "accuracy_high", "cut_off")}
    summary["dropped_problems"] = dict(loaded.dropped)
    write_json(folder / "summary.json", summary)
    return summary


def _refuse_other_settings(folder: Path, profile: Profile, taught: TargetTrainingSettings) -> None:
    """Write the settings that the adapter is made with, or raise InputError if it was begun with others."""
    now = {
        "model": profile.target.model,
        "seed": profile.seed,
        "problems": profile.problems.model_dump(include={"train", "max_number", "max_words"}),
        "prompts": profile.prompts.model_dump(),
        **taught.model_dump(),
    }
    file = folder / "settings.json"
    if not file.exists():
        if (folder / "summary.json").exists():  # made elsewhere; it is only measured
            return
        if (folder / "adapter_config.json").exists():
            raise InputError(f"{folder}: holds an adapter that was made elsewhere; --set target.adapter=... keeps it")
        write_json(file, now)
    begun = read_json(file, advice=DAMAGED)
    for name, value in now.items():
        if _decisive(begun.get(name)) != _decisive(value):
            raise InputError(
                f"{file}: this adapter was begun with other settings ({name}: {begun.get(name)}, now {value}); "
                "remove the folder to make it anew, or --set target.adapter=... to keep both"
            )


def _decisive(value: Any) -> Any:
    """A value of the adapter's settings. In a section of training settings, those that change nothing are left out."""
    if not isinstance(value, dict):
        return value
    return {name: inner for name, inner in value.items() if not is_how(f"target_training.training.{name}")}


def _unpruned(problem: Problem, count: Callable[[str], int]) -> PrunedChain:
    """A gold solution as a chain at ratio 1.0, so that training rows are built in one place."""
    tokens = count(problem.solution)
    return PrunedChain(
        id=problem.id, scorer="gold", ratio=1.0, text=problem.solution, kept=None, tokens=tokens, original_tokens=tokens
    )
