"""What this machine can do: seconds of a call, and the rate of its own matrix product."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a call, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of the machine's own matrix product at a model's size, best of ten."""
    left, right = torch.randn(2048, 1024).to(dtype), torch.randn(1024, 4096).to(dtype)
    left @ right
    best = min(timed(lambda: left @ right)[0] for _ in range(10))
    return 2 * left.numel() * right.shape[1] / best
