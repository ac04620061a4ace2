"""How long answers take: latency a problem at batch size 1, as in the paper, and throughput in batches.

On a GPU the clock is CUDA's, read when all queued work has finished; on a CPU it is wall time. Nothing goes
into the records, because seconds belong to a machine and not to a run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenskip_lib.core.records import InputError, PredictionKey
from tokenskip_lib.evaluation.methods import answer_budget
from tokenskip_lib.evaluation.predictions import build_requests
from tokenskip_lib.evaluation.statistics import interval, resample
from tokenskip_lib.evaluation.tables import row_table
from tokenskip_lib.experiments.run import Run, find_trained, writes
from tokenskip_lib.experiments.steps import TIMINGS
from tokenskip_lib.inference.engine import Generation, Request, TransformersEngine
from tokenskip_lib.models.clock import Clock, peak_memory
from tokenskip_lib.models.loading import describe_device, load_model, load_tokenizer
from tokenskip_lib.problems.sets import load_problems

ROUNDS = 3
WARM_UP = 1  # batches answered before the clock starts: kernels are chosen and compiled then


@dataclass(frozen=True)
class TimingRow:
    """How long one method at one ratio takes at one batch size.

    Attributes:
        n: problems.
        rounds: how often all of them were answered.
        tokens: mean new tokens a problem.
        seconds_per_problem: wall time, the mean over rounds.
        tokens_per_second: new tokens.
        peak_memory_mb: of the GPU during these answers, with every model that is timed; on a CPU, of the process since
            it began.
    """

    batch_size: int
    method: str
    ratio: float
    n: int
    rounds: int
    tokens: float
    seconds_per_problem: float
    tokens_per_second: float
    peak_memory_mb: float


@dataclass(frozen=True)
class ComparedTiming(TimingRow):
    """A row of timings.csv.

    Attributes:
        speedup: the original's seconds divided by the row's at the same batch size, with its 95% bootstrap
            interval over rounds.
        device: what answered.
    """

    speedup: float
    speedup_low: float
    speedup_high: float
    device: str


@writes
def time_run(run: Run, problems: int, batch_sizes: Sequence[int], rounds: int = ROUNDS) -> pd.DataFrame:
    """Time the original, and TokenSkip at each of the profile's ratios; write timings.csv after each round.

    In a round each of them answers all problems once, in turn, so that a slow minute of the machine meets all of them.

    Args:
        problems: how many test problems are answered, the first ones.
        batch_sizes: 1 gives latency.
        rounds: what the intervals are drawn over.

    Returns:
        The columns of ComparedTiming.

    Raises:
        InputError: there are no problems, batch sizes or rounds, or the profile's answers come from a server.

    Source: TokenSkip (arXiv:2502.12067) table 1: mean latency a problem at batch size 1.
    """
    profile = run.profile
    if problems < 1 or rounds < 1 or not batch_sizes:
        raise InputError("timing needs at least one problem, one round and one batch size")
    if profile.server is not None:
        raise InputError("timing measures the model in this process: --set server=null")
    tokenizer = load_tokenizer(profile.target)
    chosen = load_problems(profile, profile.evaluation.split).problems[:problems]

    def group(method: str, ratio: float) -> list[Request]:
        budget = answer_budget(profile.evaluation, method, ratio)
        return build_requests(chosen, tokenizer, profile.prompts, method=method, ratio=ratio, max_new_tokens=budget)

    sides = [(load_model(profile.target), group("original", 1.0))]
    if ratios := sorted(profile.evaluation.methods.get("tokenskip", []), reverse=True):
        trained = load_model(profile.target, adapter=find_trained(run))
        sides += [(trained, group("tokenskip", ratio)) for ratio in ratios]
    device, timings = describe_device(profile.target), pd.DataFrame()
    finished: list[ComparedTiming] = []
    for size in batch_sizes:
        rows: list[ComparedTiming] = []
        for timed in time_answers(sides, tokenizer, size, rounds=rounds, compiled=profile.target.compile):
            rows = _compared(timed, profile.seed, device)
            timings = row_table([*finished, *rows], ComparedTiming).round(4)
            run.write_result(timings, TIMINGS)  # after each round, so that a kill loses one
        finished += rows
    return timings


def _compared(timed: Sequence[tuple[TimingRow, np.ndarray]], seed: int, device: str) -> list[ComparedTiming]:
    """Rows with the speed-up against the first one."""
    original = timed[0][1]
    drawn = resample(len(original), seed)
    rows = []
    for row, seconds in timed:
        low, high = interval((drawn @ original) / (drawn @ seconds))
        speedup = float(original.sum() / seconds.sum())
        rows.append(ComparedTiming(**asdict(row), speedup=speedup, speedup_low=low, speedup_high=high, device=device))
    return rows


def time_answers(
    sides: Sequence[tuple[PreTrainedModel, Sequence[Request]]],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    *,
    rounds: int = 1,
    compiled: bool = False,
) -> Iterator[list[tuple[TimingRow, np.ndarray]]]:
    """Answer groups of requests in turn, several times, after a warm-up of each.

    Args:
        sides: models, each with the requests of one method and ratio; keys are PredictionKey.
        batch_size: 1 gives latency.

    Yields:
        After each round, for each side a row and the seconds of its rounds so far.
    """
    engines = {id(model): TransformersEngine(model, tokenizer, batch_size, compiled=compiled) for model, _ in sides}
    labels = []
    for model, requests in sides:
        key = cast(PredictionKey, requests[0].key)
        labels.append(f"timing {key.method} {key.ratio:g}, batch {batch_size}")
        _answers(engines[id(model)], requests[: WARM_UP * batch_size], f"{labels[-1]}, warm-up")
    seconds: list[list[float]] = [[] for _ in sides]
    peaks = [0.0 for _ in sides]
    for number in range(1, rounds + 1):
        timed = []
        for side, (model, requests) in enumerate(sides):
            clock = Clock(model.device)
            if clock.cuda:
                torch.cuda.reset_peak_memory_stats(model.device)
            clock.start()
            answers = _answers(engines[id(model)], requests, f"{labels[side]}, round {number} of {rounds}")
            seconds[side].append(clock.stop())
            peaks[side] = max(peaks[side], peak_memory(model.device))
            key, tokens = cast(PredictionKey, requests[0].key), sum(answer.tokens for answer in answers)
            row = TimingRow(
                batch_size=batch_size,
                method=key.method,
                ratio=key.ratio,
                n=len(requests),
                rounds=number,
                tokens=tokens / len(requests),
                seconds_per_problem=float(np.mean(seconds[side])) / len(requests),
                tokens_per_second=tokens / float(np.mean(seconds[side])),
                peak_memory_mb=peaks[side],
            )
            timed.append((row, np.array(seconds[side])))
        yield timed


def _answers(engine: TransformersEngine, requests: Sequence[Request], label: str) -> list[Generation]:
    return [answer for batch in engine.generate(requests, label=label) for answer in batch]
