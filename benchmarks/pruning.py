"""Pruning in llmlingua mode against llmlingua itself: the same model, the same texts, the same bytes.

    python -m benchmarks.pruning [--quick]

Both sides compress the same chains of thought at five ratios with one classifier of XLM-R-large's
shape (24 layers of 1024; random weights and a small vocabulary, which change nothing of the work
per token). The reference's way: one PromptCompressor call a chain and ratio, padded to 512. Ours:
one forward pass a chain. Blocks of chains take turns (A B A B), and outputs are compared.

Chains are Qwen2.5-7B's, from the folder TOKENSKIP_DATA names; without it, gsm_symbolic's worked
solutions stand in, and the lines say so.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedModel

from benchmarks.classifiers import place_gpt_vocabulary, write_classifier
from benchmarks.machine import timed
from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.records import ChainText
from tokenskip_lib.core.windows import WINDOW, windows
from tokenskip_lib.experiments.costs import matrix_product_flops
from tokenskip_lib.models.loading import TargetModel
from tokenskip_lib.models.tokens import batch_token_counter
from tokenskip_lib.problems.grading import split_output
from tokenskip_lib.problems.sets import load_problems
from tokenskip_lib.pruning.controls import RandomScorer
from tokenskip_lib.pruning.llmlingua_mode import LLMLinguaPruner
from tokenskip_lib.pruning.prune import prune_many

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5)
XLM_R_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "initializer_range": 0.02,  # the config's default: with larger weights all tokens score alike
}
BLOCKS = 4


class ForwardClock:
    """Seconds inside a model's forward pass, and the tokens that went through it, while `counting`."""

    def __init__(self, model: PreTrainedModel):
        self.counting = False
        self.seconds, self.tokens, self.attended, self._start = 0.0, 0, 0, 0.0
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end)

    def _begin(self, model, args, inputs):
        if self.counting:
            rows, width = inputs["input_ids"].shape
            self.tokens += rows * width
            self.attended += rows * width * width
        self._start = time.perf_counter()

    def _end(self, model, args, output):
        if self.counting:
            self.seconds += time.perf_counter() - self._start


def real_chains() -> tuple[str, list[ChainText]]:
    """Qwen2.5-7B's chains of GSM8K test, where their folder is known."""
    folder = os.environ.get("TOKENSKIP_DATA")
    if not folder:
        return "gsm_symbolic solutions (TOKENSKIP_DATA is unset)", demo_chains()
    with (Path(folder) / "qwen2.5-7b_gsm8k_chains.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    chains = [ChainText(id=row["id"], chain=split_output(row["output"]).chain.rstrip()) for row in rows]
    return "Qwen2.5-7B chains", [chain for chain in chains if chain.chain]


def demo_chains() -> list[ChainText]:
    """Worked solutions of the demo's problems: what its target model was taught to write."""
    problems = load_problems(load_profile("demo"), "train").problems
    return [ChainText(id=problem.id, chain=problem.solution) for problem in problems]


def spread(chains: Sequence[ChainText], number: int) -> list[ChainText]:
    """`number` chains from all over the list."""
    return list(chains[:: max(1, len(chains) // number)][:number])


def ours(pruner: LLMLinguaPruner, chains: Sequence[ChainText]) -> list[str]:
    return [pruner.compress(reading, ratio) for reading in pruner.read(chains) for ratio in RATIOS]


def model_flops(model: PreTrainedModel, tokens: int, attended: int) -> float:
    """Multiplications and additions of the blocks' matrix products; `attended` is the sum of rows x width^2."""
    config = model.config
    weights = sum(p.numel() for p in model.base_model.encoder.parameters() if p.dim() == 2)
    return 2 * weights * tokens + 4 * config.num_hidden_layers * config.hidden_size * attended


def compare(label: str, chains: Sequence[ChainText], reference, models: dict[str, PreTrainedModel], tokenizer) -> str:
    """Print one comparison; returns its summary line."""
    pruners = {name: LLMLinguaPruner(model, tokenizer) for name, model in models.items()}
    clocks = {name: ForwardClock(model) for name, model in models.items()}
    seconds = dict.fromkeys(["reference", *models], 0.0)
    same = dict.fromkeys(models, 0)
    blocks = min(BLOCKS, len(chains))
    for number in tqdm(range(blocks), desc=label, unit="block"):
        block = chains[number::blocks]
        spent, expected = timed(
            lambda block=block: [
                reference.compress_prompt(chain.chain, rate=ratio)["compressed_prompt"]
                for chain in block
                for ratio in RATIOS
            ]
        )
        seconds["reference"] += spent
        for name, pruner in pruners.items():
            clocks[name].counting = True  # the reference calls the float32 model as well
            spent, texts = timed(lambda pruner=pruner, block=block: ours(pruner, block))
            clocks[name].counting = False
            seconds[name] += spent
            same[name] += sum(a == b for a, b in zip(texts, expected, strict=True))
    calls = len(chains) * len(RATIOS)
    print(f"{label}: {len(chains)} chains x {len(RATIOS)} ratios")
    print(
        f"  reference, float32: {seconds['reference']:.1f} s, {seconds['reference'] / calls:.2f} s a call of 512 tokens"
    )
    for name, model in models.items():
        inside, tokens = clocks[name].seconds, clocks[name].tokens
        rate, top = model_flops(model, tokens, clocks[name].attended) / inside, matrix_product_flops(model.dtype)
        print(
            f"  ours, {name}: {seconds[name]:.1f} s, {seconds['reference'] / seconds[name]:.1f}x, "
            f"identical {same[name]}/{calls}; {tokens / len(chains):.0f} padded tokens a chain, "
            f"{tokens / seconds[name]:.0f} tokens/s; "
            f"{100 * inside / seconds[name]:.1f}% forward pass, {100 - 100 * inside / seconds[name]:.1f}% the rest; "
            f"{rate / 1e9:.0f} of {top / 1e9:.0f} GFLOP/s ({100 * rate / top:.0f}%)"
        )
    return f"ratio: {seconds['reference'] / seconds['float32']:.1f}x identical: {same['float32']}/{calls}"


def scaling(chains: Sequence[ChainText], folder: Path, small: int) -> None:
    """Ten times the chains: what it costs in time and in memory, with a small classifier so that our part shows."""
    path = write_classifier("xlm-roberta", folder, [c.chain for c in chains], hidden_size=128, intermediate_size=512)
    model = AutoModelForTokenClassification.from_pretrained(path).eval()
    pruner = LLMLinguaPruner(model, AutoTokenizer.from_pretrained(path))

    def stream(number: int) -> float:
        many = (ChainText(id=str(i), chain=chains[i % small].chain) for i in range(number))  # the same work, ten times
        start = time.perf_counter()
        for window in windows(many):
            ours(pruner, window)
        return time.perf_counter() - start

    stream(small)  # the caches of a first run are no part of the comparison
    few, before = stream(small), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many, after = stream(10 * small), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"scaling, a classifier of 2 layers: {small} chains {few:.1f} s, {10 * small} chains {many:.1f} s: "
        f"{many / few:.1f}x the time; peak memory grew by {(after - before) / 1024:.0f} MB"
    )


def prune_scored(chains: Sequence[ChainText], number: int) -> None:
    """The default mode without any model: scored chains to five ratios each, ratios counted in target tokens."""
    count_tokens = batch_token_counter(TargetModel(load_profile("demo").target).tokenizer)
    many = [ChainText(id=str(i), chain=chains[i % len(chains)].chain) for i in range(number)]
    scored = RandomScorer(0).score(many)
    start = time.perf_counter()
    pruned = [
        record
        for begin in range(0, number, WINDOW)
        for record in prune_many(scored[begin : begin + WINDOW], RATIOS, count_tokens=count_tokens)
    ]
    spent = time.perf_counter() - start
    off = sum(abs(p.tokens - round(p.ratio * p.original_tokens)) > 1 for p in pruned)
    tokens = sum(p.original_tokens for p in pruned) / len(pruned)
    print(
        f"default mode: {number} scored chains of {tokens:.0f} tokens x {len(RATIOS)} ratios in {spent:.1f} s; "
        f"{off} of {len(pruned)} more than a token off their ratio"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer chains: under 50 seconds on 2 cores")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(folder) / "gpt")
        place_gpt_vocabulary(Path(folder) / "gpt")
        from llmlingua import PromptCompressor  # it asks for the vocabulary at once

        name, chains = real_chains()
        path = write_classifier(
            "xlm-roberta", Path(folder), [chain.chain for chain in chains], vocabulary=4000, **XLM_R_LARGE
        )
        reference = PromptCompressor(str(path), device_map="cpu", use_llmlingua2=True)
        low = AutoModelForTokenClassification.from_pretrained(path, dtype=torch.bfloat16).eval()
        # One float32 model for both sides: half the memory, and no doubt about the weights.
        models = {"float32": reference.model, "bfloat16": low}
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        if not quick:
            short = spread(demo_chains(), 20)
            compare(
                "gsm_symbolic solutions, as short as the demo's chains", short, reference, models, reference.tokenizer
            )
        scaling(chains, Path(folder) / "small", 13 if quick else 260)
        prune_scored(chains, 500 if quick else 10_000)
        print(compare(name, spread(chains, 2 if quick else 100), reference, models, reference.tokenizer))


if __name__ == "__main__":
    main()
