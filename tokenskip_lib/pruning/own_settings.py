"""The settings that own chains are scored and pruned with: one neutral default, whatever profiles there are."""

from __future__ import annotations

from typing import Any, TypeVar

from tokenskip_lib.core.profiles import Profile, apply_overrides, load_profile
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import (
    ExecutionSettings,
    ImportanceSettings,
    PromptSettings,
    PruningSettings,
    Seed,
    Settings,
    TargetSettings,
    TrainingSettings,
)


class OwnChainSettings(Settings):
    """Every setting that own chains can be scored and pruned with. The defaults keep nothing by force."""

    seed: Seed = 0
    target: TargetSettings = TargetSettings(model="HuggingFaceTB/SmolLM2-135M-Instruct")
    prompts: PromptSettings = PromptSettings()
    importance: ImportanceSettings = ImportanceSettings()
    pruning: PruningSettings = PruningSettings()
    execution: ExecutionSettings = ExecutionSettings()


class OwnRowSettings(OwnChainSettings):
    """The settings of training rows of own chains: which ratios a problem has, and which rows are held out."""

    training: TrainingSettings = TrainingSettings()


S = TypeVar("S", bound=OwnChainSettings)


def own_settings(
    profile: str | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    scorer: str | None = None,
    model: str | None = None,
    ratios: str | None = None,
    layout: str | None = None,
    kind: type[S] = OwnChainSettings,  # type: ignore[assignment]  # mypy knows no default of a type variable here
) -> S:
    """The defaults, or the settings of a profile that is named, with what is given in their place.

    Args:
        profile: a profile's name or file; None: the defaults.
        overrides: dotted key -> value.
        scorer: in place of importance.scorer.
        model: in place of target.model; the target has no adapter then.
        ratios: in place of pruning.ratios, with commas between them.
        layout: in place of prompts.layout.
        kind: which settings there are; any other is refused.

    Raises:
        InputError: an unknown profile or setting, a bad value, or a scorer where the mode scores by itself.

    Example:
        >>> own_settings(ratios="0.9,0.5").pruning.ratios
        [0.5, 0.9]
    """
    chosen = dict(overrides or {})
    if scorer is not None:
        chosen["importance.scorer"] = scorer
    if model is not None:
        chosen |= {"target.model": model, "target.adapter": None}
    if layout is not None:
        chosen["prompts.layout"] = layout
    if ratios is not None:
        try:
            chosen["pruning.ratios"] = sorted({float(ratio) for ratio in ratios.split(",")})
        except ValueError:
            raise InputError(f"--ratios {ratios}: numbers between commas, e.g. 0.9,0.7,0.5") from None
        if not all(0 < ratio <= 1 for ratio in chosen["pruning.ratios"]):
            raise InputError(f"--ratios {ratios}: each is the fraction of tokens kept, above 0 and at most 1")
    begin: Profile | OwnChainSettings = load_profile(profile) if profile is not None else kind()
    values = {name: value for name, value in begin.model_dump().items() if name in kind.model_fields}
    settings = apply_overrides(kind, values, chosen, where="own chains")
    if scorer is not None and settings.pruning.mode == "llmlingua":
        raise InputError("--scorer has no say in pruning.mode llmlingua: it scores by importance.classifier")
    return settings
