"""Greedy answers at six ratios: `model.generate` in the reference's manner against this repository's engine.

    python -m benchmarks.generation [--quick]

Both sides answer the same problems at the same ratios with the demo's target model. The reference's
manner: batches of 16 in input order, left-padded, one ratio after the other. Ours: all ratios of a
question together, shared beginnings once, finished rows leave. Blocks of problems take turns
(A B A B). In bfloat16 a batch's composition changes a few near-ties: the share of identical texts is
printed, and the accuracy of both sides.
"""

import argparse
import time

import torch
from tqdm import tqdm

from tokenskip_lib.config import load_profile
from tokenskip_lib.evaluation import build_requests
from tokenskip_lib.generation import Request, TransformersEngine
from tokenskip_lib.grading import is_correct, split_output
from tokenskip_lib.models import Target, describe
from tokenskip_lib.problems import load_problems

RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
REFERENCE_BATCH = 16
BUDGET = 256
BLOCKS = 2


@torch.inference_mode()
def reference(target: Target, requests: list[Request]) -> dict:
    """id -> text and number of new tokens, by `generate` in input order."""
    tokenizer, answers = target.tokenizer, {}
    for start in range(0, len(requests), REFERENCE_BATCH):
        batch = requests[start : start + REFERENCE_BATCH]
        inputs = tokenizer(
            [request.prompt for request in batch], padding=True, add_special_tokens=False, return_tensors="pt"
        ).to(target.model.device)
        output = target.model.generate(
            **inputs, do_sample=False, max_new_tokens=BUDGET, pad_token_id=tokenizer.pad_token_id
        )
        for request, ids in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            new = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
            answers[request.id] = tokenizer.decode(new, skip_special_tokens=True), len(new)
    return answers


def ours(engine: TransformersEngine, requests: list[Request]) -> dict:
    return {g.id: (g.text, g.tokens) for batch in engine.generate(requests, label="ours") for g in batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer problems: under 50 seconds on 2 cores")
    quick = parser.parse_args().quick
    profile = load_profile("demo")
    target = Target(profile.target)
    problems = load_problems(profile, "train").problems[: 4 if quick else 128]
    gold = {problem.id: problem.answer for problem in problems}
    engine = TransformersEngine(target.model, target.tokenizer, profile.evaluation.batch_size)
    print(f"{describe(profile.target)}, torch {torch.__version__}")
    seconds, answers, blocks = [0.0, 0.0], ({}, {}), 1 if quick else BLOCKS
    for number in tqdm(range(blocks), desc="blocks"):
        requests = [
            request
            for ratio in RATIOS
            for request in build_requests(
                problems[number::blocks],
                target.tokenizer,
                profile.prompts,
                method="tokenskip",
                ratio=ratio,
                max_new_tokens=BUDGET,
            )
        ]
        sides = (lambda r=requests: reference(target, r), lambda r=requests: ours(engine, r))
        for side, run in enumerate(sides):
            start = time.perf_counter()
            answers[side].update(run())
            seconds[side] += time.perf_counter() - start
    for side, name in enumerate(("reference", "ours")):
        tokens = sum(count for _, count in answers[side].values())
        right = sum(is_correct(split_output(text).prediction, gold[key[0]]) for key, (text, _) in answers[side].items())
        print(
            f"{name}: {len(problems)} problems x {len(RATIOS)} ratios, {tokens} new tokens, {seconds[side]:.1f} s, "
            f"{tokens / seconds[side]:.0f} tokens/s, {100 * right / len(answers[side]):.1f}% correct"
        )
    same = sum(answers[0][key][0] == text for key, (text, _) in answers[1].items()) / len(answers[1])
    print(f"ratio: {seconds[0] / seconds[1]:.1f}x identical: {100 * same:.0f}%")


if __name__ == "__main__":
    main()
