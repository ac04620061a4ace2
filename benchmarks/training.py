"""LoRA training on mixed-ratio rows: the plain way of the authors' code against this library's.

    python -m benchmarks.training [--quick] [--against [REVISION]]

Both sides train an adapter of the same shape and start on the demo's target model, on the same rows
in the same optimiser steps of 8: worked solutions of gsm_symbolic, each pruned at six ratios. The plain way takes
one row at a time, accumulates eight, and computes logits of every position. This library packs the rows of a step,
computes once what rows share, and computes logits of the response alone. The sides take turns (A B A B) on blocks
of problems, and the loss of every step is compared.

With --against, the other side is this library as it was at a revision of git (9bda3b6 or later; the commit before if
none is named).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profile_operations
from transformers import PreTrainedModel, Trainer

from benchmarks import train_once
from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import ChainText, InputError, Problem, SFTRow
from tokenskip_lib.core.settings import TrainingSettings
from tokenskip_lib.experiments.costs import matrix_product_flops
from tokenskip_lib.models.loading import TargetModel, describe, load_model
from tokenskip_lib.models.packing import IGNORED, EncodedRow, attend_in_rows, pack_rows
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.problems.sets import load_problems
from tokenskip_lib.pruning.controls import RandomScorer
from tokenskip_lib.pruning.prune import prune_many
from tokenskip_lib.training.arguments import training_arguments
from tokenskip_lib.training.loss import response_loss
from tokenskip_lib.training.rows import build_sft_rows, encode_rows, training_order
from tokenskip_lib.training.start import lora_config

RATIOS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BLOCKS = 2
STEP_ROWS = 8
SEED = 0
SAME = 0.02  # nats a response token: what bfloat16 may move a step's loss by


def training_rows(problems: list[Problem], target: TargetModel, prompts, *, every: bool) -> list[SFTRow]:
    """Worked solutions pruned by chance, which costs no model: all ratios of a problem, or one each."""
    chains = [ChainText(id=problem.id, chain=problem.solution) for problem in problems]
    count_tokens = batch_token_counter(target.tokenizer)
    pruned = prune_many(RandomScorer(SEED).score(chains), RATIOS, count_tokens=count_tokens)
    if not every:
        pruned = [pruned[index * len(RATIOS) + index % len(RATIOS)] for index in range(len(chains))]
    by_id = {problem.id: problem for problem in problems}
    return build_sft_rows(pruned, by_id, target.tokenizer, prompts, held_out=0, seed=SEED)


def plain_row(rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
    """One row as any trainer takes it."""
    [row] = rows
    ids, labels = row.prompt + row.completion, [IGNORED] * len(row.prompt) + row.completion
    return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}


def reference(model: PreTrainedModel, tokenizer, rows: list[SFTRow], settings: TrainingSettings, folder: Path):
    """Losses of every step and seconds, by transformers' Trainer at batch 1 x 8."""
    settings = settings.model_copy(update={"batch_size": 1, "accumulation": STEP_ROWS})
    arguments = training_arguments(model, settings, folder, evaluate=False, seed=SEED)
    arguments.save_strategy = "no"
    torch.manual_seed(SEED)
    encoded, _ = encode_rows(rows, tokenizer, settings.max_tokens)
    trainer = Trainer(
        model=get_peft_model(model, lora_config(settings)),
        args=arguments,
        data_collator=plain_row,
        train_dataset=training_order(encoded, settings.epochs, SEED),
    )
    start = time.perf_counter()
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line], time.perf_counter() - start


def flops(model: PreTrainedModel, batches: list[dict[str, torch.Tensor]]) -> float:
    """Matrix-product work of a training pass: forward, and the same again for the inputs' gradients.

    Frozen weights need no gradient of their own; the adapter's work is left out. Attention is causal,
    over the padded rows, and its gradient is twice its work.
    """
    config = model.config
    head = model.get_output_embeddings().weight.numel()
    blocks = sum(p.numel() for p in model.base_model.layers.parameters() if p.dim() == 2)
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    total = 0.0
    for batch in batches:
        tokens, kept = batch["input_ids"].shape[1], len(batch["logits_to_keep"])
        total += (
            4 * blocks * tokens + 4 * head * kept + 3 * 2 * width * batch["paths"].numel() * batch["paths"].shape[1]
        )
    return total


def where_time_goes(model: PreTrainedModel, settings: TrainingSettings, batch: dict[str, torch.Tensor]) -> str:
    """Shares of one step of ours, by kind of operation: what keeps it from the matrix product's peak."""
    attend_in_rows(model)
    model = get_peft_model(model, lora_config(settings))
    labels = batch.pop("labels")

    def step() -> None:
        response_loss(model(**batch, use_cache=False).logits, labels).backward()

    with (
        disable_input_dtype_casting(model),
        torch.autocast("cpu", torch.bfloat16, enabled=model.dtype != torch.float32),
    ):
        step()
        with profile_operations(activities=[ProfilerActivity.CPU]) as profiled:
            step()
    spent = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    kinds = {
        "linear layers, adapters too": ["aten::mm"],
        "attention's products": ["aten::bmm"],
        "copies and casts": ["aten::copy_", "aten::fill_", "aten::index_select", "aten::embedding_dense_backward"],
        "softmaxes": [name for name in spent if "softmax" in name and name.startswith("aten::")],
    }
    total = sum(spent.values())
    shares = {kind: sum(spent.get(name, 0) for name in names) / total for kind, names in kinds.items()}
    shares["element by element, and between operations"] = 1 - sum(shares.values())
    return ", ".join(f"{kind} {100 * share:.0f}%" for kind, share in shares.items())


def compare(label: str, problems: list[Problem], *, every: bool, blocks: int) -> str:
    """Print one comparison; returns its summary line.

    Raises:
        InputError: fewer problems than blocks.
    """
    if len(problems) < max(1, blocks):
        raise InputError(f"{label}: {len(problems)} problems are too few for {blocks} blocks")
    profile = load_profile("demo")
    target = TargetModel(profile.target)
    settings = profile.training.model_copy(
        update={"epochs": 1, "batch_size": STEP_ROWS, "accumulation": 1, "log_every": 1}
    )
    rows = training_rows(problems, target, profile.prompts, every=every)
    seconds: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    work, steps = 0.0, []
    sides: dict[str, Callable] = {"reference": reference, "ours": train_once.train}
    for number in range(blocks):
        ids = {problem.id for problem in problems[number::blocks]}
        block = [row for row in rows if row.id in ids]
        encoded, _ = encode_rows(block, target.tokenizer, settings.max_tokens)
        order = training_order(encoded, settings.epochs, SEED)
        steps = [pack_rows(order[start : start + STEP_ROWS]) for start in range(0, len(order), STEP_ROWS)]
        work += flops(target.model, steps)
        for name, run in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                made, spent = run(load_model(profile.target), target.tokenizer, block, settings, Path(folder))
            losses.setdefault(name, []).extend(made)
            seconds[name] = seconds.get(name, 0.0) + spent
    encoded, _ = encode_rows(rows, target.tokenizer, settings.max_tokens)
    response, everything = sum(len(row.completion) for row in encoded), sum(map(len, encoded))
    print(f"{label}: {len(problems)} problems, {len(rows)} rows, {everything} tokens, {response} of them response")
    for name, spent in seconds.items():
        mean = sum(losses[name]) / len(losses[name])
        print(
            f"  {name}: {spent:.1f} s, {response / spent:.0f} response tokens/s, {everything / spent:.0f} tokens/s; "
            f"mean loss {mean:.4f} over {len(losses[name])} steps, {losses[name][-1]:.4f} in the last"
        )
    top = matrix_product_flops(target.model.dtype)
    print(
        f"  ours: {work / seconds['ours'] / 1e9:.0f} of {top / 1e9:.0f} GFLOP/s, the matrix product's peak here "
        f"({100 * work / seconds['ours'] / top:.0f}%)"
    )
    print(f"  one step of ours: {where_time_goes(load_model(profile.target), settings, steps[0])}")
    same = sum(abs(a - b) <= SAME for a, b in zip(losses["reference"], losses["ours"], strict=True))
    ratio = seconds["reference"] / seconds["ours"]
    return f"ratio: {ratio:.1f}x identical: {100 * same / len(losses['ours']):.0f}%"


def compare_with_revision(revision: str, problems: list[Problem], turns: int) -> str:
    """Print a comparison of this library with itself at another revision; returns its summary line.

    Raises:
        InputError: git cannot check the revision out.
    """
    profile = load_profile("demo")
    rows = training_rows(problems, TargetModel(profile.target), profile.prompts, every=True)
    here = Path(__file__).resolve().parents[1]
    seconds: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (given := Path(folder, "rows.jsonl")).write_text("".join(f"{row.model_dump_json()}\n" for row in rows))
        there = Path(folder, "checkout")
        made = subprocess.run(
            ["git", "worktree", "add", "--detach", there, revision], cwd=here, capture_output=True, text=True
        )
        if made.returncode:
            raise InputError(f"--against {revision}: {made.stderr.strip().splitlines()[-1]}")
        try:
            for name, checkout in [(revision, there), ("this", here)] * turns:
                command = [sys.executable, here / "benchmarks" / "train_once.py", given]
                done = subprocess.run(
                    command, env=os.environ | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True, check=True
                )
                found = json.loads(done.stdout.splitlines()[-1])
                seconds[name] = seconds.get(name, 0.0) + found["seconds"]
                losses[name] = found["losses"]
                print(f"  {name}: {found['seconds']:.1f} s, loss {found['losses'][-1]:.4f} in the last step")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", there], cwd=here, check=True)
    same = sum(abs(a - b) <= SAME for a, b in zip(losses[revision], losses["this"], strict=True))
    means = " and ".join(f"{sum(found) / len(found):.4f} ({name})" for name, found in losses.items())
    print(f"{len(rows)} rows, {len(losses['this'])} steps, mean loss {means}")
    return f"ratio: {seconds[revision] / seconds['this']:.2f}x identical: {100 * same / len(losses['this']):.0f}%"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer problems: under 50 seconds on 2 cores")
    parser.add_argument(
        "--against", metavar="REVISION", nargs="?", const="HEAD~1",
        help="compare with this library at a revision of git; without a name, at the commit before",
    )  # fmt: skip
    given = parser.parse_args()
    quick = given.quick
    profile = load_profile("demo")
    problems = load_problems(profile, "train").problems
    print(f"{describe(profile.target)}, torch {torch.__version__}")
    if given.against:
        print(compare_with_revision(given.against, problems[: 3 if quick else 32], turns=1 if quick else 2))
        return
    if not quick:
        print("  " + compare("one ratio a problem, as in the paper", problems[:128], every=False, blocks=BLOCKS))
    number, blocks = (3, 1) if quick else (64, BLOCKS)
    print(compare("all six ratios of a problem", problems[:number], every=True, blocks=blocks))


if __name__ == "__main__":
    main()
