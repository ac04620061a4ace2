"""LoRA training on mixed-ratio rows, by peft and transformers' Trainer.

This module adds to them how rows are laid out (see `models/packing.py`) and what is written during training.
An optimiser step takes the same rows in one process and in many (`accelerate launch`).

Source: TokenSkip (arXiv:2502.12067) section 3.3, eq. 5: loss on the response only.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.integrations import TensorBoardCallback

from tokenskip_lib.core.processes import only_writers
from tokenskip_lib.core.records import InputError, SFTRow
from tokenskip_lib.core.settings import PromptSettings, TrainingSettings
from tokenskip_lib.core.store import file_errors, write_json, write_whole
from tokenskip_lib.models.adapters import find_adapter
from tokenskip_lib.models.packing import IGNORED, EncodedRow, pack_rows
from tokenskip_lib.models.prompts import ratio_tokens
from tokenskip_lib.models.standalone import included, plain_adapter, save_adapter
from tokenskip_lib.training.arguments import need_trackers, training_arguments
from tokenskip_lib.training.log import LogWriter, mean_loss
from tokenskip_lib.training.loss import response_loss
from tokenskip_lib.training.rows import encode_rows, even_out, training_order
from tokenskip_lib.training.start import add_adapter, check_start

if TYPE_CHECKING:
    from peft import PeftModel


def train_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[SFTRow],
    settings: TrainingSettings,
    folder: Path,
    *,
    base_name: str,
    seed: int,
    target: Path | str | None = None,
    prompts: PromptSettings | None = None,
    card: Callable[[dict], str] | None = None,
) -> dict:
    """Train a LoRA adapter on rows and save it; a killed training continues at its last checkpoint.

    The saved adapter includes the target model's adapter, so the base model needs no other.

    Args:
        model: what `model_to_train` loads; its own weights stay as they are.
        rows: training rows and held-out rows together.
        base_name: the base model's public name, written into the adapter instead of a local path.
        folder: receives adapter_model.safetensors, adapter_config.json, generation_config.json, training_log.jsonl
            (step, epoch, loss, eval_loss), README.md, summary.json, and checkpoints/ until training is done.
        target: the target model's adapter; None: the base model is the target model.
        prompts: what the rows were built with. With marker `token`, the embeddings of the ratio tokens are trained too.
        card: summary -> the text of README.md, the model card; None: no card.

    Returns:
        The summary: rows trained and held out, rows too long, steps, tokens, trainable parameters,
        mean training and final held-out loss (nats per response token), processes, seconds of training
        (of killed ones up to the checkpoint that was gone on from), seed and recipe.

    Raises:
        InputError: no row is left to train on, the processes cannot share a batch evenly, the model's blocks do not
            all attend to everything before a token, the folder cannot be written, another process trains there, the
            target's adapter is no plain LoRA adapter, the adapter to start from has another rank than the settings,
            training.start_from is set with marker `token`, or a package of training.report_to is missing.
    """
    if target is not None:
        plain_adapter(target)
    check_start(settings, prompts)
    tokens = [] if prompts is None else ratio_tokens(tokenizer, prompts, {row.ratio for row in rows})
    need_trackers(settings.report_to)
    data = _encode(rows, tokenizer, settings, folder)
    with only_writers(folder), _write_errors(folder):
        trainer, summary = _train(model, data, settings, folder, seed=seed, tokens=tokens)
        _save(trainer, folder, base_name, target, settings.start_from)
        if trainer.is_world_process_zero():
            generation_config(model.generation_config, tokenizer).save_pretrained(folder)
            if card is not None:
                write_whole(folder / "README.md", card(summary).encode())
            # The summary says that training is done; until the summary is there, the last checkpoint must be.
            write_json(folder / "summary.json", summary)
            shutil.rmtree(folder / "checkpoints")
        trainer.accelerator.wait_for_everyone()
    return summary


def _train(
    model: PreTrainedModel,
    data: _Data,
    settings: TrainingSettings,
    folder: Path,
    *,
    seed: int,
    tokens: Sequence[int],
) -> tuple[_PackedTrainer, dict]:
    """Train; returns what has trained, and the summary."""
    checkpoints = folder / "checkpoints"
    arguments = training_arguments(model, settings, checkpoints, evaluate=bool(data.held_out), seed=seed)
    adapted = add_adapter(model, settings, seed, tokens)
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
    return trainer, summary


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
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(log.path.parent / "tensorboard")  # its default is removed with the checkpoints
    return trainer


def _run(trainer: _PackedTrainer, model: PeftModel, checkpoints: Path) -> float | None:
    """Train, from the last checkpoint if there is one; returns the final held-out loss, None without such rows."""
    from peft.helpers import disable_input_dtype_casting

    with ExitStack() as stack:
        if trainer.args.bf16 or trainer.args.fp16:
            # Autocast casts the adapter's weights; its inputs stay as they are.
            stack.enter_context(disable_input_dtype_casting(model))
        trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
        if not trainer.eval_dataset:
            return None
        # Trainer itself measures after the last step, but a training that was killed there has no such line.
        lines = [line for line in trainer.state.log_history if line["step"] == trainer.state.global_step]
        measured = [line["eval_loss"] for line in lines if "eval_loss" in line]
        return measured[-1] if measured else trainer.evaluate()["eval_loss"]


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was saved whole: its state is written last."""
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


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


def _save(trainer: Trainer, folder: Path, base_name: str, target: Path | str | None, start_from: str | None) -> None:
    """The adapter in bfloat16, which published models are stored in: half the file, on every machine."""
    from peft import get_peft_model_state_dict

    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered, where it is sharded
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path = base_name
    trained = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    weights = {name: value.to(torch.bfloat16) for name, value in trained.items()}
    includes = None if start_from is None else included(find_adapter(start_from))
    save_adapter(folder, config, weights, target, includes)


def generation_config(base: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Greedy decoding, as the engine decodes, with the base model's end tokens, or the tokenizer's if it has none."""
    ends = None if base is None else base.eos_token_id
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=tokenizer.pad_token_id,
    )
