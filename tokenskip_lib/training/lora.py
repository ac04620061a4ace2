"""LoRA training on mixed-ratio rows, by peft and transformers' Trainer.

What is ours is how rows are laid out (`packing.py`) and what is written as training goes. One process
or many (`accelerate launch`): an optimiser step takes the same rows.

Source: TokenSkip (arXiv:2502.12067) section 3.3, eq. 5: loss on the response only.
"""

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tokenskip_lib.core.processes import processes
from tokenskip_lib.core.records import InputError, SFTRow
from tokenskip_lib.core.settings import TrainingSettings
from tokenskip_lib.core.store import write_json
from tokenskip_lib.training.packing import (
    IGNORED,
    attend_in_rows,
    encode_rows,
    even_out,
    pack_rows,
    response_loss,
    training_order,
)

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
        InputError: no row is left to train on, the processes cannot share a batch evenly, or the model's
            blocks do not all attend to everything before a token.
    """
    from peft import get_peft_model
    from peft.helpers import disable_input_dtype_casting

    train, too_long = encode_rows([row for row in rows if not row.held_out], tokenizer, settings.max_tokens)
    held_out, held_out_too_long = encode_rows([row for row in rows if row.held_out], tokenizer, settings.max_tokens)
    too_long += held_out_too_long
    if not train:
        raise InputError(
            f"{folder}: no training rows ({len(rows)} given, {too_long} above {settings.max_tokens} tokens)"
        )
    checkpoints = folder / "checkpoints"
    arguments = training_arguments(model, settings, checkpoints, evaluate=bool(held_out), seed=seed)
    attend_in_rows(model)
    torch.manual_seed(seed)
    model = get_peft_model(model, lora_config(settings))
    trainable, total = model.get_nb_trainable_parameters()
    log = _LogWriter(folder / "training_log.jsonl", settings.epochs)
    trainer = _PackedTrainer(
        model=model,
        args=arguments,
        data_collator=pack_rows,
        # Launched processes take as many batches each: what is missing to that would be rows seen before.
        train_dataset=even_out(
            training_order(train, settings.epochs, seed),
            settings.batch_size * arguments.world_size if arguments.world_size > 1 else 1,
        ),
        eval_dataset=held_out or None,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: response_loss(
            outputs.logits, labels, num_items_in_batch
        ),
        callbacks=[log],
    )
    trainer.remove_callback(PrinterCallback)
    last = _last_checkpoint(checkpoints)
    with ExitStack() as stack:
        if arguments.bf16 or arguments.fp16:  # autocast casts the adapter's weights: its inputs stay as they are
            stack.enter_context(disable_input_dtype_casting(model))
        result = trainer.train(resume_from_checkpoint=last)
        final = trainer.evaluate()["eval_loss"] if held_out else None
    summary = {
        "rows_trained": len(train),
        "rows_held_out": len(held_out),
        "rows_too_long": too_long,
        "steps": result.global_step,
        "tokens_an_epoch": sum(len(row) for row in train),
        "trainable_parameters": trainable,
        "all_parameters": total,
        "train_loss": round(_mean_loss(trainer.state.log_history), 4),
        "held_out_loss": round(final, 4) if held_out else None,
        "processes": arguments.world_size,
        "seconds": round(log.seconds(), 1),
        "seed": seed,
        "recipe": settings.model_dump(),
    }
    _save(trainer, folder, base_name)
    if trainer.is_world_process_zero():
        # The summary says that training is done; until it is there, a checkpoint to go on from must be.
        write_json(folder / "summary.json", summary)
        shutil.rmtree(checkpoints)
    trainer.accelerator.wait_for_everyone()
    return summary


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was saved whole: its state is written last."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def _mean_loss(history: Sequence[dict]) -> float:
    """The mean over all steps, from what was logged: Trainer's own begins at the checkpoint of a killed training."""
    steps, losses = zip(*((entry["step"], entry["loss"]) for entry in history if "loss" in entry), strict=True)
    return float(np.average(losses, weights=np.diff(steps, prepend=0)))


def lora_config(settings: TrainingSettings):
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
        rows, size = self.eval_dataset, self.args.per_device_eval_batch_size
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
    model.peft_config["default"].base_model_name_or_path = base_name
    adapter = {name: value.to(torch.bfloat16) for name, value in state.items() if "lora_" in name}
    model.save_pretrained(folder, state_dict=adapter, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card is a form nobody filled in


class _LogWriter(TrainerCallback):
    """Writes every logged loss to JSONL as it comes, shows how far the training is, and counts its seconds."""

    def __init__(self, path: Path, epochs: float):
        self.path = path
        self.epochs = epochs  # the trainer counts the passes over all of them as one
        self.bar = None
        self.before = 0.0  # seconds up to the checkpoint

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def on_train_begin(self, args, state, control, **kwargs):
        self.began, spent = time.perf_counter(), Path(args.output_dir) / "seconds.json"
        if state.global_step and spent.exists():
            self.before = json.loads(spent.read_text())
        if state.is_world_process_zero and self.path.exists():  # what follows the checkpoint is done, and logged, again
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(kept if state.global_step else []), encoding="utf-8")
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="fine-tuning",
            unit="step",
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        # Losses since the last line are in no checkpoint, and after the last step in no line.
        control.should_log |= control.should_save or state.global_step == state.max_steps

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / "seconds.json", self.seconds())

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        kept = {name: logs[name] for name in ("loss", "eval_loss", "learning_rate") if name in (logs or {})}
        if state.is_world_process_zero and ("loss" in kept or "eval_loss" in kept):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = {"step": state.global_step, "epoch": round(state.epoch * self.epochs, 4), **kept}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
