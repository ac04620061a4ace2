"""A run's adapter for others: its model card, and a folder that peft, transformers and the hub take as it is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenskip_lib.core.profiles import Profile
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.store import file_errors, read_json, write_whole
from tokenskip_lib.experiments.run import Run, find_trained
from tokenskip_lib.experiments.steps import ADAPTER, METRICS
from tokenskip_lib.models.adapters import CONFIG, WEIGHTS, find_adapter
from tokenskip_lib.models.loading import find_model, load_model, load_tokenizer, weights_note
from tokenskip_lib.models.rounding import round_adapter
from tokenskip_lib.models.standalone import refuse_other_target
from tokenskip_lib.training.adapter import DAMAGED, SUMMARY
from tokenskip_lib.training.card import model_card
from tokenskip_lib.training.lora import generation_config

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from tokenskip_lib.core.settings import TargetSettings

MODEL_STYLES = ("peft", "peft-8bit", "merged")
ROUNDED = """
## Rounding

The weights were rounded to 8-bit floats after the training. Figures in this card are of the adapter before rounding.
"""
CARD, GENERATION = "README.md", "generation_config.json"


def adapter_card(
    profile: Profile,
    tokenizer: PreTrainedTokenizerBase,
    summary: Mapping[str, Any],
    *,
    metrics: pd.DataFrame | None = None,
    merged: bool = False,
) -> str:
    """The model card of the adapter that a profile's run trains.

    Args:
        summary: of the training; {} if it is not known.
        metrics: as in `model_card`.
        merged: as in `model_card`.
    """
    pruning = profile.pruning
    kept = [name for name in ("keep_digits", "keep_operators", "skip_spaces") if getattr(pruning, name)]
    data = (
        f"The rows are the target model's own right answers to training problems of `{profile.problems.train}`. Their "
        f"chains of thought were pruned in mode `{pruning.mode}` by the scores of `{profile.pruned_by}`"
        f"{' with ' + ', '.join(f'`{name}`' for name in kept) if kept else ''}."
    )
    if profile.target.adapter is not None:
        went_on = summary.get("recipe", {}).get("start_from")  # from weights that include the target model's already
        data += (
            " The target model is the base model with an adapter that taught it the task; the weights here include "
            f"that adapter{'.' if went_on else ', and their rank is the sum of both.'}"
        )
    return model_card(
        profile.target.model,
        tokenizer,
        profile.prompts,
        summary,
        data=data,
        ratios=profile.pruning.ratios,
        weights=weights_note(profile.target.model),
        metrics=metrics,
        merged=merged,
    )


def add_figures(run: Run, tokenizer: PreTrainedTokenizerBase, metrics: pd.DataFrame) -> None:
    """Write the run's metrics into the card of the adapter that it trained itself."""
    folder = run.folder / ADAPTER
    if run.profile.evaluation.adapter is None and (folder / SUMMARY).exists() and not folder.is_symlink():
        summary = read_json(folder / SUMMARY, advice=DAMAGED)
        write_whole(folder / CARD, adapter_card(run.profile, tokenizer, summary, metrics=metrics).encode())


def export_model(profile: Profile, style: str, folder: Path) -> list[Path]:
    """Write the adapter that answers for TokenSkip, or the base model with it merged in, into a new folder.

    Args:
        style: "peft" (the adapter), "peft-8bit" (its weights in 8-bit floats, half the file) or "merged" (the whole
            model, its tokenizer too, in `target.dtype`).

    Returns:
        The files that were written.

    Raises:
        InputError: there is no adapter yet, it does not fit the profile's target model, or the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: there already, and not empty; write into another folder")
    adapter = find_adapter(str(profile.evaluation.adapter or find_trained(Run.open(profile))))
    if profile.target.adapter is not None:
        refuse_other_target(adapter, profile.target.adapter)
    with file_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
        try:
            (_write_merged if style == "merged" else _write_adapter)(profile, adapter, partial)
            if style == "peft-8bit":
                round_adapter(adapter, partial)
                with (partial / CARD).open("a", encoding="utf-8") as card:
                    card.write(ROUNDED)
            partial.chmod(0o755)
            partial.replace(folder)  # whole, or not at all
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return sorted(folder.iterdir())


def _write_adapter(profile: Profile, adapter: Path, folder: Path) -> None:
    """The files that others need; a card is made where the adapter has none."""
    for name in (CONFIG, WEIGHTS, GENERATION, CARD):
        if (adapter / name).exists():
            shutil.copy(adapter / name, folder)
    if not (folder / CARD).exists():
        tokenizer = load_tokenizer(profile.target)
        if not (folder / GENERATION).exists():  # the card reads it
            generation_config(_base_generation(profile.target), tokenizer).save_pretrained(folder)
        card = _card(profile, adapter, tokenizer, merged=False)
        (folder / CARD).write_text(card, encoding="utf-8")


def _base_generation(target: TargetSettings) -> GenerationConfig | None:
    """How the base model says that it generates, without its weights."""
    from transformers import GenerationConfig

    try:
        place = find_model(target.model, target.cache_dir, target.revision)
        return GenerationConfig.from_pretrained(place, revision=target.revision or "main")
    except OSError:  # it says nothing
        return None


def _write_merged(profile: Profile, adapter: Path, folder: Path) -> None:
    """The model with the adapter in its weights, and its tokenizer."""
    model, tokenizer = load_model(profile.target, adapter=adapter), load_tokenizer(profile.target)
    model.generation_config = generation_config(model.generation_config, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / CARD).write_text(_card(profile, adapter, tokenizer, merged=True), encoding="utf-8")


def _card(profile: Profile, adapter: Path, tokenizer: PreTrainedTokenizerBase, *, merged: bool) -> str:
    summary = read_json(adapter / SUMMARY, advice=DAMAGED) if (adapter / SUMMARY).exists() else {}
    try:
        metrics = pd.read_csv(Run.open(profile).find_result(METRICS), keep_default_na=False)
    except InputError:  # no run, or not evaluated yet
        metrics = None
    return adapter_card(profile, tokenizer, summary, metrics=metrics, merged=merged)
