"""Greedy answers at six ratios: `model.generate` as the authors' code calls it against this library's engine.

    python -m benchmarks.generation [--quick] [--server URL --server-model NAME]

Both sides answer the same problems at the same ratios with the demo's target model. The authors' code takes
batches of 16 in input order, left-padded, one ratio after the other. This library's engine answers all ratios of a
question together, computes shared beginnings once, and lets finished rows leave. The sides take turns (A B A B) on
blocks of problems. In bfloat16 a batch's composition changes a few near-ties, so the share of identical texts and
the accuracy of both sides are printed.

A server is a third side (A B C A B C) and is compared with the engine in a line of its own. NAME is the server's name
of the same target model (see docs/scale-out.md). No side has a TokenSkip adapter. A server on the same machine
computes only while the other sides wait.
"""

import argparse
import time

import torch
from tqdm import tqdm

from tokenskip_lib.core.profiles import load_profile
from tokenskip_lib.core.settings import ServerSettings
from tokenskip_lib.evaluation.predictions import build_requests
from tokenskip_lib.inference.engine import Engine, Request, TransformersEngine
from tokenskip_lib.inference.server import ServerEngine
from tokenskip_lib.models.loading import TargetModel, describe
from tokenskip_lib.problems.grading import is_correct, split_output
from tokenskip_lib.problems.sets import load_problems

RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
REFERENCE_BATCH = 16
BUDGET = 256
BLOCKS = 2
SERVER_CONCURRENCY = 128  # what vLLM is told to hold at most (max_num_seqs): the server decides about batches


@torch.inference_mode()
def reference(target: TargetModel, requests: list[Request]) -> dict:
    """id -> text and number of new tokens, by `generate` in input order; all requests have one budget."""
    tokenizer, answers = target.tokenizer, {}
    for start in range(0, len(requests), REFERENCE_BATCH):
        batch = requests[start : start + REFERENCE_BATCH]
        inputs = tokenizer(
            [request.prompt for request in batch], padding=True, add_special_tokens=False, return_tensors="pt"
        ).to(target.model.device)
        output = target.model.generate(
            **inputs, do_sample=False, max_new_tokens=batch[0].max_new_tokens, pad_token_id=tokenizer.pad_token_id
        )
        for request, ids in zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            new = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
            answers[request.key] = tokenizer.decode(new, skip_special_tokens=True), len(new)
    return answers


def by_engine(engine: Engine, requests: list[Request], name: str) -> dict:
    return {g.key: (g.text, g.tokens) for batch in engine.generate(requests, label=name) for g in batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer problems: under 50 seconds on 2 cores")
    parser.add_argument("--server", metavar="URL", help="an OpenAI-compatible server, up to and with /v1")
    parser.add_argument("--server-model", metavar="NAME", help="what it calls the target model")
    options = parser.parse_args()
    if (options.server is None) != (options.server_model is None):
        parser.error("--server and --server-model go together")
    quick, profile = options.quick, load_profile("demo")
    target = TargetModel(profile.target)
    problems = load_problems(profile, "train").problems[: 4 if quick else 128]
    if not problems:
        parser.error("the profile's training set has no problems")
    gold = {problem.id: problem.answer for problem in problems}
    engine = TransformersEngine(target.model, target.tokenizer, profile.evaluation.batch_size)
    sides = {"reference": lambda r: reference(target, r), "ours": lambda r: by_engine(engine, r, "ours")}
    if options.server is not None:
        settings = ServerSettings(url=options.server, model=options.server_model, concurrency=SERVER_CONCURRENCY)
        server = ServerEngine(settings, target.tokenizer, adapted=False)
        sides["server"] = lambda r: by_engine(server, r, "server")
    print(f"{describe(profile.target)}, torch {torch.__version__}")
    seconds, answers, blocks = dict.fromkeys(sides, 0.0), {name: {} for name in sides}, 1 if quick else BLOCKS
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
        for name, run in sides.items():
            start = time.perf_counter()
            answers[name].update(run(requests))
            seconds[name] += time.perf_counter() - start
    for name in sides:
        tokens = sum(count for _, count in answers[name].values())
        right = sum(is_correct(split_output(text).prediction, gold[key.id]) for key, (text, _) in answers[name].items())
        print(
            f"{name}: {len(problems)} problems x {len(RATIOS)} ratios, {tokens} new tokens, {seconds[name]:.1f} s, "
            f"{tokens / seconds[name]:.0f} tokens/s, {100 * right / len(answers[name]):.1f}% correct"
        )
    if options.server is not None:
        print(f"server against ours: {compare(answers, seconds, 'ours', 'server')}")
    print(compare(answers, seconds, "reference", "ours"))


def compare(answers: dict, seconds: dict, base: str, name: str) -> str:
    same = sum(answers[base][key][0] == text for key, (text, _) in answers[name].items()) / len(answers[name])
    return f"ratio: {seconds[base] / seconds[name]:.1f}x identical: {100 * same:.0f}%"


if __name__ == "__main__":
    main()
