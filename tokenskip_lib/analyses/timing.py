"""How long answers take: latency a problem at batch size 1, as in the paper, and throughput in batches.

On a GPU the clock is CUDA's, read when all queued work has finished; on a CPU it is wall time. Nothing goes
into the records, because seconds belong to a machine and not to a run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
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

WARM_UP = 1  # batches answered before the clock starts: kernels are chosen and compiled then


@dataclass(frozen=True)
class TimingRow:
    """How long one method at one ratio takes at one batch size.

    Attributes:
        n: problems.
        tokens: mean new tokens a problem.
        seconds_per_problem: wall time.
        tokens_per_second: new tokens.
        peak_memory_mb: of the GPU during these answers; on a CPU, of the process since it began.
    """

    batch_size: int
    method: str
    ratio: float
    n: int
    tokens: float
    seconds_per_problem: float
    tokens_per_second: float
    peak_memory_mb: float


@dataclass(frozen=True)
class ComparedTiming(TimingRow):
    """A row of timings.csv.

    Attributes:
        speedup: the original's seconds divided by the row's at the same batch size, with its 95% bootstrap
            interval over problems.
        device: what answered.
    """

    speedup: float
    speedup_low: float
    speedup_high: float
    device: str


@writes
def time_run(run: Run, problems: int, batch_sizes: Sequence[int]) -> pd.DataFrame:
    """Time the original, and TokenSkip at each of the profile's ratios; write timings.csv.

    Args:
        problems: how many test problems are answered, the first ones.
        batch_sizes: 1 gives latency.

    Returns:
        The columns of ComparedTiming.

    Raises:
        InputError: there are no problems or batch sizes, or the profile's answers come from a server.

    Source: TokenSkip (arXiv:2502.12067) table 1: mean latency a problem at batch size 1.
    """
    profile = run.profile
    if problems < 1 or not batch_sizes:
        raise InputError("timing needs at least one problem and one batch size")
    if profile.server is not None:
        raise InputError("timing measures the model in this process: --set server=null")
    tokenizer = load_tokenizer(profile.target)
    chosen = load_problems(profile, profile.evaluation.split).problems[:problems]

    def group(method: str, ratio: float) -> list[Request]:
        budget = answer_budget(profile.evaluation, method, ratio)
        return build_requests(chosen, tokenizer, profile.prompts, method=method, ratio=ratio, max_new_tokens=budget)

    ratios = sorted(profile.evaluation.methods.get("tokenskip", []), reverse=True)
    sides: list[tuple[Path | str | None, list[tuple[str, float]]]] = [(None, [("original", 1.0)])]
    if ratios:
        sides.append((find_trained(run), [("tokenskip", ratio) for ratio in ratios]))
    device, timings = describe_device(profile.target), pd.DataFrame()
    rows: list[ComparedTiming] = []
    original: dict[int, np.ndarray] = {}  # batch size -> seconds of each problem
    for folder, pairs in sides:
        model = load_model(profile.target, adapter=folder)
        groups = [group(*pair) for pair in pairs]
        for row, seconds in time_answers(model, tokenizer, groups, batch_sizes, compiled=profile.target.compile):
            whole, drawn = original.setdefault(row.batch_size, seconds), resample(len(seconds), profile.seed)
            low, high = interval((drawn @ whole) / (drawn @ seconds))
            speedup = float(whole.sum() / seconds.sum())
            rows.append(
                ComparedTiming(**asdict(row), speedup=speedup, speedup_low=low, speedup_high=high, device=device)
            )
            timings = row_table(rows, ComparedTiming).round(4)
            run.write_result(timings, TIMINGS)  # after each, so that a kill loses one
    return timings


def time_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Sequence[Request]],
    batch_sizes: Sequence[int],
    *,
    compiled: bool = False,
) -> Iterator[tuple[TimingRow, np.ndarray]]:
    """Answer groups of requests at each batch size. Each group is timed by itself, after a warm-up.

    Args:
        requests: groups, each of one method and ratio; keys are PredictionKey.
        batch_sizes: 1 gives latency.

    Yields:
        A row for each batch size and group, and with it each problem's share of the seconds, in the order of
        the requests' keys.
    """
    clock = Clock(model.device)
    for size in batch_sizes:
        engine = TransformersEngine(model, tokenizer, size, compiled=compiled)
        for group in requests:
            key = cast(PredictionKey, group[0].key)
            label = f"timing {key.method} {key.ratio:g}, batch {size}"
            _answers(engine, group[: WARM_UP * size], f"{label}, warm-up")
            if clock.cuda:
                torch.cuda.reset_peak_memory_stats(model.device)
            clock.start()
            answers = _answers(engine, group, label)
            seconds = clock.stop()
            tokens = sum(answer.tokens for answer in answers)
            each = np.array([answer.seconds for answer in sorted(answers, key=lambda answer: answer.key)])
            row = TimingRow(
                batch_size=size,
                method=key.method,
                ratio=key.ratio,
                n=len(group),
                tokens=tokens / len(group),
                seconds_per_problem=seconds / len(group),
                tokens_per_second=tokens / seconds,
                peak_memory_mb=peak_memory(model.device),
            )
            yield row, each * seconds / each.sum()


def _answers(engine: TransformersEngine, requests: Sequence[Request], label: str) -> list[Generation]:
    return [answer for batch in engine.generate(requests, label=label) for answer in batch]
