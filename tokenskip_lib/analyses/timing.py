"""How long answers take: latency a problem at batch 1, as the paper measures it, and throughput in batches.

On a GPU the clock is CUDA's, read after everything queued has finished; on a CPU it is wall time.
Nothing goes into the records: seconds belong to a machine, not to a run.
"""

import resource
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.core.records import InputError
from tokenskip_lib.evaluation.methods import answer_budget
from tokenskip_lib.evaluation.predictions import build_requests
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.experiments.run import Run, find_trained
from tokenskip_lib.inference.engine import Generation, Request, TransformersEngine
from tokenskip_lib.models.loading import describe_device, load_model, load_tokenizer
from tokenskip_lib.problems.sets import load_problems

WARM_UP = 2  # batches answered before the clock starts: kernels are chosen and compiled then
TIMING_COLUMNS = ["batch_size", "method", "ratio", "n", "tokens", "seconds_per_problem", "tokens_per_second"]
TIMING_COLUMNS += ["peak_memory_mb"]


class Clock:
    """Seconds between `start` and `stop` on a model's device."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.device = device

    def start(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.events[0].record()
        else:
            self.began = time.perf_counter()

    def stop(self) -> float:
        if not self.cuda:
            return time.perf_counter() - self.began
        self.events[1].record()
        torch.cuda.synchronize(self.device)
        return self.events[0].elapsed_time(self.events[1]) / 1000


def time_run(run: Run, problems: int, batch_sizes: Sequence[int]) -> pd.DataFrame:
    """Time the original and TokenSkip at each of the profile's ratios on the first test problems; writes timings.csv.

    Returns:
        The rows of `time_answers`, with `speedup`, the original's seconds a problem over each row's at the
        same batch size, its 95% bootstrap interval (problems resampled), and `device`.

    Source: TokenSkip (arXiv:2502.12067) table 1: mean latency a problem at batch size 1.
    """
    profile = run.profile
    if profile.server is not None:
        raise InputError("timing measures the model in this process: --set server=null")
    tokenizer = load_tokenizer(profile.target)
    chosen = load_problems(profile, profile.evaluation.split).problems[:problems]

    def group(method: str, ratio: float) -> list[Request]:
        budget = answer_budget(profile.evaluation, method, ratio)
        return build_requests(chosen, tokenizer, profile.prompts, method=method, ratio=ratio, max_new_tokens=budget)

    ratios = sorted(profile.evaluation.methods.get("tokenskip", []), reverse=True)
    rows, original, device = [], {}, describe_device(profile.target)
    sides = [(None, [("original", 1.0)])]
    if ratios:
        sides.append((find_trained(run), [("tokenskip", ratio) for ratio in ratios]))
    for folder, pairs in sides:
        model = load_model(profile.target, adapter=folder)
        groups = [group(*pair) for pair in pairs]
        for row, seconds in time_answers(model, tokenizer, groups, batch_sizes, compiled=profile.target.compile):
            whole, drawn = original.setdefault(row["batch_size"], seconds), resample(len(seconds), profile.seed)
            low, high = interval((drawn @ whole) / (drawn @ seconds))
            speedup = whole.sum() / seconds.sum()
            rows.append({**row, "speedup": speedup, "speedup_low": low, "speedup_high": high, "device": device})
            timings = pd.DataFrame(rows).round(4)
            timings.to_csv(run.folder / "timings.csv", index=False)  # after each, so that a kill loses one
    return timings


def time_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Sequence[Request]],
    batch_sizes: Sequence[int],
    *,
    compiled: bool = False,
) -> Iterator[tuple[dict, np.ndarray]]:
    """Answer groups of requests at each batch size, each group by itself, after a warm-up on its first requests.

    Args:
        requests: groups of one method and ratio; ids are (problem id, method, ratio).
        batch_sizes: 1 gives latency.

    Yields:
        A row a batch size and group, of TIMING_COLUMNS: n problems, their mean new tokens, wall
        seconds a problem, new tokens a second, and the peak memory in MB: of the device since the
        group began, or on a CPU of this process since it began. With it each problem's part of the seconds,
        in the order of their ids.
    """
    clock = Clock(model.device)
    for size in batch_sizes:
        engine = TransformersEngine(model, tokenizer, size, compiled=compiled)
        for group in requests:
            label = f"timing {group[0].key.method} {group[0].key.ratio:g}, batch {size}"
            _answers(engine, group[: WARM_UP * size], f"{label}, warm-up")
            if clock.cuda:
                torch.cuda.reset_peak_memory_stats(model.device)
            clock.start()
            answers = _answers(engine, group, label)
            seconds = clock.stop()
            tokens = sum(answer.tokens for answer in answers)
            _, method, ratio = group[0].key
            row = [size, method, ratio, len(group), tokens / len(group), seconds / len(group), tokens / seconds]
            each = np.array([answer.seconds for answer in sorted(answers, key=lambda answer: answer.key)])
            yield dict(zip(TIMING_COLUMNS, [*row, peak_memory(model.device)], strict=True)), each * seconds / each.sum()


def peak_memory(device: torch.device) -> float:
    """MB: what a GPU's tensors took at most since the last reset; on a CPU, the process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere


def _answers(engine: TransformersEngine, requests: Sequence[Request], label: str) -> list[Generation]:
    return [answer for batch in engine.generate(requests, label=label) for answer in batch]
