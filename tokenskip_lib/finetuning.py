"""Mixed-ratio training rows, and the LoRA training that learns from them (peft + trl).

Source: TokenSkip (arXiv:2502.12067) section 3.3, eq. 5: one ratio drawn per problem, loss on the
response only.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback

from tokenskip_lib.config import PromptSettings, TrainingSettings, nearest
from tokenskip_lib.prompts import answer_tail, build_prompt, encode_completion, encode_prompt, user_message
from tokenskip_lib.records import InputError, Problem, PrunedChain, SFTRow

if TYPE_CHECKING:
    from peft import LoraConfig

EXPORT_STYLES = ("trl", "llamafactory")


def draw_ratios(ids: Sequence[str], ratios: Sequence[float], seed: int) -> dict[str, float]:
    """One ratio per problem, uniform over `ratios`, the same for the same ids and seed."""
    generator = random.Random(seed)
    return {problem_id: generator.choice(list(ratios)) for problem_id in ids}


def build_sft_rows(
    pruned: Iterable[PrunedChain],
    problems: dict[str, Problem],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    *,
    held_out: float,
    seed: int,
) -> list[SFTRow]:
    """`question marker -> pruned chain, answer`, one row per pruned chain.

    Args:
        pruned: the chains to learn from, each at the ratio its row will ask for.
        problems: id -> problem, for the question and the gold answer.
        held_out: share of the rows kept out of training, to measure the loss on.

    Source: TokenSkip section 3.3; the response is the pruned chain and the untouched answer.
    """
    pruned = list(pruned)
    order = list(range(len(pruned)))
    random.Random(seed).shuffle(order)
    out = set(order[: round(held_out * len(pruned))])
    rows = []
    for index, chain in enumerate(pruned):
        problem = problems[chain.id]
        prompt = build_prompt(tokenizer, problem.question, prompts, method="tokenskip", ratio=chain.ratio)
        completion = chain.text + answer_tail(problem.answer)
        rows.append(SFTRow(id=chain.id, ratio=chain.ratio, prompt=prompt, completion=completion, held_out=index in out))
    return rows


def encode_rows(
    rows: Iterable[SFTRow], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[dict[str, list[int]]], int]:
    """Token ids and labels of rows; -100 on the prompt, so that the loss is on the response only.

    Returns:
        The encoded rows, and how many were left out because they exceed `max_tokens`.
    """
    encoded, too_long = [], 0
    for row in rows:
        prompt = encode_prompt(tokenizer, row.prompt)
        completion = encode_completion(tokenizer, row.completion)
        if len(prompt) + len(completion) > max_tokens:
            too_long += 1
            continue
        encoded.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return encoded, too_long


def export_rows(
    rows: Sequence[SFTRow],
    problems: dict[str, Problem],
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSettings,
    style: str,
    folder: Path,
) -> list[Path]:
    """Write training rows for another trainer: train.jsonl, and held_out.jsonl where rows are held out.

    Args:
        style: "trl" (prompt and completion; messages for a chat template, plain text for the
            reference's literal formats) or "llamafactory" (alpaca fields, and dataset_info.json).

    Raises:
        InputError: another style.
    """
    if style not in EXPORT_STYLES:
        raise InputError(f"unknown format '{style}'{nearest(style, list(EXPORT_STYLES))}")
    folder.mkdir(parents=True, exist_ok=True)
    written, info = [], {}
    for name, held_out in (("train", False), ("held_out", True)):
        lines = []
        for row in rows:
            if row.held_out != held_out:
                continue
            request = user_message(
                tokenizer, problems[row.id].question, prompts, method="tokenskip", ratio=row.ratio
            )  # fmt: skip
            if style == "llamafactory":
                fields = {"instruction": request, "input": "", "output": row.completion, "system": prompts.system}
            elif prompts.format == "chat":
                system = {"role": "system", "content": prompts.system}
                fields = {
                    "prompt": [system, {"role": "user", "content": request}],
                    "completion": [{"role": "assistant", "content": row.completion}],
                }
            else:
                fields = {"prompt": row.prompt, "completion": row.completion}
            lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
        if lines:
            written.append(folder / f"{name}.jsonl")
            written[-1].write_text("".join(lines), encoding="utf-8")
            columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
            info[f"tokenskip_{name}"] = {"file_name": f"{name}.jsonl", "columns": columns}
    if style == "llamafactory":
        written.append(folder / "dataset_info.json")
        written[-1].write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return written


def lora_config(settings: TrainingSettings) -> LoraConfig:
    """The adapter that a training's settings describe: on every linear layer but the output's."""
    from peft import LoraConfig

    return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", task_type="CAUSAL_LM")


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
        final losses (nats per response token), seconds of this process.

    Raises:
        InputError: no row is left to train on.
    """
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    train, too_long = encode_rows([row for row in rows if not row.held_out], tokenizer, settings.max_tokens)
    held_out, held_out_too_long = encode_rows([row for row in rows if row.held_out], tokenizer, settings.max_tokens)
    too_long += held_out_too_long
    if not train:
        raise InputError(
            f"{folder}: no training rows ({len(rows)} given, {too_long} above {settings.max_tokens} tokens)"
        )
    checkpoints = folder / "checkpoints"
    on_cuda = next(model.parameters()).device.type == "cuda"
    bf16 = next(model.parameters()).dtype == torch.bfloat16
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        seed=seed,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=max(settings.batch_size, 8),
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,  # below 1 it is a share of all steps
        max_length=settings.max_tokens,
        # Weights are bfloat16 already; autocast would only add casts on a CPU.
        bf16=bf16 and on_cuda,
        use_cpu=not on_cuda,
        activation_checkpointing=on_cuda,
        train_sampling_strategy="group_by_length",
        dataloader_pin_memory=on_cuda,
        logging_steps=settings.log_every,
        logging_first_step=True,
        eval_strategy="steps" if held_out else "no",
        eval_steps=0.125,  # below 1 it is a share of all steps
        save_steps=settings.save_every,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(seed)
    model = get_peft_model(model, lora_config(settings))
    trainable, total = model.get_nb_trainable_parameters()

    class ResponseTrainer(SFTTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return _response_loss(model, inputs, num_items_in_batch)

    trainer = ResponseTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        callbacks=[_LogWriter(folder / "training_log.jsonl")],
    )
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    result = trainer.train(resume_from_checkpoint=last)
    final = trainer.evaluate() if held_out else {}
    _save(model, folder, base_name)
    summary = {
        "rows_trained": len(train),
        "rows_held_out": len(held_out),
        "rows_too_long": too_long,
        "steps": result.global_step,
        "tokens_an_epoch": sum(len(row["input_ids"]) for row in train),
        "trainable_parameters": trainable,
        "all_parameters": total,
        "train_loss": round(result.training_loss, 4),
        "held_out_loss": round(final["eval_loss"], 4) if held_out else None,
        "seconds": round(result.metrics["train_runtime"], 1),
    }
    # The summary says that training is done; until it is there, a checkpoint to go on from must be.
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(checkpoints)
    return summary


def _save(model, folder: Path, base_name: str) -> None:
    """The adapter in the base model's dtype, which it is merged in anyway: half the file in bfloat16."""
    dtype = next(parameter for parameter in model.parameters() if not parameter.requires_grad).dtype
    model.peft_config["default"].base_model_name_or_path = base_name
    model.to(dtype).save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's model card is a form nobody filled in


def _response_loss(model, inputs: dict, num_items_in_batch=None):
    """Mean cross-entropy over response tokens, the output layer run on their columns only.

    The vocabulary is most of a small model's work, and prompts are half of every row.
    """
    import torch

    labels = inputs["labels"]
    first = int((labels != -100).any(0).nonzero()[0]) - 1  # the column that predicts the first response token
    columns = torch.arange(first, labels.shape[1] - 1, device=labels.device)
    logits = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=columns, use_cache=False
    ).logits
    targets = labels[:, first + 1 :]
    response = targets != -100
    total = torch.nn.functional.cross_entropy(logits[response].float(), targets[response], reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else response.sum())


class _LogWriter(TrainerCallback):
    """Writes every logged loss to JSONL as it comes, and shows how far the training is."""

    def __init__(self, path: Path):
        self.path = path
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if self.path.exists():  # steps after the checkpoint are done, and logged, again
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(kept if state.global_step else []), encoding="utf-8")
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="fine-tuning", unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()

    def on_log(self, args, state, control, logs=None, **kwargs):
        kept = {name: logs[name] for name in ("loss", "eval_loss", "learning_rate") if name in (logs or {})}
        if "loss" in kept or "eval_loss" in kept:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, "epoch": round(state.epoch, 4), **kept}) + "\n")
