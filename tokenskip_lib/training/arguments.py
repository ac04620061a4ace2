"""Settings as transformers' Trainer takes them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainingArguments

from tokenskip_lib.core.processes import processes
from tokenskip_lib.core.records import InputError
from tokenskip_lib.core.settings import TrainingSettings

EVALUATION_SHARE = 0.125  # of all steps, between two measurements of the held-out loss


def training_arguments(
    model: PreTrainedModel, settings: TrainingSettings, checkpoints: Path, *, evaluate: bool, seed: int
) -> TrainingArguments:
    """Settings as transformers' Trainer takes them; processes share the accumulation, never add to the batch."""
    weights = next(model.parameters())
    on_cuda = weights.device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(weights.device)  # where Trainer puts the model
    sharing = processes()
    if settings.accumulation % sharing:
        raise InputError(
            f"training.accumulation: {sharing} processes cannot share an accumulation of {settings.accumulation} "
            f"evenly; keep the {settings.batch_size * settings.accumulation} rows of an optimiser step with a smaller "
            "training.batch_size and a larger training.accumulation"
        )
    checkpointing = on_cuda if settings.checkpointing is None else settings.checkpointing
    # An older transformers knows the same setting by another name.
    known = {field.name for field in fields(TrainingArguments)}
    prefix = "activation" if "activation_checkpointing" in known else "gradient"
    memory: dict[str, Any] = {
        f"{prefix}_checkpointing": checkpointing,
        f"{prefix}_checkpointing_kwargs": {"use_reentrant": False} if checkpointing else None,
    }
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        seed=seed,
        num_train_epochs=1,  # the rows come in the order of all epochs
        train_sampling_strategy="sequential",
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation // sharing,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,  # below 1 it is a share of all steps
        bf16=weights.dtype == torch.bfloat16,
        fp16=on_cuda and weights.dtype == torch.float16,  # scales the loss: small gradients are 0 in float16
        use_cpu=not on_cuda,
        **memory,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=on_cuda,
        remove_unused_columns=False,
        logging_steps=settings.log_every,
        logging_first_step=True,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=EVALUATION_SHARE,
        save_steps=settings.save_every,
        save_total_limit=1,
        report_to=list(settings.report_to) or "none",
        run_name=f"{checkpoints.parent.parent.name}/{checkpoints.parent.name}",
        project="tokenskip",
        disable_tqdm=True,
    )
    # In one process with several GPUs Trainer would split a batch over them, and multiply it: one is used.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def need_trackers(report_to: Sequence[str]) -> None:
    """Raise InputError for a tracker whose package is missing."""
    for name in report_to:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"training.report_to: {name} is not installed; pip install {name}")
