"""LoRA training on mixed-ratio rows, by peft and transformers' Trainer.

This module adds to them how rows are laid out (see `models/packing.py`) and what is written during training.
An optimiser step takes the same rows in one process and in many (`accelerate launch`).

Source: TokenSkip (arXiv:2502.12067) section 3.3, eq. 5: loss on the response only.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from tokenskip_lib.core.processes import only_writers, processes
from tokenskip_lib.core.records import InputError, SFTRow
from tokenskip_lib.core.settings import TrainingSettings
from tokenskip_lib.core.store import file_errors, write_json
from tokenskip_lib.models.packing import IGNORED, EncodedRow, attend_in_rows, pack_rows
from tokenskip_lib.training.log import LogWriter, mean_loss
from tokenskip_lib.training.loss import response_loss
from tokenskip_lib.training.rows import encode_rows, even_out, training_order

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

EVALUATION_SHARE = 0.125  # of all steps, between two measurements of the held-out loss


def train_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[SFTRow],
    settings: TrainingSettings,
    folder: Path,
    *,
    base_name: str,
    seed: int,
) -> dict:
    """Train a LoRA adapter on rows and save it; a killed training continues at its last checkpoint.

    Args:
        model: the target model; its own weights stay as they are.
        rows: training rows and held-out rows together.
        base_name: the base model's public name, written into the adapter instead of a local path.
        folder: receives adapter_model.safetensors, adapter_config.json, training_log.jsonl
            (step, epoch, loss, eval_loss), summary.json, and checkpoints/ until training is done.

    Returns:
        The summary: rows trained and held out, rows too long, steps, tokens, trainable parameters,
        mean training and final held-out loss (nats per response token), processes, seconds of training
        (of killed ones up to the checkpoint that was gone on from), seed and recipe.

    Raises:
        InputError: no row is left to train on, the processes cannot share a batch evenly, the model's blocks do not
            all attend to everything before a token, the folder cannot be written, or another process trains there.
    """
    data = _encode(rows, tokenizer, settings, folder)
    with only_writers(folder), _write_errors(folder):
        return _train(model, data, settings, folder, base_name=base_name, seed=seed)


def _train(
    model: PreTrainedModel, data: _Data, settings: TrainingSettings, folder: Path, *, base_name: str, seed: int
) -> dict:
    """Train, save the adapter and its summary, and return the summary."""
    checkpoints = folder / "checkpoints"
    arguments = training_arguments(model, settings, checkpoints, evaluate=bool(data.held_out), seed=seed)
    adapted = _add_adapter(model, settings, seed)
    log = LogWriter(folder / "training_log.jsonl", settings.epochs)
    trainer = _build_trainer(adapted, arguments, data, settings, log, seed)
    held_out_loss = _run(trainer, adapted, checkpoints)
    trainable, total = adapted.get_nb_trainable_parameters()
    summary = {
        "rows_trained": len(data.train),
        "rows_held_out": len(data.held_out),
        "rows_too_long": data.too_long,
        "steps": trainer.state.global_step,
        "tokens_an_epoch": sum(len(row) for row in data.train),
        "trainable_parameters": trainable,
        "all_parameters": total,
        "train_loss": round(mean_loss(trainer.state.log_history), 4),
        "held_out_loss": None if held_out_loss is None else round(held_out_loss, 4),
        "processes": arguments.world_size,
        "seconds": round(log.seconds(), 1),
        "seed": seed,
        "recipe": settings.model_dump(),
    }
    _save(trainer, folder, base_name)
    if trainer.is_world_process_zero():
        # The summary says that training is done; until the summary is there, the last checkpoint must be.
        write_json(folder / "summary.json", summary)
        shutil.rmtree(checkpoints)
    trainer.accelerator.wait_for_everyone()
    return summary


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Say in one line that a folder cannot be written. torch and safetensors have errors of their own for it."""
    with file_errors(folder):
        try:
            yield
        except (RuntimeError, SafetensorError) as error:
            if "inline_container" in str(error) or "os error" in str(error):
                raise InputError(f"{folder}: cannot be written ({str(error).splitlines()[0]})") from None
            raise


@dataclass(frozen=True)
class _Data:
    """The encoded rows of a training, and how many rows were too long for it."""

    train: list[EncodedRow]
    held_out: list[EncodedRow]
    too_long: int


def _encode(
    rows: Sequence[SFTRow], tokenizer: PreTrainedTokenizerBase, settings: TrainingSettings, folder: Path
) -> _Data:
    train, too_long = encode_rows([row for row in rows if not row.held_out], tokenizer, settings.max_tokens)
    held_out, held_out_too_long = encode_rows([row for row in rows if row.held_out], tokenizer, settings.max_tokens)
    too_long += held_out_too_long
    if not train:
        raise InputError(
            f"{folder}: no training rows ({len(rows)} given, {too_long} above {settings.max_tokens} tokens)"
        )
    return _Data(train, held_out, too_long)


def _add_adapter(model: PreTrainedModel, settings: TrainingSettings, seed: int) -> PeftModel:
    """The model, attending as packed rows need it, with a fresh adapter: the seed's."""
    from peft import get_peft_model

    attend_in_rows(model)
    torch.manual_seed(seed)
    return get_peft_model(model, lora_config(settings))


def _build_trainer(
    model: PeftModel,
    arguments: TrainingArguments,
    data: _Data,
    settings: TrainingSettings,
    log: LogWriter,
    seed: int,
) -> _PackedTrainer:
    # Launched processes take equally many batches each; what is missing would be rows that were seen before.
    multiple = settings.batch_size * arguments.world_size if arguments.world_size > 1 else 1
    trainer = _PackedTrainer(
        model=model,
        args=arguments,
        data_collator=pack_rows,
        train_dataset=even_out(training_order(data.train, settings.epochs, seed), multiple),
        eval_dataset=data.held_out or None,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: response_loss(
            outputs.logits, labels, num_items_in_batch
        ),
        callbacks=[log],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _run(trainer: _PackedTrainer, model: PeftModel, checkpoints: Path) -> float | None:
    """Train, from the last checkpoint if there is one; returns the final held-out loss, None without such rows."""
    from peft.helpers import disable_input_dtype_casting

    with ExitStack() as stack:
        if trainer.args.bf16 or trainer.args.fp16:
            # Autocast casts the adapter's weights; its inputs stay as they are.
            stack.enter_context(disable_input_dtype_casting(model))
        trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
        return trainer.evaluate()["eval_loss"] if trainer.eval_dataset else None


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was saved whole: its state is written last."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def lora_config(settings: TrainingSettings) -> LoraConfig:
    """The adapter's shape: LoRA on every linear layer of the blocks, as in the paper's recipe."""
    from peft import LoraConfig

    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM")


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
        report_to="none",
        disable_tqdm=True,
    )
    # In one process with several GPUs Trainer would split a batch over them, and multiply it: one is used.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class _PackedTrainer(Trainer):
    """Held-out loss as a mean over response tokens, whatever the batches and processes they are spread over."""

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        rows, size = cast(Sequence[EncodedRow], self.eval_dataset), self.args.per_device_eval_batch_size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        model = self.model_wrapped
        model.eval()
        # As many passes in each process (sharded models need all of them); a pass too many counts nothing.
        for first in range(0, len(batches), self.args.world_size):
            position = first + self.args.process_index
            batch = self._prepare_inputs(pack_rows(batches[min(position, len(batches) - 1)]))
            labels = batch.pop("labels")
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = response_loss(model(**batch, use_cache=False).logits, labels, 1)
            if position < len(batches):
                total += torch.stack([loss.double(), (labels != IGNORED).sum()])
        summed, tokens = self.accelerator.reduce(total, "sum").tolist()
        metrics = {"eval_loss": summed / tokens}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _save(trainer: Trainer, folder: Path, base_name: str) -> None:
    """The adapter in bfloat16, which published models are stored in: half the file, on every machine."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered, where it is sharded
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    config = model.peft_config["default"]
    config.base_model_name_or_path = base_name
    config.target_modules = sorted(config.target_modules)  # a set, which peft would write in any order
    adapter = {name: value.to(torch.bfloat16) for name, value in state.items() if "lora_" in name}
    model.save_pretrained(folder, state_dict=adapter, safe_serialization=True, save_embedding_layers=False)
    # safetensors lets nobody else read its file; whoever may read the configuration may read the weights.
    (folder / "adapter_model.safetensors").chmod((folder / "adapter_config.json").stat().st_mode)
    (folder / "README.md").unlink(missing_ok=True)  # peft writes an empty form of a model card
