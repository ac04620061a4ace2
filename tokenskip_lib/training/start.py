"""What a training starts from: a fresh adapter on the target model, or an earlier adapter that goes on learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import PromptSettings, TargetSettings, TrainingSettings
from tokenskip_lib.models.adapters import trainable_adapter
from tokenskip_lib.models.loading import load_model
from tokenskip_lib.models.packing import attend_in_rows
from tokenskip_lib.models.standalone import plain_adapter, refuse_other_target

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


def model_to_train(target: TargetSettings, training: TrainingSettings) -> PreTrainedModel:
    """The model that the adapter of a training is put beside.

    It is the target model; with `training.start_from` it is the base model alone, since that adapter includes the
    target model's adapter.

    Raises:
        InputError: there is no such model or adapter, or the adapter to start from does not include the target
            model's adapter.
    """
    if training.start_from is None:
        return load_model(target)
    if target.adapter is not None:
        refuse_other_target(training.start_from, target.adapter)
    return load_model(target.model_copy(update={"adapter": None}))


def check_start(settings: TrainingSettings, prompts: PromptSettings | None) -> None:
    """Raise InputError if no training can go on from `training.start_from`.

    There is no such adapter, it has another rank than the settings say, or the marker is `token`.
    """
    if settings.start_from is None:
        return
    if prompts is not None and prompts.marker == "token":
        raise InputError(
            f"training.start_from '{settings.start_from}': no adapter can go on with prompts.marker token, whose "
            "embeddings only a fresh adapter trains; leave start_from out, or set another marker"
        )
    _, config = plain_adapter(settings.start_from)
    if config["r"] != settings.rank:
        raise InputError(
            f"training.start_from '{settings.start_from}': an adapter of rank {config['r']}; set training.rank to it"
        )


def add_adapter(
    model: PreTrainedModel, settings: TrainingSettings, seed: int, ratio_tokens: Sequence[int] = ()
) -> PeftModel:
    """The model, attending as packed rows need it, with the adapter that is trained.

    Args:
        model: what `model_to_train` loads.
        seed: of a fresh adapter's weights.
        ratio_tokens: ids of the tokens whose embeddings are trained too (see `models.prompts.ratio_tokens`).
    """
    from peft import get_peft_model

    attend_in_rows(model)
    if settings.start_from is not None:
        return trainable_adapter(model, settings.start_from, settings.alpha)
    torch.manual_seed(seed)
    return get_peft_model(model, lora_config(settings, ratio_tokens))


def lora_config(settings: TrainingSettings, ratio_tokens: Sequence[int] = ()) -> LoraConfig:
    """The adapter's shape: LoRA on every linear layer of the blocks, as in the paper's recipe, and some embeddings."""
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        trainable_token_indices=list(ratio_tokens) or None,
    )
